"""Answers that are only given where a system is sure, as a report says it: the shape of `abstention.json`."""

from luthier.report.part import Interval, Part


class FoundThreshold(Part):
    """From which confidence on answers are given, as validation rows said."""

    confidence: float
    """Answers of at least this probability are given."""
    answered: int
    """Validation rows that are so sure."""
    right: int
    """Of these, right."""
    rows: int
    """Validation rows in all."""
    low: float
    """Lower bound of the share that is right, at 95 %, one-sided."""


class SurestShare(Part):
    """Of the test rows that a system is surest of, how many are right."""

    coverage: float
    """Share of the test rows."""
    right: float
    """Share of these that is right."""


class Abstainer(Part):
    """A system that tells how sure it is."""

    system: str
    """The system."""
    temperature: float | None = None
    """What its scores are divided by."""
    threshold: FoundThreshold | None = None
    """Null where validation rows could not show any."""
    rows_to_show: int | None = None
    """About how many validation rows like these it takes to show one, if not more; null where there is one, or where
    ten times as many, or 10,000, do not."""
    coverage: Interval | None = None
    """Share of test rows that are answered with this threshold."""
    right: Interval | None = None
    """Share of these answers that is right."""
    holds: bool | None = None
    """Whether what was wanted is within the interval of `right`, or below it; null without an answer."""
    curve: tuple[SurestShare, ...] = ()
    """How right it is where it is surest."""


class Abstention(Part):
    """What systems answer at a wanted precision."""

    precision: float
    """Wanted share of right answers among those given (`evaluation.precision`)."""
    systems: tuple[Abstainer, ...]
    """Those that tell how sure they are."""
