"""Multiple-choice scoring: 200 questions with 4 options; Luthier and lm-evaluation-harness's HF back end in turn.

`last loss` is the mean surprise of an option's token, which must agree.

    python -m benchmarks.choice [--threads 1 2] [--rounds 2] [--tune]
"""

import random
import sys
from pathlib import Path
from typing import Any

from benchmarks._compare import Contender, Race, main
from benchmarks._rows import WORDS
from luthier.models.catalog import resolve
from luthier.models.load import open_without_weights
from luthier.recipe import ModelSettings

QUESTIONS, OPTIONS = 200, 4


def job_of(_folder: Path) -> dict[str, Any]:
    """Questions of 40 to 160 tokens and options of 4 to 16."""
    files = resolve(ModelSettings().name)
    tokenizer = open_without_weights(files).tokenizer
    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))
        return list(tokenizer(" " + words, add_special_tokens=False)["input_ids"])

    questions = [{"prompt": ids(40, 160), "choices": [ids(4, 16) for _ in range(OPTIONS)]} for _ in range(QUESTIONS)]
    return {"model": str(files.folder), "questions": questions}


RACES = [
    Race(
        "h",
        f"{QUESTIONS} questions with {OPTIONS} options",
        job_of,
        [
            Contender("Luthier", "luthier_choice.py", "defaults"),
            *(
                Contender(
                    f"lm-evaluation-harness/{batch}",
                    "harness_choice.py",
                    f"HF back end, bf16, batches of {batch}",
                    environment="harness",
                    options={"batch": batch},
                    best=batch == 16,
                )
                for batch in (1, 4, 16, 64)
            ),
        ],
    )
]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:]))
