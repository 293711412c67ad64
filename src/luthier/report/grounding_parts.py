"""Answers beside their passages, as a report says it: the shape of `grounding.json`."""

from luthier.report.part import Interval, Part


class GroundedShare(Part):
    """The share of a system's answers with one verdict."""

    counted: Interval
    """As the checker counts them."""
    corrected: Interval
    """With the checker's own measured errors taken out, and their uncertainty in the interval."""


class GroundedAnswer(Part):
    """An answer that its passages do not support."""

    id: str
    """The row."""
    question: str
    """What was asked."""
    answer: str
    """What was answered."""
    probability: float | None = None
    """How probable it is that it is supported, by the checker."""


class GroundedSystem(Part):
    """What the passages say of one system's answers."""

    system: str
    """The system."""
    n: int
    """Rows with passages."""
    without_passages: int = 0
    """Rows without any, which were not judged."""
    shares: dict[str, GroundedShare]
    """By verdict: supported, unsupported, abstained."""
    examples: tuple[GroundedAnswer, ...] = ()
    """The answers least likely supported, at most five."""


class GroundedDifference(Part):
    """`a` minus `b` in the share of one verdict, on the rows that both were judged on."""

    a: str
    """The system whose share comes first."""
    b: str
    """The system whose share is taken away."""
    n: int
    """Rows."""
    verdict: str
    """Which share."""
    counted: Interval
    """As the checker counts."""
    p_value: float | None = None
    """Of the counted difference."""
    corrected: Interval
    """With the checker's errors taken out."""


class CheckerErrors(Part):
    """How a checker did on hand-checked rows, for one verdict."""

    sensitivity: Interval
    """Share of such rows that it finds."""
    specificity: Interval
    """Share of the others that it passes."""


class GroundingCalibration(Part):
    """What is known of the checker's own errors."""

    rows: int
    """Hand-checked rows."""
    provenance: str = ""
    """Where they are from."""
    errors: dict[str, CheckerErrors]
    """By verdict."""


class Grounding(Part):
    """Answers beside their passages: supported, unsupported or abstained."""

    judge: str
    """The model that judged beside the words; `none`: the words alone."""
    calibration: GroundingCalibration
    """How often the checker is wrong."""
    systems: tuple[GroundedSystem, ...]
    """In the order of the ladder."""
    differences: tuple[GroundedDifference, ...] = ()
    """Paired."""
