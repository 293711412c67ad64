"""What rewards add to a short supervised training: right answers before and after, on held-out rows.

    python -m benchmarks.rl --data FOLDER [--tasks arithmetic addresses] [--methods grpo ppo] [--seeds 3] [--minutes 10]

For each seed a model learns a few steps from replies (the start), and then from rewards on its own replies to other
prompts. Both answer the same test rows greedily. Everything is kept under `--out`: with `--minutes` the command stops
after so many, and the same command goes on. Writes what is there into docs/methods.md. FOLDER holds `json_extraction`,
as train.jsonl, test.jsonl and schema.json; without it only `arithmetic` can be measured.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import commit_of, lines_of, parser_of, prepared, stopped, to_its_end, until_of, write_section
from benchmarks._rl_tasks import TASKS, Task
from luthier.config import write_toml
from luthier.evaluation.graders.base import Host, Sample, build_grader
from luthier.evaluation.significance import gain_interval

SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"scale_rewards": "group"},
    "rloo": {"beta": 0.0},
    "reinforce_plus_plus": {"beta": 0.001},
    "ppo": {"beta": 0.001, "value_weight": 0.5},
}


def recipe(options: argparse.Namespace, folder: Path, rows: str, seed: int) -> dict[str, Any]:
    """What both trainings have in common."""
    return {
        "seed": seed,
        "model": {"name": options.model},
        "data": {
            "train": str(folder / f"{rows}.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "test_share": 0.0,
        },
        "adapter": {"type": "lora", "rank": 16},
    }


def start_recipe(options: argparse.Namespace, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """A few steps on replies."""
    steps = task.start_steps
    training = {"steps": steps, "rows_per_step": 8, "patience": False, "validate_every": steps}
    return {
        **recipe(options, folder, "start", seed),
        "optimizer": {"learning_rate": 1e-3},
        "training": training,
    }


def reward_recipe(
    options: argparse.Namespace, task: Task, folder: Path, seed: int, method: str, start: Path
) -> dict[str, Any]:
    """Rewards on the model's own replies."""
    common = recipe(options, folder, "prompts", seed)
    return {
        **common,
        "adapter": {**common["adapter"], "start_from": str(start)},
        "objective": {"type": method, **SETTINGS[method]},
        "optimizer": {"learning_rate": task.rate},
        "training": {
            "steps": task.steps,
            "rows_per_step": task.prompts_per_step,
            "patience": False,
            "validate_every": max(1, task.steps // 3),
            "save_every": max(2, task.steps // 6),
        },
        "rollout": {
            "group_size": 8,
            "max_new_tokens": task.new_tokens,
            "validation_prompts": 32,
            "rewards": {
                name: {"weight": weight, "grader": task.graders[name]} for name, weight in task.rewards.items()
            },
        },
    }


def train(values: dict[str, Any], folder: Path, until: float | None) -> bool:
    """`luthier train`, stopped when the time is over; whether it came to its end."""
    recipe = f"{folder.name}.toml"
    prepared(folder.parent, {recipe: write_toml(values)})
    ended = folder / "training.json"
    if ended.is_file() and json.loads(ended.read_text(encoding="utf-8"))["stopped"] != "interrupted":
        return True
    return to_its_end(["train", str(folder.parent / recipe), "--out", str(folder)], until)


def answers(folder: Path, test: Path, task: Task) -> dict[str, list[float]]:
    """What each grader gives to each test row's answer; kept beside the run."""
    kept = folder / "answers.json"
    if kept.is_file():
        found: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    from luthier.assemble import open_trained
    from luthier.data.asked import asked, item_of
    from luthier.data.formats.base import read_examples
    from luthier.examples import Conversation
    from luthier.models.generate import generate

    trained = open_trained(folder)
    rows = [row for row in read_examples(test) if isinstance(row, Conversation)]
    prompts = [trained.template.prompt_ids(asked(row)) for row in rows]
    written = generate(trained.loaded, prompts, max_new_tokens=128, stop_ids=trained.template.stop_ids, stop_loops=True)
    texts = [trained.template.parse_reply(generation.ids).content for generation in written]
    known = {name: build_grader({**values, "name": name}) for name, values in task.graders.items()}
    found = {
        name: [
            grader.grade(Sample.of(text), item_of(row), Host()).reward for text, row in zip(texts, rows, strict=True)
        ]
        for name, grader in known.items()
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


@dataclass(frozen=True)
class Trained:
    """What both models of a seed answered; rewards of the test rows, by measure."""

    start: Mapping[str, list[float]]
    after: Mapping[str, list[float]]
    commit: str


def table(task: str, method: str, trained: Sequence[Trained]) -> list[str]:
    """A row for each measure: before, after, and the gain with its interval over rows."""
    lines = []
    for measure in trained[0].start:
        before = np.array([one.start[measure] for one in trained])
        after = np.array([one.after[measure] for one in trained])
        # a test row's gains under several seeds are no independent witnesses: rows are drawn, not answers
        gain = gain_interval((after - before).mean(0))
        each = ", ".join(f"{value:+.2f}" for value in (after - before).mean(1))
        lines.append(
            f"| {task} | `{method}` | {measure} | {before.shape[1]} | {before.mean():.3f} | {after.mean():.3f} | "
            f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {each} | {trained[0].commit} |"
        )
    return lines


HEAD = [
    "| task | method | measure | test rows | start | after | gain | of each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|",
]


def main() -> int:
    """Work for the minutes that were given; tells and writes what is there."""
    parser = parser_of(__doc__, "rl", "json_extraction/train.jsonl, test.jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tasks", nargs="+", default=["arithmetic", "addresses"], choices=sorted(TASKS))
    parser.add_argument("--methods", nargs="+", default=["grpo", "ppo"], choices=sorted(SETTINGS))
    parser.set_defaults(seeds=[0, 1, 2])
    options = parser.parse_args()
    until = until_of(options)
    found: dict[tuple[str, str], list[Trained]] = {}
    for name in options.tasks:
        task, folder = TASKS[name](options.data), (options.out / name).resolve()
        prepared(folder, {f"{part}.jsonl": lines_of(rows) for part, rows in task.rows.items()})
        test = folder / "test.jsonl"
        for seed, method in itertools.product(options.seeds, options.methods):
            start, run = folder / f"start-{seed}", folder / f"{method}-{seed}"
            if not (
                train(start_recipe(options, task, folder, seed), start, until)
                and train(reward_recipe(options, task, folder, seed, method, start), run, until)
            ):
                return stopped(folder)
            one = Trained(answers(start, test, task), answers(run, test, task), commit_of(run))
            found.setdefault((name, method), []).append(one)
            # after each, so that what is there can be read
            write_section("rl", [*HEAD, *(line for key, trained in found.items() for line in table(*key, trained))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
