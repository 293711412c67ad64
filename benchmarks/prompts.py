"""What a search for prompts reaches beside the built-in ones, without any training: same rows, paired differences.

The default model on the first rows of a data set; validation rows are taken from the training file. One line a system:
its primary metric on the test rows, the score that it had on validation rows, how many answers and instructions the
search asked for, and the seconds of the whole.

    python -m benchmarks.prompts TRAIN TEST [--schema FILE] [--rows 60] [--tune 60] [--systems NAMES] [--out DIR]
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from luthier.config import build
from luthier.data.formats.base import read_examples
from luthier.data.templates import build_template
from luthier.evaluation.harness import Options, evaluate
from luthier.evaluation.systems.base import Context, System
from luthier.evaluation.systems.few_shot import FewShot
from luthier.evaluation.systems.local_model import LocalModel
from luthier.evaluation.systems.optimized_prompt import OptimizedPrompt
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.evaluation.task import build_metrics, choose_metrics, detect_task, room_for_answers
from luthier.examples import Conversation
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.models.memory import tokens_in_flight
from luthier.recipe import ModelSettings

LARGER = "qwen2.5-coder-0.5b-instruct"


def systems(tune: int) -> dict[str, System]:
    values: dict[str, tuple[type[System], dict[str, Any]]] = {
        "zero_shot": (ZeroShot, {}),
        "few_shot": (FewShot, {}),
        "few_shot_tuned": (FewShot, {"tune_rows": tune}),
        "data_only": (OptimizedPrompt, {"tune_rows": tune, "candidates": 0}),
        "instruction_only": (OptimizedPrompt, {"tune_rows": tune, "shots": 0}),
        "optimized": (OptimizedPrompt, {"tune_rows": tune}),
        "optimized_by_larger": (OptimizedPrompt, {"tune_rows": tune, "proposer": LARGER}),
        "larger": (LocalModel, {"model": LARGER}),
        "larger_few_shot": (LocalModel, {"model": LARGER, "shots": 3}),
    }
    return {name: build(cls, settings) for name, (cls, settings) in values.items()}


def context_of(train: list[Conversation], validation: list[Conversation], schema: Path | None) -> Context:
    loaded = load(resolve(ModelSettings().name))
    template = build_template(loaded)
    room, looping = room_for_answers(template, train)
    task = detect_task(train)
    metric = choose_metrics(task, schema is not None)[0]
    return Context(
        loaded=loaded,
        template=template,
        adapter_disabled=nullcontext,
        train=train,
        validation=validation,
        max_new_tokens=room,
        stop_loops=not looping,
        task=task,
        primary_metric=build_metrics([metric])[metric],
        base_fingerprint=loaded.files.fingerprint,
        json_schema=json.loads(schema.read_text()) if schema else None,
        batch_tokens=tokens_in_flight(loaded.model),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--schema", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tune", type=int, default=60)
    parser.add_argument("--systems", default=",".join(systems(60)))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows, test = (
        [row for row in read_examples(path) if isinstance(row, Conversation)] for path in (given.train, given.test)
    )
    context = context_of(rows[given.tune :], rows[: given.tune], given.schema)
    chosen = {name: systems(given.tune)[name] for name in given.systems.split(",")}
    out = given.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    options = Options(out, choose_metrics(context.task)[0])
    metrics = build_metrics([options.primary])
    print(f"{context.task}: {options.primary} on {given.rows} test rows, {given.tune} validation rows\n")
    print(
        "| system | test | to the first | on validation | answers, instructions | seconds |\n|---|---|---|---|---|---|"
    )
    names = list(chosen)
    for count, name in enumerate(names, 1):  # what is finished is read again, so each line appears when it is there
        started = time.perf_counter()
        found = evaluate({n: chosen[n] for n in names[:count]}, test[: given.rows], context, metrics, options)
        seconds = time.perf_counter() - started
        details, interval = found.measured[name].details, found.intervals[name][options.primary]
        tried = details["tried"]
        best = max((t["validation_score"] for t in tried), default=None)
        calls = details.get("calls", {"answers": sum(t["rows"] for t in tried), "instructions": 0})
        c = found.differences[name, names[0], options.primary] if count > 1 else None
        change = f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" if c else ""
        print(
            f"| {name} | {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] | {change} | {best:.3f} | "
            f"{calls['answers']}, {calls['instructions']} | {seconds:.0f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
