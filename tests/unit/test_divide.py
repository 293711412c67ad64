"""The rows of a recipe: read, split and checked, and only then rid of repeats."""

import json
from pathlib import Path

from luthier.config import build
from luthier.data_stage import divide
from luthier.recipe import Recipe


def test_dropped_repeats_are_still_found_by_the_checks(tmp_path: Path) -> None:
    words = ["lute", "harp", "drum", "bell", "horn", "flute", "organ", "viola", "cello", "gong", "lyre", "zither"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is a {word}?"},
                {"role": "assistant", "content": f"It is {n}."},
            ]
        }
        for n, word in enumerate(words)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]), encoding="utf-8")

    for duplicates in ("keep", "drop"):
        data, counts, findings = divide(build(Recipe, {"data": {"train": str(path), "duplicates": duplicates}}))
        repeats = {finding.message.partition(" of ")[2][:5]: finding.count for finding in findings}
        assert repeats["train"] == (len(data.train) if duplicates == "drop" else len(data.train) / 2)
        assert counts["dropped_duplicates"] == (repeats["train"] if duplicates == "drop" else 0)
        assert len(data.validation) % 2 == len(data.test) % 2 == 0
        assert len(data.named()["train"]) == counts["train"]
