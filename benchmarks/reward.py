"""Reward models of real human preferences: how many held-out pairs are ranked right, and what a control reaches.

    python -m benchmarks.reward --data FOLDER [--models A B] [--seeds 0 1] [--pairs 500] [--minutes 10]

FOLDER holds `preference`, with `train.jsonl` and `test.jsonl`. Trained on are the first `--pairs` pairs of at most
`--characters` characters a side; tested are all pairs of the test file. The control is the same training with chosen
and rejected exchanged in each pair by a coin of the seed, also in validation: it must not be told from 0.5 on the test
file, which keeps its labels. Each training is a whole `luthier run` under `--out`, and goes on where it was: with
`--minutes` the command stops after so many, and the same command goes on. Writes its table into docs/methods.md.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks._methods import (
    commit_of,
    finished,
    lines_of,
    measured,
    pairs_of,
    parser_of,
    prepared,
    stopped,
    until_of,
    write_section,
)
from luthier.config import write_toml

METRIC = "reward_accuracy"
LABELS = ("true", "shuffled")


def shuffled(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Which reply is the chosen one is a coin's choice."""
    coin = random.Random(seed)
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    return [{swapped.get(k, k): v for k, v in row.items()} if coin.random() < 0.5 else row for row in rows]


def prepare(asked: argparse.Namespace, model: str, labels: str, seed: int) -> Path:
    """The folder of one training, with rows and recipe."""
    rows = pairs_of(asked.data / "preference/train.jsonl", asked.pairs, asked.characters)
    rows = shuffled(rows, seed) if labels == "shuffled" else rows
    recipe = write_toml(settings(asked, model, seed, len(rows)))
    return prepared(
        asked.out / f"{model}_{labels}_{seed}_{asked.pairs}", {"train.jsonl": lines_of(rows), "recipe.toml": recipe}
    )


def settings(asked: argparse.Namespace, model: str, seed: int, pairs: int) -> dict[str, Any]:
    """The recipe: one pass with Luthier's own defaults, three validations."""
    steps = max(1, round(0.9 * pairs / 8))
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"train": "train.jsonl", "test": str((asked.data / "preference/test.jsonl").resolve())},
        "objective": {"type": "reward"},
        "training": {"epochs": 1, "rows_per_step": 8, "validate_every": max(1, steps // 3), "max_tokens": 2048},
        "evaluation": {"systems": {"zero_shot": {}, "fine_tuned": {}}},
    }


def trainings(asked: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Both labels of a seed one after the other, so that what is there can be compared."""
    return ((model, labels, seed) for model in asked.models for seed in asked.seeds for labels in LABELS)


def told(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def main() -> int:
    parser = parser_of(__doc__, "reward", "preference/train.jsonl and test.jsonl")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct"])
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--characters", type=int, default=600)
    asked = parser.parse_args()
    until = until_of(asked)
    lines = [
        "| model | labels | seed | pairs | head not trained | trained | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, labels, seed in trainings(asked):
        place = prepare(asked, model, labels, seed)
        folder = place / "run"
        if not finished(place / "recipe.toml", folder, until):
            return stopped(folder)
        pairs = json.loads((folder / "data/split.json").read_text(encoding="utf-8"))["train"]
        before, after = (measured(folder, system, METRIC) for system in ("zero_shot", "fine_tuned"))
        lines.append(
            f"| {model} | {labels} | {seed} | {pairs} | {told(before)} | {told(after)} | {commit_of(folder)} |"
        )
        write_section("reward", lines)  # after each, so that what is there can be read
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
