"""`kill -9` of `luthier data preferences`: given again it goes on, and every file ends as without it."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.chaos.command import begin, end, kill

pytestmark = pytest.mark.chaos

KILLS, ROWS = 6, 200
JUDGE = """
import json, re, sys, time
time.sleep(0.2)
for line in sys.stdin:
    row = json.loads(line)
    pattern = r"\\[Answer A\\]\\n(.*)\\n\\n\\[Answer B\\]\\n(.*)\\n\\nWhich answer"
    first, second = re.search(pattern, row["messages"][-1]["content"], re.S).groups()
    print(json.dumps({"id": row["id"], "output": "A" if len(first) > len(second) else "B"}))
"""
RECIPE = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[evaluation.style]
judge = {{ type = "command", command = ["python", "judge.py"] }}
[rollout]
group_size = 8
max_new_tokens = 64
[rollout.rewards.has_a]
grader = {{ type = "string_check", input = "{{{{sample.output_text}}}}", reference = "a", operation = "like" }}
"""


def made(out: Path) -> list[Path]:
    return sorted(out.glob("*/batch-*"))


@pytest.mark.parametrize("way", ["rewards", "judge"])
def test_kills_lose_a_batch_at_most_and_change_nothing(way: str, tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [{"id": f"r{n}", "prompt": f"Where is {n * 37 % 991}?", "completion": "Here."} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    recipe, whole, out = tmp_path / "pairs.toml", tmp_path / "whole", tmp_path / "killed"
    recipe.write_text(RECIPE.format(model=tiny_model_folder), encoding="utf-8")
    command = "data", "preferences", recipe, "--by", way, "--out"
    end(begin(*command, whole), 300)
    chance, codes = random.Random(0), []
    for after in sorted(chance.randrange(len(made(whole))) for _ in range(KILLS)):
        child = begin(*command, out)
        while child.poll() is None and len(made(out)) < after:
            time.sleep(0.002)
        time.sleep(chance.random())
        before = {path: path.stat().st_mtime_ns for path in made(out)}
        codes.append(kill(child))
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    end(begin(*command, out), 300)
    print(f"{way}: exit codes {codes}; {len(made(whole))} batches")
    assert codes.count(-signal.SIGKILL) >= KILLS - 1, "the kills came too late to mean anything"
    assert [path.relative_to(out) for path in made(out)] == [path.relative_to(whole) for path in made(whole)]
    for path in (*made(whole), whole / "preferences.jsonl"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    assert len((whole / "preferences.jsonl").read_text(encoding="utf-8").splitlines()) > 5
