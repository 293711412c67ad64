"""Ids of answers and requests."""

import secrets


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}-{secrets.token_hex(12)}"
