"""Answers for an evaluation: 200 prompts behind eight examples, 64 new tokens each, greedy; Luthier and peers in turn.

`last loss` is the share of first tokens that are those of transformers in float32. Peers: transformers' `generate` in
batches of like length, with the common prefix computed once or not; llama.cpp on the 4-bit file that the weights come
from, with the prefix cached, as many rows at once as it takes.

    python -m benchmarks.generate [--threads 1 2] [--rounds 1] [--tune]
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._compare import Contender, Race, main
from benchmarks._rows import WORDS
from luthier.models.catalog import cache_folder, known, resolve
from luthier.models.load import load
from luthier.models.packages import fetch_gguf
from luthier.recipe import ModelSettings

PROMPTS, SHOTS, NEW_TOKENS = 200, 8, 64


def prompts_of(tokenizer: Any) -> list[list[int]]:
    """Token ids of questions of 20 to 80 words behind `SHOTS` solved ones."""
    rng = random.Random(0)

    def turns(words: int, answer: bool) -> list[dict[str, str]]:
        asked = [rng.choice(WORDS) for _ in range(words)]
        turn = [{"role": "user", "content": " ".join(asked)}]
        return [*turn, {"role": "assistant", "content": " ".join(asked[: words // 2])}] if answer else turn

    shots = [{"role": "system", "content": "Say the first half."}]
    for _ in range(SHOTS):
        shots += turns(rng.randint(20, 80), True)
    asked = [shots + turns(rng.randint(20, 80), False) for _ in range(PROMPTS)]
    return [tokenizer.apply_chat_template(a, add_generation_prompt=True, return_dict=False) for a in asked]


def job_of(_folder: Path) -> dict[str, Any]:
    """Prompts, and what transformers in float32 says first to each."""
    files = resolve(ModelSettings().name)
    loaded = load(files, precision="float32", device="cpu")
    prompts = prompts_of(loaded.tokenizer)
    with torch.inference_mode():
        first = [int(loaded.model(torch.tensor([p]), logits_to_keep=1).logits[0, -1].argmax()) for p in prompts]
    gguf = fetch_gguf(known()[ModelSettings().name], cache_folder(), False, lambda _text: None)
    return {
        "model": str(files.folder),
        "gguf": str(gguf),
        "prompts": prompts,
        "first_tokens": first,
        "first_texts": [loaded.tokenizer.decode([token]).strip() for token in first],
        "new_tokens": NEW_TOKENS,
    }


RACES = [
    Race(
        "g",
        f"{PROMPTS} answers of {NEW_TOKENS} tokens",
        job_of,
        [
            Contender("Luthier", "luthier_generate.py", "defaults"),
            *(
                Contender(
                    f"transformers/{batch}{'/prefix' if prefix else ''}",
                    "transformers_generate.py",
                    f"bf16, batches of {batch}{', prefix computed once' if prefix else ''}",
                    options={"batch": batch, "prefix": prefix},
                    best=(batch, prefix) == (32, True),
                )
                for batch in (8, 32, 64)
                for prefix in (True, False)
            ),
            Contender(
                "llama.cpp",
                "llama_cpp_generate.py",
                "the 4-bit file, 8 slots",
                environment="harness",
                options={"slots": 8},
            ),
        ],
    )
]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:]))
