"""Remedies against forgetting as data: what was replayed, and `remember.json`, which tells what was tried."""

from luthier.report.part import Interval, Part


class Replay(Part):
    """Rows of other work that were mixed into training."""

    trained: int = 0
    """Rows mixed in."""
    wanted: int = 0
    """As many as the recipe's share asks for."""
    share: float = 0.0
    """Of what was trained on."""
    available: int = 0
    """Different rows of the file that ask nothing that is held out."""
    leaks: int = 0
    """Rows left out because they ask what a held-out row asks."""


class Forgot(Part):
    """The measure of general ability that lost the largest share of what it was."""

    measure: str
    """Such as text perplexity."""
    value: float
    """Share that was lost; negative where the measure became better."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""


class Candidate(Part):
    """One training, or one share of a training."""

    name: str
    """Of its folder in `remember`."""
    remedy: str
    """`plain`, `interpolation`, `replay`, `kl`, `pull`, `rank` or `rate`."""
    settings: tuple[str, ...] = ()
    """What differs from the recipe, as `--set` takes it."""
    share: float | None = None
    """Of the plain training's update that is kept; null for a training of its own."""
    status: str = "measured"
    """`measured`, `over_budget`, `not_possible` or `failed`."""
    reason: str = ""
    """Why it was not measured."""
    seconds: float = 0.0
    """Of training and measuring."""
    value: Interval | None = None
    """The primary metric on the validation rows."""
    gain: Interval | None = None
    """How much better than the base's, paired; positive is better."""
    forgetting: Forgot | None = None
    """On the selection half of the general items."""
    on_frontier: bool = False
    """Whether no other candidate gains as much and forgets as little."""
    chosen: bool = False
    """Whether it is in place as the run's adapter."""


class Frontier(Part):
    """`remember.json`."""

    metric: str
    """The metric that gain is measured by."""
    rows: int = 0
    """Validation rows."""
    items: dict[str, int] = {}
    """Questions and windows of text in the selection half, by measure."""
    confidence: float = 0.95
    """Coverage of every interval."""
    base: Interval = Interval()
    """The base on the validation rows."""
    limit: float | None = None
    """`decision.most_forgetting`; null if the recipe sets none."""
    budget_minutes: float | None = None
    """For the remedies together."""
    chosen: str | None = None
    """The candidate that is in place; null while the search has not ended."""
    reason: str = ""
    """Why it won."""
    candidates: tuple[Candidate, ...] = ()
    """In the order in which they were tried."""
