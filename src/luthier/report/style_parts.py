"""How answers are written, as a report says it: the shape of `style.json`."""

from luthier.report.part import Interval, Part


class StyledSystem(Part):
    """How one system writes."""

    system: str
    """The system."""
    features: dict[str, float]
    """By feature, the mean over its answers."""
    off: dict[str, Interval] = {}
    """By feature, how often an answer has more of it than a wanted reply, minus how often less: from -1 to 1."""
    distance: Interval | None = None
    """The mean of the absolute values of these."""
    by_chance: float | None = None
    """A system that writes like the wanted replies stays below this 95 times in 100."""


class PreferredPair(Part):
    """Two answers to one request, as a judge saw them."""

    id: str
    """The row."""
    request: str
    """What was asked."""
    a: str
    """What `a` answered."""
    b: str
    """What `b` answered."""
    won: str
    """Which of both was preferred."""


class Preferred(Part):
    """How often the judge prefers `a` to `b`, asked in both orders."""

    a: str
    """A system."""
    b: str
    """What it is compared with."""
    n: int
    """Rows."""
    wins: int
    """Rows on which `a` was named in both orders."""
    losses: int
    """Rows on which `b` was."""
    ties: int
    """All others."""
    equal: int = 0
    """Ties on which both said the same, so that nobody was asked."""
    net: Interval
    """Share of wins minus share of losses."""
    p_value: float | None = None
    """Of its difference from zero."""
    consistent: Interval | None = None
    """Share of rows of which both orders said the same."""
    first_place: Interval | None = None
    """How often the answer in the first place was named, where one was: a half, of a judge that reads."""
    longer_wins: Interval | None = None
    """How often the longer answer won, of rows that were won."""
    unreadable: int = 0
    """Replies of the judge that named nothing, of two a row."""
    examples: tuple[PreferredPair, ...] = ()
    """Wins and losses in turn, at most five."""


class Preference(Part):
    """What a judge prefers."""

    judge: str
    """Who judged."""
    criterion: str
    """What it was told to go by."""
    against: str
    """The system that every other one is compared with."""
    pairs: tuple[Preferred, ...]
    """In the order of the ladder."""


class Style(Part):
    """How answers are written, beside the replies that were wanted."""

    rows: int
    """Rows with a wanted reply."""
    features: dict[str, str]
    """By name, what is counted."""
    wanted: dict[str, float]
    """By feature, the mean over the wanted replies."""
    systems: tuple[StyledSystem, ...]
    """In the order of the ladder."""
    preference: Preference | None = None
    """Null where no judge was asked."""
