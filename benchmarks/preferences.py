"""Whether learning from pairs ranks held-out pairs better: before and after, on real human preferences.

    python -m benchmarks.preferences --data FOLDER [--methods dpo kto] [--seeds 0 1] [--pairs 1000] [--minutes 10]

FOLDER holds `preference`, with `train.jsonl` and `test.jsonl`. Trained on are its first `--pairs` pairs of at most
`--characters` characters a side; tested are all pairs of the test file: by which reply is likelier (`pair_accuracy`),
and by which of the two training made likelier (chance: 0.5; before training every pair is a tie). The interval is over
test pairs, of the mean over seeds. Each training is a whole `luthier run` under `--out`, and goes on where it was: with
`--minutes` the command stops after so many, and the same command goes on. Writes its table into docs/methods.md.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import (
    commit_of,
    finished,
    lines_of,
    pairs_of,
    parser_of,
    prepared,
    rows_of,
    stopped,
    until_of,
    write_section,
)
from luthier.config import write_toml
from luthier.evaluation.significance import gain_interval, mean_interval

SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
}
HEAD = [
    "| model | method | seeds | tested | base | trained | gain | made likelier | each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def settings(asked: argparse.Namespace, model: str, method: str, seed: int) -> dict[str, Any]:
    """The recipe."""
    steps = round(0.9 * asked.pairs / 16 * asked.epochs)
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"train": "train.jsonl", "test": str((asked.data / "preference/test.jsonl").resolve())},
        "objective": {"type": method, **SETTINGS[method]},
        "optimizer": {"learning_rate": asked.rate},
        "training": {"epochs": asked.epochs, "rows_per_step": 16, "validate_every": max(1, steps // 4)},
        "evaluation": {"systems": {"zero_shot": {}, "fine_tuned": {}}},
    }


def margins(folder: Path, system: str) -> dict[str, float]:
    """How much likelier the chosen reply of each test pair is, in nats, by the pair's id."""
    return {row["id"]: row["margin"] for row in rows_of(folder / f"records/{system}.jsonl")}


@dataclass(frozen=True)
class Ranked:
    """Test pairs of one training: 1 right, 1/2 a tie, 0 wrong."""

    right_3N: np.ndarray
    """By which reply is likelier before, likelier after, and made likelier."""
    commit: str


def ranked(folder: Path) -> Ranked:
    """What a finished run says of its test pairs."""
    base, trained = margins(folder, "zero_shot"), margins(folder, "fine_tuned")
    before, after = (np.array([found[name] for name in base]) for found in (base, trained))
    return Ranked((np.sign(np.stack([before, after, after - before])) + 1) / 2, commit_of(folder))


def line(model: str, method: str, found: list[Ranked]) -> str:
    """A row of the table: means over seeds, intervals over pairs."""
    base, trained, made = np.mean([one.right_3N for one in found], axis=0)
    cells = [mean_interval(base), mean_interval(trained), gain_interval(trained - base), mean_interval(made)]
    told = " | ".join(f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in cells)
    each = ", ".join(f"{one.right_3N[2].mean():.3f}" for one in found)
    return f"| {model} | `{method}` | {len(found)} | {len(base)} | {told} | {each} | {found[0].commit} |"


def main() -> int:
    parser = parser_of(__doc__, "preferences", "preference/train.jsonl and test.jsonl")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct"])
    parser.add_argument("--methods", nargs="+", default=["dpo", "kto"], choices=sorted(SETTINGS))
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--characters", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    asked = parser.parse_args()
    until = until_of(asked)
    rows = lines_of(pairs_of(asked.data / "preference/train.jsonl", asked.pairs, asked.characters))
    found: dict[tuple[str, str], list[Ranked]] = {}
    for model, seed, method in itertools.product(asked.models, asked.seeds, asked.methods):
        recipe = write_toml(settings(asked, model, method, seed))
        place = prepared(asked.out / f"{model}_{method}_{seed}", {"train.jsonl": rows, "recipe.toml": recipe})
        if not finished(place / "recipe.toml", place / "run", until):
            return stopped(place)
        found.setdefault((model, method), []).append(ranked(place / "run"))
        # after each, so that what is there can be read
        write_section("preferences", [*HEAD, *(line(*key, ones) for key, ones in found.items())])
    return 0


if __name__ == "__main__":
    sys.exit(main())
