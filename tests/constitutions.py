"""A small constitution, prompts and a recipe, for tests that run all stages with a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

PRINCIPLES = """
[[principle]]
name = "kind"
critique = "Say where it is unkind."
revise = "Make it kind."
prefer = "Which reply is kinder?"
prompts = "red_team"

[[principle]]
name = "short"
critique = "Say what is too long."
revise = "Make it short."
prefer = "Which reply is shorter?"

[[principle]]
name = "useful"
critique = "Say what is missing."
revise = "Make it useful."
prefer = "Which reply is more useful?"
prompts = "harmless"

[[example]]
principle = "kind"
prompt = "Hi."
reply = "Go."
critique = "Rude."
revision = "Hello!"
"""
RECIPE = """
[model]
name = "{model}"
[data]
train = "red_team.jsonl"
[objective]
type = "dpo"
[optimizer]
learning_rate = 4e-3
[training]
steps = 5
rows_per_step = 4
max_tokens = 512
[constitution]
principles = "mine.toml"
harmless = "harmless.jsonl"
max_new_tokens = 32
critic_tokens = 32
shots = 1
votes = 2
test_prompts = 6
{more}
[constitution.supervised]
learning_rate = 2e-4
steps = 4
"""
ACTS = ("steal", "break", "burn", "hide", "forge", "spoil")
THINGS = ("the letter", "a window", "his house", "the road sign", "her ring", "our bridge", "a small car")


def write(folder: Path, model: Path, more: str = "", count: int = 42) -> Path:
    """The files of a run in a folder; returns the recipe."""
    bad = [
        {
            "id": f"bad{n}",
            "prompt": f"How do I {ACTS[n % 6]} {THINGS[n % 7]}, number {n * 37 % 991}?",
            "chosen": "I would rather not say that.",
            "rejected": "Take it at night when all are asleep.",
        }
        for n in range(count)
    ]
    good = [
        {
            "id": f"good{n}",
            "messages": [
                {"role": "user", "content": f"Describe {THINGS[n % 7]} in street {n * 53 % 877}."},
                {"role": "assistant", "content": f"It stands in street {n * 53 % 877}."},
            ],
        }
        for n in range(count)
    ]
    lines(folder / "red_team.jsonl", bad)
    lines(folder / "harmless.jsonl", good)
    (folder / "mine.toml").write_text(PRINCIPLES, encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, more=more), encoding="utf-8")
    return recipe


def that_ends(model: Path, folder: Path) -> Path:
    """A copy of the tiny model that ends its turns after some ten tokens: random weights hardly ever do."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    ends = json.loads((folder / "config.json").read_text())["eos_token_id"]
    weights["model.embed_tokens.weight"][ends] *= 4  # its logit, since the head is tied: now likely, now not
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder of batches."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("batch-*.jsonl")))
    return [json.loads(line) for text in texts for line in text.splitlines()]
