"""Tool calls before and after fine-tuning, and how many of them are valid with and without a grammar that holds them.

    python -m benchmarks.toolcalls --data FOLDER [--models smollm2-135m-instruct] [--seeds 0 1] [--minutes 60]

FOLDER holds `toolcalls`, with `train.jsonl` and `test.jsonl` (rows of the Berkeley Function Calling Leaderboard, with
`acceptable`). Each model is asked alone, with similar training rows before the question, and fine-tuned. Every metric
of calls has its interval over test rows, of the mean over seeds. Then the base and the first seed's model are served,
and `--asked` test rows that want a call are asked at each temperature: freely, and with `tool_choice` "required". A
reply is valid if it calls a tool, and each of its calls names a tool on offer with arguments that fit its schema.

Each training is a whole `luthier run` under `--out`; the answers of the served models are kept there, too. With
`--minutes` the command stops after so many, and the same command goes on. Writes its tables into docs/methods.md.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import (
    commit_of,
    finished,
    parser_of,
    prepared,
    statistics_of,
    stopped,
    until_of,
    write_section,
)
from luthier.config import write_toml
from luthier.data.formats.base import read_examples
from luthier.data.tool_schemas import calls_that_fit
from luthier.evaluation.metrics.base import Metric
from luthier.evaluation.significance import Interval, mean_interval, metric_interval
from luthier.evaluation.systems._wire import wire_messages
from luthier.evaluation.task import build_metrics, choose_metrics
from luthier.examples import Conversation
from luthier.serve.backend import Backend
from luthier.serve.chat import ChatRequest, parse_chat
from luthier.serve.constraint import GRAMMARS
from luthier.serve.limits import Limits
from luthier.serve.models import BASE, ServedModel
from luthier.serve.replies import reply_of
from luthier.serve.work import Sampling, Work
from luthier.serving import Runs

MODELS: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m-instruct": {"template": "chatml_tools", "rate": 5e-4},
    "qwen2.5-coder-0.5b-instruct": {"template": "model", "rate": 2e-4},
}
SYSTEMS = ("zero_shot", "few_shot", "fine_tuned")
METRICS = choose_metrics("tool_calls")
TRAINED = "tuned"
CHOICES = {"free": "auto", "required": "required"}
ANSWER_TOKENS = 256
"""Most of a reply; an untrained model that hangs in a loop would otherwise take most of the time."""


def settings(asked: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """The recipe."""
    folder = (asked.data / "toolcalls").resolve()
    rows = [] if asked.tested is None else [("max_rows", asked.tested)]
    return {
        "seed": seed,
        "model": {"name": model, "template": MODELS[model]["template"]},
        "data": {"train": "train.jsonl", "test": str(folder / "test.jsonl"), "validation_share": 0.1},
        "optimizer": {"learning_rate": MODELS[model]["rate"]},
        "training": {"epochs": asked.epochs, "rows_per_step": 8, "max_tokens": 1280},
        "evaluation": {
            "task": "tool_calls",
            "max_new_tokens": ANSWER_TOKENS,
            **dict(rows),
            "systems": {"zero_shot": {}, "few_shot": {"shots": asked.shots}, "fine_tuned": {}},
        },
    }


def interval(metric: Metric, statistics_NS: np.ndarray) -> Interval:
    """Over rows; of means over seeds where the statistics are."""
    return mean_interval(statistics_NS[:, 0]) if metric.binary else metric_interval(metric, statistics_NS)


def quality(model: str, folders: Sequence[Path]) -> list[str]:
    """Rows of the first table: a line for each system."""
    metrics, lines = build_metrics(METRICS), []
    for system in SYSTEMS:
        of_seeds = [statistics_of(folder, system) for folder in folders]
        cells = [told(interval(metrics[m], np.mean([found[m] for found in of_seeds], axis=0))) for m in METRICS]
        rows = len(of_seeds[0][METRICS[0]])
        lines.append(
            f"| {model} | {system} | {len(folders)} | {rows} | {' | '.join(cells)} | {commit_of(folders[0])} |"
        )
    return lines


def told(found: Interval) -> str:
    return "-" if np.isnan(found.value) else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


# calls of a served model


def judged(served: ServedModel, row: Conversation, completion: Any) -> dict[str, Any]:
    """How a reply ended, and whether its calls could be made."""
    reply, reason = reply_of(completion, served, True)
    good = calls_that_fit(reply.tool_calls, row.tools)
    calls = served.template.calls
    opened = calls is not None and bool(calls.form.opening) and calls.form.opening in reply.content
    return {
        "ended": reason != "length",
        "called": bool(good) or opened,
        "valid": bool(good) and all(good) and not opened,
    }


def request_of(row: Conversation, choice: str) -> ChatRequest:
    body = {"model": "m", "messages": wire_messages(row.prompt), "tools": list(row.tools), "tool_choice": choice}
    return parse_chat(json.dumps(body).encode())


async def answers(
    backend: Backend, served: ServedModel, rows: Sequence[Conversation], choice: str, temperature: float
) -> list[dict[str, Any]]:
    """One reply to each row, all asked at once."""

    async def one(number: int, row: Conversation) -> dict[str, Any]:
        asked = request_of(row, choice)
        ids = await backend.prompt_ids(served.name, asked.messages, asked.tools)
        held = await asyncio.to_thread(GRAMMARS.held, served, asked)
        sampling = Sampling(temperature=temperature, seed=number)
        work = Work(served.name, tuple(ids), ANSWER_TOKENS, sampling, held=held, deadline_seconds=86400)
        (completion,) = await backend.complete(work)
        return judged(served, row, completion)

    return list(await asyncio.gather(*(one(number, row) for number, row in enumerate(rows))))


def served_calls(asked: argparse.Namespace, model: str, run: Path, until: float | None) -> list[str] | None:
    """Rows of the second table; None if the time is over before all are there."""
    rows = [row for row in read_examples(asked.data / "toolcalls/test.jsonl") if isinstance(row, Conversation)]
    wanted = [row for row in rows if row.completion is not None and row.completion.tool_calls][: asked.asked]
    kept = run.parent / "served"
    kept.mkdir(exist_ok=True)
    opened: list[ServedModel] = []
    lines = []
    for name, temperature, mode in itertools.product((BASE, TRAINED), asked.temperatures, CHOICES):
        path = kept / f"{name}_{temperature}_{mode}_{len(wanted)}.json"
        if not path.is_file():
            if until is not None and time.monotonic() > until:
                return None
            opened = opened or Runs({TRAINED: run}).models()
            served = next(one for one in opened if one.name == name)
            path.write_text(
                json.dumps(asyncio.run(asking(served, wanted, CHOICES[mode], temperature))), encoding="utf-8"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
        shares = [np.array([one[key] for one in found], dtype=float) for key in ("ended", "called", "valid")]
        whole = shares[2][shares[0] > 0]
        cells = [*(told(mean_interval(share)) for share in shares), told(mean_interval(whole)) if len(whole) else "-"]
        lines.append(f"| {model} | {name} | {temperature} | {mode} | {len(found)} | {' | '.join(cells)} |")
    return lines


async def asking(
    served: ServedModel, rows: Sequence[Conversation], choice: str, temperature: float
) -> list[dict[str, Any]]:
    """The rows asked of a backend of their own."""
    backend = Backend([served], Limits(), queue=len(rows))
    backend.start()
    try:
        return await answers(backend, served, rows, choice, temperature)
    finally:
        backend.stop()


def page(found: Mapping[str, Sequence[str]], served: Mapping[str, Sequence[str]]) -> list[str]:
    """Both tables."""
    return [
        f"| model | system | seeds | tested | {' | '.join(METRICS)} | commit |",
        "|---|---|---|---|" + "---|" * len(METRICS) + "---|",
        *itertools.chain(*found.values()),
        "",
        "| model | weights | temperature | calls | asked | ended | with a call | valid | valid of those that ended |",
        "|---|---|---|---|---|---|---|---|---|",
        *itertools.chain(*served.values()),
    ]


def main() -> int:
    parser = parser_of(__doc__, "toolcalls", "toolcalls/train.jsonl and test.jsonl")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=sorted(MODELS))
    parser.add_argument("--rows", type=int, help="train on the first so many; absent: on all")
    parser.add_argument("--tested", type=int, help="test on so many; absent: on all")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--asked", type=int, default=50, help="rows that the served models are asked")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 1.5])
    asked = parser.parse_args()
    until = until_of(asked)
    lines = (asked.data / "toolcalls/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = "".join(lines[: asked.rows])
    found: dict[str, list[str]] = {}
    served: dict[str, list[str]] = {}
    for model in asked.models:
        runs: list[Path] = []
        for seed in asked.seeds:
            recipe = write_toml(settings(asked, model, seed))
            place = prepared(asked.out / f"{model}_{seed}", {"train.jsonl": rows, "recipe.toml": recipe})
            if not finished(place / "recipe.toml", place / "run", until):
                return stopped(place)
            runs.append(place / "run")
            found[model] = quality(model, runs)
            write_section("toolcalls", page(found, served))  # after each, so that what is there can be read
        calls = served_calls(asked, model, runs[0], until)
        if calls is None:
            return stopped(runs[0].parent)
        served[model] = calls
        write_section("toolcalls", page(found, served))
    return 0


if __name__ == "__main__":
    sys.exit(main())
