"""GRPO with its rollouts: replies sampled, graded and learned from; Luthier and TRL in turn, as `benchmarks.sft`.

Every reply is as long as allowed, so that both do the same work; both sample from the whole vocabulary at temperature 1
with the model's own code, in one process. The last column of losses is the negated mean log-probability of what was
written in all steps. A reply's has a standard deviation of 1.2 nats, so two means over 96 replies differ by chance by
0.18, and less than three times that is allowed.

    python -m benchmarks.rollouts [--threads 1 2] [--rounds 2] [--tune] [--float32]
"""

import random
import sys
from pathlib import Path
from typing import Any

from benchmarks._compare import Contender, Race, main
from benchmarks._rows import WORDS
from benchmarks._training import BFLOAT16
from benchmarks._workloads import SYSTEM, write_lines
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.recipe import ModelSettings

STEPS, PROMPTS, GROUP, NEW_TOKENS = 3, 4, 8, 128


def job_of(folder: Path) -> dict[str, Any]:
    """Prompts of 150 to 350 tokens; `counts` are tokens of each group, and those of them that are written."""
    rng = random.Random(0)
    files = resolve(ModelSettings().name)
    tokenizer: Any = load(files, precision="bfloat16", device="cpu").tokenizer
    rows, lengths = [], []
    for number in range(STEPS * PROMPTS):
        asked = " ".join(rng.choice(WORDS) for _ in range(rng.randint(130, 330)))
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        rows.append({"id": str(number), "prompt": prompt, "answer": asked[:20]})
        lengths.append(len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)))
    return {
        "folder": str(folder),
        "model": str(files.folder),
        "rows": str(write_lines(folder / "rows.jsonl", rows)),
        "objective": "grpo",
        "full": False,
        "steps": STEPS,
        "rows_per_step": PROMPTS,
        "group_size": GROUP,
        "new_tokens": NEW_TOKENS,
        "learning_rate": 1e-4,
        "counts": [(GROUP * (length + NEW_TOKENS), GROUP * NEW_TOKENS) for length in lengths],
    }


RACES = [
    Race(
        "i",
        f"GRPO with its rollouts, {PROMPTS} prompts x {GROUP} replies of {NEW_TOKENS} tokens",
        job_of,
        [
            Contender("Luthier", "luthier_rollouts.py", "defaults", options={"settings": BFLOAT16}),
            *(
                Contender(
                    f"TRL GRPO/{micro}",
                    "trl_rollouts.py",
                    f"bf16 autocast, micro-batches of {micro}, all replies sampled at once",
                    options={"micro_rows": micro, "autocast": True},
                    best=micro == 8,
                )
                for micro in (1, 2, 8, 32)
            ),
        ],
        tolerance=0.5,
    )
]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:], training=True))
