"""What rewards are measured on: short arithmetic, and JSON of addresses; each with its rows, graders and sizes."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._methods import rows_of

START_ROWS, PROMPTS, VALIDATION_ROWS = 96, 400, 32
"""Rows that the start learns from, prompts that are asked after it, and rows that the best step is chosen by."""


@dataclass(frozen=True)
class Task:
    """Rows, what their answers are measured by, and how long is trained."""

    what: str
    rows: Mapping[str, list[dict[str, Any]]]
    """`start`, `prompts`, `validation`, `test`; no row is in two."""
    graders: Mapping[str, dict[str, Any]]
    """By measure."""
    rewards: Mapping[str, float]
    """Measure and weight of what is rewarded."""
    new_tokens: int
    """Longest reply."""
    prompts_per_step: int
    start_steps: int
    steps: int
    rate: float
    """Learning rate of the rewards."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of an objective, beside those that are the same for all tasks."""


def arithmetic(_data: Path) -> Task:
    """Sums and differences of numbers below 100, made here; the test rows are asked of no training."""
    asked = list(_sums())
    random.Random(0).shuffle(asked)
    rows = [{"messages": [_said("user", q), _said("assistant", a)]} for q, a in asked]
    return Task(
        what="`a + b` and `a - b` with 10 ≤ b ≤ a < 100, made by the command",
        rows=_parts(rows[:-TEST_SUMS], rows[-TEST_SUMS:]),
        graders={"right": {"type": "number"}},
        rewards={"right": 1.0},
        new_tokens=6,
        prompts_per_step=16,
        start_steps=24,
        steps=60,
        rate=2e-4,
    )


TEST_SUMS = 300


def _sums() -> Iterator[tuple[str, str]]:
    for a in range(10, 100):
        for b in range(10, a + 1):
            yield f"What is {a} + {b}? Reply with the number.", str(a + b)
            yield f"What is {a} - {b}? Reply with the number.", str(a - b)


def addresses(data: Path) -> Task:
    """Messy addresses to strict JSON, `json_extraction` in a folder of data."""
    folder = data / "json_extraction"
    schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
    read = {name: rows_of(folder / f"{name}.jsonl") for name in ("train", "test")}
    return Task(
        what="addresses to JSON, `json_extraction`",
        rows=_parts(read["train"], read["test"][:100]),
        graders={
            "valid": {"type": "json_schema", "json_schema": schema},
            "fields": {"type": "fields"},
            "exact": {"type": "fields", "measure": "exact"},
        },
        rewards={"valid": 0.2, "fields": 0.8},
        new_tokens=96,
        prompts_per_step=4,
        start_steps=24,
        steps=24,
        rate=2e-4,
    )


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _parts(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    end = START_ROWS + PROMPTS
    return {
        "start": train[:START_ROWS],
        "prompts": train[START_ROWS:end],
        "validation": train[end : end + VALIDATION_ROWS],
        "test": test,
    }


TASKS = {"arithmetic": arithmetic, "addresses": addresses}
