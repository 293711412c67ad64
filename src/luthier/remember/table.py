"""`remember.json` and `remember.html`: every candidate with its gain and what it forgot, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from luthier.evaluate import REMEMBER
from luthier.evaluation.significance import Comparison, finite
from luthier.recipe import Recipe
from luthier.remember.candidates import Candidate
from luthier.remember.choice import Point, choose, frontier
from luthier.remember.measure import Judge, Measured
from luthier.report.build import write_text
from luthier.report.frontier_parts import Frontier
from luthier.report.page import render_frontier
from luthier.run_folder import RunFolder

Status: TypeAlias = Literal["measured", "over_budget", "not_possible", "failed"]


@dataclass(frozen=True)
class Tried:
    """A candidate, and what came of it."""

    candidate: Candidate
    status: Status
    reason: str = ""
    """Why it was not measured."""
    measured: Measured | None = None
    seconds: float = 0.0
    """Of training and measuring."""


def weighed(
    recipe: Recipe, judge: Judge, base: Measured, tried: Sequence[Tried], budget_minutes: float
) -> dict[str, Any]:
    """What `remember.json` holds: all that was tried, and the choice among it."""
    found = {one.candidate.name: _numbers(judge, one.measured, base) for one in tried if one.measured is not None}
    points = [Point(name, one["gain"]["value"], one["forgetting"]["value"]) for name, one in found.items()]
    limit = recipe.decision.most_forgetting
    choice, best = choose(points, limit, recipe.decision.smallest_gain * _unit(judge, base)), set(frontier(points))
    return {
        "metric": judge.question.primary,
        "higher_is_better": judge.metric.higher_is_better,
        "rows": len(judge.rows),
        "items": {measure["name"]: measure["n"] for measure in judge.measures(base, base)},
        "confidence": recipe.evaluation.confidence,
        "base": judge.value(base).dump(),
        "limit": limit,
        "budget_minutes": budget_minutes,
        "chosen": choice.name,
        "reason": choice.reason,
        "candidates": [
            {
                **asdict(one.candidate),
                "status": one.status,
                "reason": one.reason,
                "seconds": round(one.seconds, 1),
                **found.get(one.candidate.name, {}),
                "on_frontier": one.candidate.name in best,
                "chosen": one.candidate.name == choice.name,
            }
            for one in tried
        ],
    }


def write_frontier(folder: RunFolder, values: dict[str, Any]) -> None:
    """Write both files into the run's folder.

    Raises:
        StorageError: they cannot be written.
    """
    folder.write(REMEMBER, values)
    write_text(folder / "remember.html", render_frontier(Frontier.model_validate(values), folder.path.resolve().name))


def _numbers(judge: Judge, measured: Measured, base: Measured) -> dict[str, Any]:
    return {
        "value": judge.value(measured).dump(),
        "gain": _difference(judge.gain(measured, base)),
        "forgetting": asdict(judge.loss(measured, base)),
        "measures": judge.measures(measured, base),
    }


def _difference(found: Comparison) -> Mapping[str, float | None]:
    return {"value": found.difference, "low": finite(found.low), "high": finite(found.high)}


def _unit(judge: Judge, base: Measured) -> float:
    """What `decision.smallest_gain` is a share of: the scale of the metric, or the base's value where it has none."""
    worst, best = judge.metric.worst, judge.metric.best
    return abs(best - worst) if math.isfinite(best - worst) else abs(judge.value(base).value)
