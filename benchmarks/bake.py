"""Whether a model keeps what a long prompt gives once it does without it: prompt baking, on held-out rows.

    python -m benchmarks.bake --data FOLDER [--examples 8] [--questions 900] [--seeds 0 1] [--minutes 10]

FOLDER holds `json_extraction`, with train.jsonl and test.jsonl. The long prompt is the instruction of its rows and the
first `--examples` of its training rows, solved; the rows themselves are asked without an instruction. The base with the
prompt writes the replies to the other training questions (their own are never read), and the same base without it
learns what it would say. Tested are all test rows, answered greedily: intervals are over test rows, of the mean over
seeds; of the kept share, of the ratio of both. Each training is a whole `luthier run` under `--out` and goes on
where it was: with `--minutes` the command stops after so many. Writes its table into docs/methods.md.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import (
    commit_of,
    finished,
    lines_of,
    parser_of,
    prepared,
    rows_of,
    statistics_of,
    stopped,
    until_of,
    write_section,
)
from luthier.config import write_toml
from luthier.evaluation.significance import bootstrap_interval, compare, metric_interval
from luthier.evaluation.task import build_metrics

METRIC = "field_f1"
SYSTEMS = ("zero_shot", "prompted", "fine_tuned")
HEAD = [
    "| model | seeds | tested | tokens read with the prompt | without | base without | base with the prompt | baked | "
    "difference | kept | each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
]


def bare(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without its instruction."""
    return {**row, "messages": [message for message in row["messages"] if message["role"] != "system"]}


def asking(row: Mapping[str, Any]) -> dict[str, Any]:
    """What it asks alone: nobody could learn its reply."""
    return {"id": row["id"], "messages": bare(row)["messages"][:1]}


def files(asked: argparse.Namespace, model: str, seed: int) -> dict[str, str]:
    """The folder of a training."""
    train, test = (rows_of(asked.data / f"json_extraction/{name}.jsonl") for name in ("train", "test"))
    examples, questions = train[: asked.examples], train[asked.examples :][: asked.questions]
    return {
        "prompt.txt": examples[0]["messages"][0]["content"],
        "examples.jsonl": lines_of([bare(row) for row in examples]),
        "questions.jsonl": lines_of([asking(row) for row in questions]),
        "test.jsonl": lines_of([bare(row) for row in test[: asked.tested]]),
        "recipe.toml": write_toml(settings(asked, model, seed)),
    }


def settings(asked: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """The recipe."""
    steps = round(0.93 * asked.questions / 8 * asked.epochs)
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"train": "questions.jsonl", "test": "test.jsonl", "validation_share": 0.07},
        "teacher": {
            "prompt": "prompt.txt",
            "examples": "examples.jsonl",
            "replies": "teacher",
            "max_new_tokens": asked.new_tokens,
        },
        "objective": {"type": "distill", "divergence": "forward_kl"},
        "adapter": {"type": "lora", "rank": 16},
        "optimizer": {"learning_rate": asked.rate},
        "training": {
            "epochs": asked.epochs,
            "rows_per_step": 8,
            "patience": False,
            "validate_every": max(1, steps // 6),
        },
        "evaluation": {
            "task": "json",
            "primary_metric": METRIC,
            "max_new_tokens": asked.new_tokens,
            "systems": {
                "zero_shot": {"tune_rows": 0, "answer_room": 1.0},
                "prompted": {"answer_room": 1.0},
                "fine_tuned": {},
            },
            "forgetting": {"multiple_choice": "none", "text": "none"},
        },
    }


@dataclass(frozen=True)
class Baked:
    """One training."""

    statistics_3NS: np.ndarray
    """What the metric knows of the test rows, by SYSTEMS."""
    read: tuple[float, float]
    """Tokens that the base reads with the prompt, and the trained model without it."""
    commit: str


def baked(folder: Path) -> Baked:
    """What a finished run says."""
    found = [statistics_of(folder, system)[METRIC] for system in SYSTEMS]
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))["baking"]
    return Baked(np.array(found), (told["prompt_tokens"], told["tokens_without"]), commit_of(folder))


def line(model: str, found: list[Baked]) -> str:
    """A row of the table."""
    metric = build_metrics([METRIC])[METRIC]
    systems_3NS = np.mean([one.statistics_3NS for one in found], axis=0)
    _, prompted_NS, baked_NS = systems_3NS
    cells = [metric_interval(metric, statistics_NS) for statistics_NS in systems_3NS]
    change = compare(metric, baked_NS, prompted_NS)

    def ratio(both_NT: np.ndarray, counts_BN: np.ndarray) -> np.ndarray:
        kept: np.ndarray = np.divide(*(metric.values(part_NS, counts_BN) for part_NS in np.split(both_NT, 2, axis=1)))
        return kept

    kept = bootstrap_interval(ratio, np.concatenate([baked_NS, prompted_NS], axis=1))
    told = " | ".join(f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in cells)
    one_N = np.ones((1, len(baked_NS)))
    each = ", ".join(f"{metric.values(one.statistics_3NS[2], one_N)[0]:.3f}" for one in found)
    read = f"{found[0].read[0]:,.0f} | {found[0].read[1]:,.0f}"
    return (
        f"| {model} | {len(found)} | {len(baked_NS)} | {read} | {told} | "
        f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}] | "
        f"{kept.value:.1%} [{kept.low:.1%}, {kept.high:.1%}] | {each} | {found[0].commit} |"
    )


def main() -> int:
    parser = parser_of(__doc__, "bake", "json_extraction/train.jsonl, test.jsonl")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct"])
    parser.add_argument("--examples", type=int, default=8, help="solved rows in the prompt")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--new-tokens", type=int, default=96, help="of a reply")
    asked = parser.parse_args()
    until = until_of(asked)
    found: dict[str, list[Baked]] = {}
    for model, seed in itertools.product(asked.models, asked.seeds):
        place = prepared(asked.out / f"{Path(model).name}_{seed}", files(asked, model, seed))
        if not finished(place / "recipe.toml", place / "run", until):
            return stopped(place)
        found.setdefault(model, []).append(baked(place / "run"))
        write_section("bake", [*HEAD, *(line(*item) for item in found.items())])  # after each, so that it can be read
    return 0


if __name__ == "__main__":
    sys.exit(main())
