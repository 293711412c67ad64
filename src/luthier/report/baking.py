"""What a model saves and loses that does without a prompt which it was taught."""

from collections.abc import Mapping
from typing import Any

from luthier.report.ladder import Facts, Ladder
from luthier.report.part import Interval
from luthier.report.schema import Baking, System

PROMPTED, TRAINED = "prompted", "fine_tuned"
"""Types of the systems that are compared; of several the first."""


def build_baking(facts: Facts, recipe: Mapping[str, Any]) -> Baking | None:
    """The model without the prompt beside the base with it; None where no prompt was taught, or not both answered."""
    teacher = recipe.get("teacher") or {}
    if not (teacher.get("prompt") or teacher.get("examples")):
        return None
    prompted, trained = (next((s for s in facts.systems if s.type == kind), None) for kind in (PROMPTED, TRAINED))
    ladder = Ladder(facts)
    if facts.evaluation is None or prompted is None or trained is None:
        return None
    before, after = ladder.value(prompted), ladder.value(trained)
    read, left = _tokens(prompted), _tokens(trained)
    if before is None or after is None or read is None or left is None:
        return None
    change = ladder.difference(trained, prompted)
    bounds = facts.evaluation.bounds.get(ladder.metric)
    return Baking(
        prompted=prompted.name,
        baked=trained.name,
        n=min(prompted.n, trained.n),
        prompt_tokens=read,
        tokens_without=left,
        metric=ladder.metric,
        with_prompt=prompted.metrics[ladder.metric],
        without=trained.metrics[ladder.metric],
        difference=Interval(value=change.difference, low=change.low, high=change.high),
        p_value=change.p_value,
        kept=after / before if bounds is not None and bounds[0] == 0 < bounds[1] and before > 0 else None,
    )


def _tokens(system: System) -> float | None:
    """Tokens read for an answer; None if they were not counted."""
    return None if system.tokens is None or not system.n else system.tokens.prompt / system.n
