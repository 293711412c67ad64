"""Ladders made of numbers alone, for tests of the rules."""

from collections.abc import Mapping
from typing import Any

from luthier.report.ladder import Facts
from luthier.report.schema import (
    Difference,
    Evaluation,
    Failures,
    Interval,
    System,
)

N = 150
KINDS: Mapping[str, dict[str, Any]] = {
    "zero_shot": {"type": "zero_shot", "baseline": True},
    "few_shot": {"type": "few_shot", "baseline": True},
    "fine_tuned": {"type": "fine_tuned"},
    "crf": {"type": "command", "baseline": True},
}
MORE: Mapping[str, dict[str, Any]] = {
    "rag": {"type": "rag", "rung": "rag", "baseline": True},
    "other": {"type": "remote", "rung": "other_model", "baseline": True},
    "other_too": {"type": "remote", "rung": "other_model", "baseline": True},
    "fine_tuned_rag": {"type": "fine_tuned_rag", "rung": "fine_tune+rag"},
}


def system(name: str, value: float, half: float = 0.03, **changes: Any) -> System:
    settings = {"n": N, **{**KINDS, **MORE}[name], **changes}
    return System(name=name, metrics={"f1": Interval(value=value, low=value - half, high=value + half)}, **settings)


def failing(share: float) -> dict[str, Failures]:
    return {"json_valid": Failures(count=round(share * N), per_million=share * 1e6, per_million_high=share * 1e6 + 2e4)}


def measured(metric: str = "f1", **changes: Any) -> Evaluation:
    settings = {"task": "json", "n": N, "bounds": {"f1": (0.0, 1.0)}, "lower_is_better": (), **changes}
    return Evaluation(primary_metric=metric, **settings)


def facts(
    values: Mapping[str, float],
    half: float | Mapping[frozenset[str], float] = 0.03,
    mde: float | Mapping[frozenset[str], float] | None = 0.05,
    **changes: Any,
) -> Facts:
    """A ladder with these values; paired differences have the half-width `half` and would show `mde`, which may be
    given by pair."""

    def of(given: Any, a: str, b: str) -> Any:
        return given[frozenset((a, b))] if isinstance(given, Mapping) else given

    systems = tuple(system(name, value) for name, value in values.items())
    differences = tuple(
        Difference(
            a=a,
            b=b,
            metric="f1",
            difference=values[a] - values[b],
            low=values[a] - values[b] - of(half, a, b),
            high=values[a] - values[b] + of(half, a, b),
            minimum_detectable_effect=of(mde, a, b),
        )
        for a in values
        for b in values
        if a < b
    )
    settings: dict[str, Any] = {
        "evaluation": measured(),
        "systems": systems,
        "differences": differences,
    }
    return Facts(**{**settings, **changes})


LADDER = {"zero_shot": 0.60, "few_shot": 0.80, "fine_tuned": 0.92}
RETRIEVED = {"zero_shot": 0.2, "rag": 0.7, "fine_tuned": 0.3, "fine_tuned_rag": 0.9}
