"""Simulated ladders whose truth is known: do intervals hold it as often as they say, and is the verdict the right one?

    python -m benchmarks.ladders [--ladders 300] [--rows 150]

Each ladder is three systems on the same rows. Rows differ in hardness, which all systems share (what pairing is for),
and a fifth of them ask what another row asks. Intervals, differences and verdicts come from the code that a run uses.

The first table counts how often the 95 % interval of a difference holds the true one. The second counts the verdicts
by the true gain of the fine-tuned model over the best prompt: with none, each `fine_tune` is a false alarm; with one
that is worth having, each `prompt` or `few_shot` is a miss.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from luthier.evaluation.harness import Measured, Options, summarize
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.significance import clopper_pearson
from luthier.evaluation.systems.base import System
from luthier.evaluation.systems.few_shot import FewShot
from luthier.evaluation.systems.fine_tuned import FineTuned
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.evaluation.task import build_metrics
from luthier.report import schema
from luthier.report.ladder import Facts
from luthier.report.verdict import decide

SYSTEMS: Mapping[str, type[System]] = {
    "zero_shot": ZeroShot,
    "few_shot": FewShot,
    "fine_tuned": FineTuned,
}
SHARED = 1.0
"""Standard deviation of a row's hardness, beside 1 of what a system makes of it."""
REPEATED = 0.2
"""Share of rows that ask what another row asks."""
GAINS = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2)
ALIKE = 0.8
"""How much of what they make of a row two systems have in common: the same model, asked in other ways."""


@dataclass(frozen=True)
class Kind:
    """A metric, and statistics of a row for the probability that a system does it right."""

    metric: str
    draw: Callable[[np.random.Generator, Array], Array]
    """(rng, probabilities of N rows) -> (N, S)."""


def _right_or_wrong(rng: np.random.Generator, right_N: Array) -> Array:
    return np.stack([(rng.random(len(right_N)) < right_N).astype(float), np.ones(len(right_N))], axis=1)


def _partly(rng: np.random.Generator, right_N: Array) -> Array:
    return np.stack([rng.beta(4 * right_N + 1e-9, 4 * (1 - right_N) + 1e-9), np.ones(len(right_N))], axis=1)


def _fields(rng: np.random.Generator, right_N: Array) -> Array:
    """Eight fields wanted and eight answered in each row, so that F1 is the share of right ones."""
    wanted = np.full(len(right_N), 8)
    return np.stack([rng.binomial(wanted, right_N).astype(float), wanted, wanted], axis=1)


KINDS = (
    Kind("accuracy", _right_or_wrong),
    Kind("rouge_l", _partly),
    Kind("field_f1", _fields),
)


def ladder(kind: Kind, skills: Mapping[str, float], rows: int, seed: int) -> dict[str, Any]:
    """`evaluation.json` of a simulated run.

    A system's skill is its true score. Of a row it gets a share Phi(z + noise) right, where the noise is the row's
    hardness and what the system makes of it, and z is such that the mean over all rows is the skill.
    """
    rng = np.random.default_rng(seed)
    groups_N = np.arange(rows)
    repeats = int(rows * REPEATED)
    groups_N[rows - repeats :] = rng.integers(0, rows - repeats, repeats)
    _, groups_N = np.unique(groups_N, return_inverse=True)
    hardness_N = rng.normal(scale=SHARED, size=rows)[groups_N]
    metrics: Mapping[str, Metric] = build_metrics([kind.metric])
    common_N = rng.normal(size=rows)
    measured = {}
    for name, skill in skills.items():
        right_N = _share_right(skill, hardness_N, ALIKE * common_N + (1 - ALIKE**2) ** 0.5 * rng.normal(size=rows))
        statistics = {kind.metric: kind.draw(rng, right_N)}
        measured[name] = Measured(SYSTEMS[name](), statistics, 1.0, rows, rows, {})
    options = Options(Path("."), kind.metric, seed=seed)
    return summarize(measured, groups_N, "text", metrics, options).dump()


def _share_right(skill: float, hardness_N: Array, own_N: Array) -> Array:
    """Its mean is the skill: E Phi(a + b X) of a standard normal X is Phi(a / sqrt(1 + b^2))."""
    noise_N = hardness_N + own_N
    found: Array = ndtr(ndtri(skill) * (2 + SHARED**2) ** 0.5 + noise_N)
    return found


def coverage(ladders: int, rows: int) -> Iterator[str]:
    """Lines of the first table."""
    yield "| metric | difference | held by the interval | of | share, with its own interval |"
    yield "|---|---|---|---|---|"
    all_held = all_of = 0
    for kind in KINDS:
        held: Counter[tuple[str, str]] = Counter()
        for seed in range(ladders):
            rng = np.random.default_rng(10_000 + seed)
            few = rng.uniform(0.3, 0.8)
            skills = {
                "zero_shot": few - rng.uniform(0, 0.25),
                "few_shot": few,
                "fine_tuned": few + rng.uniform(0, 0.15),
            }
            for d in ladder(kind, skills, rows, seed)["differences"]:
                true = skills[d["a"]] - skills[d["b"]]
                held[d["a"], d["b"]] += d["low"] <= true <= d["high"]
        for (a, b), count in held.items():
            low, high = clopper_pearson(count, ladders)
            yield f"| {kind.metric} | {a} − {b} | {count} | {ladders} | {count / ladders:.3f} [{low:.3f}, {high:.3f}] |"
        all_held, all_of = all_held + sum(held.values()), all_of + ladders * len(held)
    yield f"| all | | {all_held} | {all_of} | {all_held / all_of:.3f} |"


def verdicts(ladders: int, rows: int) -> Iterator[str]:
    """Lines of the second table."""
    names = ["fine_tune", "few_shot", "prompt", "not_yet"]
    yield "| metric | true gain of training | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for kind in KINDS:
        for gain in GAINS:
            found: Counter[str] = Counter()
            for seed in range(ladders):
                skills = {"zero_shot": 0.45, "few_shot": 0.6, "fine_tuned": 0.6 + gain}
                found[decide(facts_of(ladder(kind, skills, rows, seed))).recommendation] += 1
            shares = " | ".join(f"{found[name] / ladders:.2f}" for name in names)
            yield f"| {kind.metric} | {gain:+.2f} | {shares} |"


def facts_of(evaluation: Mapping[str, Any]) -> Facts:
    """What the verdict is made of, read as the report reads it."""
    return Facts(
        evaluation=schema.Evaluation.model_validate(evaluation),
        systems=tuple(schema.System.model_validate(s) for s in evaluation["systems"]),
        differences=tuple(schema.Difference.model_validate(d) for d in evaluation["differences"]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=300)
    parser.add_argument("--rows", type=int, default=150)
    asked = parser.parse_args()
    for table in (coverage, verdicts):
        for line in table(asked.ladders, asked.rows):
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
