"""Whether a small model learns more from a larger teacher than from the same rows alone, on held-out rows.

    python -m benchmarks.distill --data FOLDER [--rows 200] [--prompts 402] [--seeds 0 1] [--minutes 10]

FOLDER holds `intents` (77 intents of bank customers), with train_chat.jsonl and test_chat.jsonl. The teacher is a
larger model that learned to write the labels of the first `--taught` rows. Its students see other rows, of which it
knows nothing by heart: `--rows` of them with their labels alone (`sft`), or with the teacher's probabilities of the
same tokens (`distill`). Two more students see no label, but the texts of these rows and of more, `--prompts` in all,
and what the teacher replied to them (`luthier data replies`): as text (`replies`), and with its probabilities
(`replies + distill`). All students take `--steps` steps and write the label of each test row greedily; intervals are
over test rows, of the mean over seeds. Every training is a whole `luthier run` under `--out` and goes on where it was:
with `--minutes` the command stops after so many. Writes its table into docs/methods.md.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
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
    to_its_end,
    until_of,
    write_section,
)
from luthier.config import write_toml
from luthier.evaluation.significance import gain_interval, mean_interval

METRIC, SYSTEM = "accuracy", "fine_tuned"
TOKENS = 24
"""More than any label has."""
STUDENTS: Mapping[str, tuple[str, bool]] = {
    "sft": ("rows", False),
    "distill": ("rows", True),
    "replies": ("replies", False),
    "replies + distill": ("replies", True),
}
"""Which file a student learns, and whether its teacher tells probabilities."""
HEAD = [
    "| teacher | student | learns | seeds | tested | teacher right | right | gain over `sft` | each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def common(asked: argparse.Namespace, model: str, train: str, test: Path, steps: int, seed: int) -> dict[str, Any]:
    """What all trainings have in common."""
    return {
        "seed": seed,
        "model": {"name": model},
        "data": {"train": train, "test": str(test.resolve()), "validation_share": 0.1},
        "adapter": {"type": "lora", "rank": 16},
        "optimizer": {"learning_rate": asked.rate},
        "training": {"steps": steps, "rows_per_step": 16, "patience": False, "validate_every": max(1, steps // 5)},
        "evaluation": {
            "task": "label",
            "primary_metric": METRIC,
            "max_new_tokens": TOKENS,
            "systems": {SYSTEM: {}},
            "forgetting": {"multiple_choice": "none", "text": "none"},
        },
    }


def tested(asked: argparse.Namespace) -> Path:
    """The test rows, in a file of their own."""
    rows = rows_of(asked.data / "intents/test_chat.jsonl")[: asked.tested]
    return prepared(asked.out, {"test.jsonl": lines_of(rows)}) / "test.jsonl"


def teacher(asked: argparse.Namespace, train: Sequence[Mapping[str, Any]], until: float | None) -> Path | None:
    """The folder of the teacher's run; None: it is not finished yet."""
    recipe = common(asked, asked.teacher, "train.jsonl", tested(asked), asked.teacher_steps, 0)
    rows = {"train.jsonl": lines_of(train[: asked.taught]), "recipe.toml": write_toml(recipe)}
    place = prepared(asked.out / "teacher", rows)
    return place / "run" if finished(place / "recipe.toml", place / "run", until) else None


def replies(
    asked: argparse.Namespace, unseen: Sequence[Mapping[str, Any]], teacher: Path, until: float | None
) -> Path | None:
    """The teacher's replies to questions; None: they are not written yet."""
    questions = [{"id": row["id"], "messages": row["messages"][:2]} for row in unseen[: asked.prompts]]
    recipe = {
        "model": {"name": asked.teacher},
        "data": {"train": "questions.jsonl", "test_share": 0.0, "validation_share": 0.01},
        "teacher": {"run": str(teacher.resolve())},
        "rollout": {"group_size": 1, "max_new_tokens": TOKENS, "temperature": asked.temperature},
    }
    files = {"questions.jsonl": lines_of(questions), "recipe.toml": write_toml(recipe)}
    place = prepared(asked.out / "replies", files)
    found = place / "made/replies.jsonl"
    command = ["data", "replies", str(place / "recipe.toml"), "--out", str(place / "made"), "--model", "teacher"]
    return found if found.is_file() or to_its_end(command, until) else None


def student(asked: argparse.Namespace, name: str, texts: Mapping[str, str], teacher: Path, seed: int) -> Path:
    """The folder of a student, with its recipe."""
    file, is_told = STUDENTS[name]
    recipe = common(asked, asked.student, "train.jsonl", tested(asked), asked.steps, seed)
    if is_told:
        recipe["objective"] = {"type": "distill", "cross_entropy": 0.5, "temperature": 2.0}
        recipe["teacher"] = {"run": str(teacher.resolve())}
    files = {"train.jsonl": texts[file], "recipe.toml": write_toml(recipe)}
    return prepared(asked.out / f"{name.replace(' + ', '_')}_{seed}", files)


@dataclass(frozen=True)
class Learned:
    """One training."""

    right_N: np.ndarray
    """Of the test rows."""
    commit: str

    @classmethod
    def of(cls, folder: Path) -> "Learned":
        """What a finished run says."""
        return cls(statistics_of(folder, SYSTEM)[METRIC][:, 0], commit_of(folder))


def line(asked: argparse.Namespace, name: str, found: Mapping[str, Sequence[Learned]], taught: Learned) -> str:
    """A row of the table; the gain is of the seeds that both have."""
    mine, base = found[name], found["sft"]
    right_N = np.mean([one.right_N for one in mine], axis=0)
    score = mean_interval(right_N)
    both = list(zip(mine, base, strict=False))
    gain = gain_interval(np.mean([a.right_N - b.right_N for a, b in both], axis=0))
    told = "" if name == "sft" else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    each = ", ".join(f"{one.right_N.mean():.3f}" for one in mine)
    head = f"{asked.teacher} | {asked.student} | `{name}` | {len(mine)} | {len(right_N)}"
    cells = f"{taught.right_N.mean():.3f} | {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
    return f"| {head} | {cells} | {told} | {each} | {mine[0].commit} |"


def main() -> int:
    parser = parser_of(__doc__, "distill", "intents/train_chat.jsonl, test_chat.jsonl")
    parser.add_argument("--teacher", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--student", default="smollm2-135m-instruct")
    parser.add_argument("--taught", type=int, default=1600, help="rows that the teacher learns")
    parser.add_argument("--teacher-steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=200, help="rows with labels that students learn")
    parser.add_argument("--prompts", type=int, default=402, help="questions that the teacher replies to")
    parser.add_argument("--temperature", type=float, default=0.1, help="at which it does")
    parser.add_argument("--steps", type=int, default=100, help="of each student")
    parser.add_argument("--tested", type=int, default=770)
    parser.add_argument("--rate", type=float, default=1e-3)
    asked = parser.parse_args()
    until = until_of(asked)
    train = rows_of(asked.data / "intents/train_chat.jsonl")
    taught, unseen = teacher(asked, train, until), train[asked.taught :]
    written = None if taught is None else replies(asked, unseen, taught, until)
    if taught is None or written is None:
        return stopped(asked.out)
    texts = {"rows": lines_of(unseen[: asked.rows]), "replies": written.read_text(encoding="utf-8")}
    found: dict[str, list[Learned]] = {}
    for seed, name in itertools.product(asked.seeds, STUDENTS):
        place = student(asked, name, texts, taught, seed)
        if not finished(place / "recipe.toml", place / "run", until):
            return stopped(place)
        found.setdefault(name, []).append(Learned.of(place / "run"))
        lines = [line(asked, each, found, Learned.of(taught)) for each in found]
        write_section("distill", [*HEAD, *lines])  # after each, so that what is there can be read
    return 0


if __name__ == "__main__":
    sys.exit(main())
