"""What Luthier and its peers are timed on: rows of random words in a fixed order, so that all do the same work.

Lengths are in tokens of the default model, where each of `WORDS` is one token. Every row has a system message, since
the default model's template adds one of its own where there is none, and peers do not.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks._rows import WORDS

SYSTEM = "Answer with the words that matter."
OVERHEAD = 24  # tokens of the three messages' frames and of SYSTEM
ADVANTAGES = (1.5, -0.5, 0.5, -1.5, 1.0, -1.0, 0.25, -0.25)


@dataclass(frozen=True)
class Workload:
    """Rows for one line of the table, and what is done with them."""

    name: str
    what: str
    shortest: int = 60
    longest: int = 512
    trained_share: float = 0.29
    system_words: int = 0
    rows_per_step: int = 8
    """Rows, pairs or groups."""
    kind: Literal["rows", "pairs", "groups"] = "rows"
    steps: int = 6
    """Enough for losses to come together: peers round low-rank updates away, and their first ones do less."""
    full: bool = False


SUPERVISED = (
    Workload("a", "short mixed rows, LoRA"),
    Workload("b", "the same behind one system prompt of 430 tokens", system_words=420),
    Workload("e", "rows of 2,048 tokens", shortest=2040, longest=2048, rows_per_step=2, steps=3),
    Workload("f", "short mixed rows, all weights", full=True),
)
PAIRS = Workload("c", "DPO pairs", rows_per_step=4, kind="pairs", steps=16)
GROUPS = Workload(
    "d", "groups of 8 completions: scoring and update", shortest=300, rows_per_step=2, steps=3, kind="groups"
)


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(max(words, 1)))


def _prompts(work: Workload, rng: random.Random) -> list[tuple[list[dict[str, str]], list[str], int]]:
    """Messages, the words asked, and how many words an answer has, for each row in order."""
    system = _text(rng, work.system_words) if work.system_words else SYSTEM
    made = []
    for _ in range(work.steps * work.rows_per_step):
        tokens = rng.randint(work.shortest, work.longest)
        answer = round(tokens * work.trained_share)
        asked = _text(rng, tokens - answer - OVERHEAD).split()
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": " ".join(asked)}]
        made.append((prompt, asked, answer))
    return made


def rows_of(work: Workload, seed: int = 0) -> list[dict[str, Any]]:
    """`steps * rows_per_step` prompts with what is learned of them, in the order in which they are trained on.

    Returns:
        Dictionaries with `id`, `prompt` (messages) and, by the kind: `answer`, the question's first words again, so
        that the loss falls; `chosen`, the same, and `rejected`, other words; eight `answers` of other words, each from
        two thirds as long to as long as asked for, and their `advantages`.
    """
    rng = random.Random(seed)
    made = []
    for number, (prompt, asked, words) in enumerate(_prompts(work, rng)):
        again = " ".join((asked * 2)[:words])
        learned: dict[str, Any] = {"answer": again}
        if work.kind == "pairs":
            learned = {"chosen": again, "rejected": _text(rng, words)}
        elif work.kind == "groups":
            answers = [_text(rng, rng.randint(words * 2 // 3, words)) for _ in ADVANTAGES]
            learned = {"answers": answers, "advantages": ADVANTAGES}
        made.append({"id": str(number), "prompt": prompt, **learned})
    return made


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
