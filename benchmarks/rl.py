"""What rewards add to a short supervised training: JSON validity and exact fields, before and after, on held-out rows.

    python -m benchmarks.rl --out runs/rl [--methods grpo ppo] [--seeds 3] [--minutes 10] [--data ../shared/data]

For each seed a model learns a few steps from replies (the start), and then from rewards on its own replies to other
prompts: half for JSON that satisfies the schema, half for the share of right fields. Both answer the same test rows
greedily. Everything is kept in `--out`: a call works for `--minutes` and the next one goes on; the table tells of what
is there. Rows lie in `json_extraction` below `--data`, as train.jsonl, test.jsonl and schema.json.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config import write_toml
from luthier.evaluation.graders.base import Host, Sample, build_grader
from luthier.evaluation.significance import mean_interval

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
START_ROWS, PROMPTS, TEST_ROWS = 96, 400, 100
"""Rows that the start learns from, prompts that are asked after it, and rows that both are measured on."""
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"scale_rewards": "group"},
    "rloo": {"beta": 0.0},
    "reinforce_plus_plus": {"beta": 0.001},
    "ppo": {"beta": 0.001, "value_weight": 0.5},
}
MEASURES = ("valid", "fields", "exact")


def graders(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is measured, and in parts rewarded."""
    return {
        "valid": {"type": "json_schema", "name": "valid", "json_schema": schema},
        "fields": {"type": "fields", "name": "fields"},
        "exact": {"type": "fields", "name": "exact", "measure": "exact"},
    }


def recipe(model: str, train: Path, validation: Path, seed: int) -> dict[str, Any]:
    """What both trainings have in common."""
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"train": str(train), "validation": str(validation), "test_share": 0.0},
        "adapter": {"type": "lora", "rank": 16},
    }


def start_recipe(options: argparse.Namespace, rows: dict[str, Path], seed: int) -> dict[str, Any]:
    """A few steps on replies."""
    steps = options.start_steps
    training = {"steps": steps, "rows_per_step": 8, "patience": False, "validate_every": steps}
    common = recipe(options.model, rows["start"], rows["validation"], seed)
    return {**common, "optimizer": {"learning_rate": 1e-3}, "training": training}


def reward_recipe(
    options: argparse.Namespace, rows: dict[str, Path], seed: int, method: str, start: Path, schema: dict[str, Any]
) -> dict[str, Any]:
    """Rewards on the model's own replies."""
    known = graders(schema)
    common = recipe(options.model, rows["prompts"], rows["validation"], seed)
    return {
        **common,
        "adapter": {**common["adapter"], "start_from": str(start)},
        "objective": {"type": method, **SETTINGS[method]},
        "optimizer": {"learning_rate": options.rate},
        "training": {
            "steps": options.steps,
            "rows_per_step": 4,
            "patience": False,
            "validate_every": max(1, options.steps // 2),
            "save_every": 2,
        },
        "rollout": {
            "group_size": 8,
            "max_new_tokens": 80,
            "validation_prompts": 16,
            "rewards": {name: {"weight": 0.5, "grader": known[name]} for name in ("valid", "fields")},
        },
    }


def split_rows(data: Path, out: Path) -> dict[str, Path]:
    """The files that recipes name; no row is in two."""
    train = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    parts = {
        "start": train[:START_ROWS],
        "prompts": train[START_ROWS : START_ROWS + PROMPTS],
        "validation": train[START_ROWS + PROMPTS : START_ROWS + PROMPTS + 24],
        "test": (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:TEST_ROWS],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: (out / f"{name}.jsonl").resolve() for name in parts}


def train(values: dict[str, Any], folder: Path, until: float) -> bool:
    """`luthier train`, stopped when the time is over; whether it came to its end."""
    ended = folder / "training.json"
    if ended.is_file() and json.loads(ended.read_text(encoding="utf-8"))["stopped"] != "interrupted":
        return True
    file = folder.with_suffix(".toml")
    file.write_text(write_toml(values), encoding="utf-8")
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(file), "--out", str(folder)]
    with subprocess.Popen(command) as child:
        try:
            return child.wait(timeout=max(until - time.monotonic(), 1)) == 0
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait()
            return False


def answers(folder: Path, test: Path, schema: dict[str, Any]) -> dict[str, list[float]]:
    """What each grader gives to each test row's answer; kept beside the run."""
    kept = folder / "answers.json"
    if kept.is_file():
        found: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    from luthier.assemble import open_trained
    from luthier.data.formats.base import read_examples
    from luthier.examples import Conversation
    from luthier.models.generate import generate
    from luthier.online import asked, item_of

    trained = open_trained(folder)
    rows = [row for row in read_examples(test) if isinstance(row, Conversation)]
    prompts = [trained.template.prompt_ids(asked(row)) for row in rows]
    written = generate(trained.loaded, prompts, max_new_tokens=128, stop_ids=trained.template.stop_ids, stop_loops=True)
    texts = [trained.template.parse_reply(generation.ids).content for generation in written]
    known = {name: build_grader(values) for name, values in graders(schema).items()}
    found = {
        name: [
            grader.grade(Sample.of(text), item_of(row), Host()).reward for text, row in zip(texts, rows, strict=True)
        ]
        for name, grader in known.items()
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def table(results: dict[str, list[tuple[dict[str, list[float]], dict[str, list[float]]]]]) -> str:
    """A row for each method and measure: before, after, and the gain with its interval over rows and seeds."""
    lines = ["| method | seeds | measure | start | after | gain |", "|---|---|---|---|---|---|"]
    for method, pairs in results.items():
        for measure in MEASURES:
            before, after = (np.array([pair[i][measure] for pair in pairs]) for i in (0, 1))
            # a test row's gains under several seeds are no independent witnesses: rows are drawn, not answers
            gain = mean_interval((after - before).mean(0))
            told = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            lines.append(
                f"| `{method}` | {len(pairs)} | {measure} | {before.mean():.3f} | {after.mean():.3f} | {told} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Work for the minutes that were given, then print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", nargs="+", default=["grpo", "ppo"], choices=sorted(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start-steps", type=int, default=12)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    data = options.data / "json_extraction"
    schema = json.loads((data / "schema.json").read_text(encoding="utf-8"))
    rows = split_rows(data, options.out)
    results: dict[str, list[tuple[dict[str, list[float]], dict[str, list[float]]]]] = {}
    for seed in range(options.seeds):
        start = (options.out / f"start-{seed}").resolve()
        if not train(start_recipe(options, rows, seed), start, until):
            break
        for method in options.methods:
            folder = (options.out / f"{method}-{seed}").resolve()
            if not train(reward_recipe(options, rows, seed, method, start, schema), folder, until):
                break
            pair = (answers(start, rows["test"], schema), answers(folder, rows["test"], schema))
            results.setdefault(method, []).append(pair)
    print(table(results) if results else "nothing is finished yet; give the same command again")


if __name__ == "__main__":
    main()
