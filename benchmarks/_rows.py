"""Rows of random words, so that a benchmark chooses their lengths and needs no data."""

import json
import random
from pathlib import Path

WORDS = ["street", "road", "lake", "hill", "north", "south", "old", "new", "green", "king", "mill", "bridge", "park"]


def write_recipe(folder: Path, words: int, rows: int = 64, system_words: int = 0) -> Path:
    """A recipe over chat rows: `words` words asked, half as many answered, after a system prompt that all share."""
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    system = [{"role": "system", "content": text(system_words)}] if system_words else []
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked = {"role": "user", "content": text(words)}
            answer = {"role": "assistant", "content": text(words // 2)}
            file.write(json.dumps({"id": str(number), "messages": [*system, asked, answer]}) + "\n")
    recipe = folder / "recipe.toml"
    recipe.write_text('[data]\ntrain = "rows.jsonl"\n[training]\nsteps = 4\n', encoding="utf-8")
    return recipe
