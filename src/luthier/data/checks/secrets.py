"""Keys, tokens and passwords in the rows: what a model is trained on, it can be made to say.

Matched by the issuers' own prefixes and, where a prefix is not enough, by the entropy of what follows. The match is
counted and placed, never shown.
"""

from collections.abc import Mapping
from typing import ClassVar

from luthier.data.checks import _patterns
from luthier.data.checks._scan import Kind, TextScan

_ADVICE = "revoke it, then replace it in the data with a placeholder; it is not shown here on purpose"
_NAMES = [*dict.fromkeys(pattern.kind for pattern in _patterns.SECRETS), _patterns.ASSIGNED]


class Secrets(TextScan):
    """Counts the rows that hold each kind of secret."""

    check: ClassVar[str] = "secrets"
    kinds: ClassVar[Mapping[str, Kind]] = {
        name: Kind("warning", f"what looks like: {name}", _ADVICE) for name in _NAMES
    }

    def scan(self, text: str) -> set[str]:
        """Kinds of secrets in a text."""
        return _patterns.secrets(text)
