"""What a server takes on, and from whom. No torch here."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class HttpLimits:
    """What one request may cost before it is refused."""

    body_bytes: int = 4 * 1024 * 1024
    """Largest body."""
    body_seconds: float = 30.0
    """Longest time for a body to arrive."""
    deadline_seconds: float = 600.0
    """Longest time for an answer, waiting included."""
    default_tokens: int = 1024
    """Longest chat answer when the client sets no limit."""


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    key: str | None = field(default=None, repr=False)
    """Bearer key that every request must carry; None asks for none."""
    hosts: tuple[str, ...] = ()
    """Names besides loopback that a Host header may have."""
    admin_key: str | None = field(default=None, repr=False)
    """Bearer key of the routes that add and remove adapters; None: there are no such routes."""
    any_address: bool = False
    """Whether any IP address may stand in a Host header (a server bound to all interfaces)."""


@dataclass(frozen=True)
class Limits:
    """How much a lane holds at once."""

    rows: int = 16
    """Completions that are computed together."""
    cache_tokens: int = 65_536
    """Rows times their greatest length; bounds the memory of keys and values."""
    prefix_tokens: int = 8_192
    """Tokens of recent prompts whose keys and values are kept for reuse."""
    block: int = 64
    """Prompt tokens computed between two tokens of the running rows."""
