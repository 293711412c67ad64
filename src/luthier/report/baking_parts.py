"""What a model saves and loses that does without a prompt which it was taught, as a report says it."""

from luthier.report.part import Interval, Part


class Baking(Part):
    """A model that was taught to do without a prompt, beside the base that reads it; on the same test rows."""

    prompted: str
    """The system that reads the prompt."""
    baked: str
    """The trained one, without it."""
    n: int
    """Test rows."""
    prompt_tokens: float
    """Tokens that the base reads for an answer, on average, by its own tokenizer."""
    tokens_without: float
    """Tokens that the trained model reads."""
    metric: str
    """The primary metric."""
    with_prompt: Interval
    """Its value for the base with the prompt."""
    without: Interval
    """Its value for the trained model without it."""
    difference: Interval
    """Trained minus prompted, paired."""
    p_value: float | None = None
    """Probability of a difference at least this large if there were none."""
    kept: float | None = None
    """The trained model's share of the base's value; null for a metric that does not begin at 0 and rise."""
