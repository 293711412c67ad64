"""Many classes: a head, the likelihood of labels, and labels that are written, beside a linear probe.

    python -m benchmarks.classes --data FOLDER [--seeds 0 1] [--epochs 3] [--minutes 60]

FOLDER holds `intents` (77 intents of bank customers), with `train.jsonl` and `test.jsonl`, rows of text and label. Two
trainings of the default model for each seed, with the same rows, steps and adapter: one with a head (`classify`), one
that learns to write the label (`sft`), which is asked both ways: what it writes, and which label is likeliest. The
linear probe over MiniLM needs no training of a model. All are calibrated on the same validation rows, and each has the
threshold that these showed for a precision of 95 %, which the test rows must hold. Calibration errors are over 15 bins.
Intervals are over test rows, of the mean over seeds. Each training is a whole `luthier run` under `--out`, and goes on
where it was: with `--minutes` the command stops after so many, and the same command goes on. Writes its tables into
docs/methods.md.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import asked_of, commit_of, finished, prepared, stopped, write_section
from luthier.config import write_toml
from luthier.evaluation.calibration import calibration_error
from luthier.evaluation.metrics.macro_f1 import MacroF1
from luthier.evaluation.significance import Interval, bootstrap_interval, clopper_pearson, mean_interval

INSTRUCTION = "Classify the banking customer message. Answer with the intent label only."
BINS = 15
PRECISION = 0.95
WAYS = {
    "linear probe over MiniLM": ("classify", "linear_probe"),
    "head": ("classify", "fine_tuned"),
    "label likelihood": ("sft", "fine_tuned_likelihood"),
    "written label": ("sft", "fine_tuned"),
}
"""What is compared: the training and the system of each."""
SYSTEMS: dict[str, dict[str, dict[str, Any]]] = {
    "classify": {"linear_probe": {}, "fine_tuned": {}},
    "sft": {"fine_tuned_likelihood": {}, "fine_tuned": {}},
}
HEAD = [
    "| way | seeds | tested | accuracy | macro F1 | calibration error | seconds for all rows | each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|",
]
ABSTAINING = [
    "| way | seed | threshold | validation rows that are so sure | test rows answered | right of these | holds |",
    "|---|---|---|---|---|---|---|",
]


def settings(asked: argparse.Namespace, objective: str, seed: int) -> dict[str, Any]:
    """The recipe."""
    folder = (asked.data / "intents").resolve()
    return {
        "seed": seed,
        "model": {"name": asked.model},
        "data": {
            "train": str(folder / "train.jsonl"),
            "test": str(folder / "test.jsonl"),
            "instruction": INSTRUCTION,
            "validation_share": 0.15,
        },
        "objective": {"type": objective},
        "optimizer": {"learning_rate": asked.rate},
        "training": {"epochs": asked.epochs, "rows_per_step": 16, "max_tokens": 256},
        "evaluation": {
            "precision": PRECISION,
            "metrics": ["accuracy", "macro_f1", "calibration_error"],
            "systems": SYSTEMS[objective],
            "forgetting": {"multiple_choice": "none", "text": "none"},
        },
    }


@dataclass(frozen=True)
class Answered:
    """What one system said of the test rows."""

    right_N: np.ndarray
    sure_N: np.ndarray | None
    """None where it does not tell how sure it is."""
    f1_NS: np.ndarray
    """What macro F1 is computed from."""
    seconds: float
    abstention: dict[str, Any] | None
    commit: str


def answered(folder: Path, system: str) -> Answered:
    """What a finished run says of its test rows."""
    state = json.loads((folder / f"records/{system}.state.json").read_text(encoding="utf-8"))
    found = {name: np.array(values) for name, values in state["statistics"].items()}
    sure = found.get("calibration_error")
    told = json.loads((folder / "abstention.json").read_text(encoding="utf-8"))["systems"]
    return Answered(
        found["accuracy"][:, 0],
        None if sure is None else sure[:, 0],
        found["macro_f1"],
        state["seconds"],
        next((one for one in told if one["system"] == system), None),
        commit_of(folder),
    )


def macro_f1(found: Sequence[Answered]) -> Interval:
    """Of the mean over seeds."""
    metric = MacroF1()

    def mean(statistics_NS: np.ndarray, counts_BN: np.ndarray) -> np.ndarray:
        parts = np.split(statistics_NS, len(found), axis=1)
        return np.asarray(np.mean([metric.values(part, counts_BN) for part in parts], axis=0))

    return bootstrap_interval(mean, np.concatenate([one.f1_NS for one in found], axis=1))


def off(found: Sequence[Answered]) -> Interval | None:
    """Calibration error of the mean over seeds; None where it is not told."""
    columns = [column for one in found if one.sure_N is not None for column in (one.sure_N, one.right_N)]
    if not columns:
        return None

    def mean(statistics_NS: np.ndarray, counts_BN: np.ndarray) -> np.ndarray:
        pairs = np.split(statistics_NS, len(columns) // 2, axis=1)
        return np.asarray(
            np.mean([calibration_error(sure, right, BINS, counts_BN) for sure, right in (p.T for p in pairs)], axis=0)
        )

    return bootstrap_interval(mean, np.stack(columns, axis=1))


def line(way: str, found: list[Answered]) -> str:
    """A row of the table."""
    right = mean_interval(np.mean([one.right_N for one in found], axis=0))
    cells = " | ".join("not told" if one is None else _interval(one) for one in (right, macro_f1(found), off(found)))
    seconds = np.mean([one.seconds for one in found])
    each = ", ".join(f"{one.right_N.mean():.3f}" for one in found)
    n = len(found[0].right_N)
    return f"| {way} | {len(found)} | {n} | {cells} | {seconds:.1f} | {each} | {found[0].commit} |"


def abstaining(way: str, seed: int, one: Answered) -> str:
    """What is answered at the precision; the interval is exact."""
    told = one.abstention
    if told is None or one.sure_N is None:
        return f"| {way} | {seed} | does not tell how sure it is | | | | |"
    found = told["threshold"]
    if found is None:
        return f"| {way} | {seed} | its validation rows show none | | | | |"
    given = one.sure_N >= found["confidence"]
    right, total = int(one.right_N[given].sum()), int(given.sum())
    low, high = clopper_pearson(right, total) if total else (0.0, 1.0)
    sure = f"{found['answered']} of {found['rows']}, {found['right']} right"
    share = f"{right / max(total, 1):.3f} [{low:.3f}, {high:.3f}]"
    holds = "yes" if high >= PRECISION else "no"
    return f"| {way} | {seed} | {found['confidence']:.3f} | {sure} | {given.mean():.1%} | {share} | {holds} |"


def _interval(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def main() -> int:
    data = "intents/train.jsonl and test.jsonl"
    asked, until = asked_of(__doc__, "classes", data, "smollm2-135m-instruct", 3.0, rate=5e-4)
    found: dict[str, dict[int, Answered]] = {way: {} for way in WAYS}
    for seed, objective in itertools.product(asked.seeds, SYSTEMS):
        recipe = write_toml(settings(asked, objective, seed))
        place = prepared(asked.out / f"{asked.model}_{objective}_{seed}", {"recipe.toml": recipe})
        if not finished(place / "recipe.toml", place / "run", until):
            return stopped(place)
        for way, (of, system) in WAYS.items():
            if of == objective:
                found[way][seed] = answered(place / "run", system)
        there = {way: ones for way, ones in found.items() if ones}  # after each, so that what is there can be read
        table = [line(way, list(ones.values())) for way, ones in there.items()]
        answers = [abstaining(way, seed, one) for way, ones in there.items() for seed, one in ones.items()]
        write_section("classes", [*HEAD, *table, "", *ABSTAINING, *answers])
    return 0


if __name__ == "__main__":
    sys.exit(main())
