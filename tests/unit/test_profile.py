"""What a profile says of labels and repeats, one odd row or a long file notwithstanding."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.profile import LOOKED_AT, profile


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _chat(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


LONG = "This is no label, but a long sentence that somebody wrote into the wrong column of a large table."


@pytest.mark.parametrize(("odd", "kind"), [(0, "label"), (2, "label"), (3, "text")])
def test_one_answer_in_a_hundred_may_be_no_label(tmp_path: Path, odd: int, kind: str) -> None:
    rows = [_chat(f"q{n}", "yes" if n % 2 else "no") for n in range(200 - odd)]
    rows += [_chat(f"odd {n}", f"{LONG} {n}") for n in range(odd)]
    found = profile(_write(tmp_path / "a.jsonl", rows))
    assert found.kind == kind
    assert found.labels == (("no", "yes") if kind == "label" else ())


@pytest.mark.parametrize("label", [LONG, '{"a": 1}', "only one"])
def test_rows_of_text_and_label_are_always_a_task_of_labels(tmp_path: Path, label: str) -> None:
    rows = [{"text": f"text {n}", "label": label} for n in range(20)]
    assert profile(_write(tmp_path / "a.jsonl", rows)).kind == "label"


def test_repeats_behind_the_rows_looked_at_count_too(tmp_path: Path) -> None:
    rows = [_chat(f"q{n}", "a") for n in range(LOOKED_AT)]
    found = profile(_write(tmp_path / "a.jsonl", [*rows, *rows[:10]]))
    assert (found.rows, found.looked_at, found.repeats) == (LOOKED_AT + 10, LOOKED_AT, 10)
    assert found.repeat_share == pytest.approx(10 / (LOOKED_AT + 10))
