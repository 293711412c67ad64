"""GRPO's update on completions that are given (scored, then used once): Luthier and TRL in turn, as `benchmarks.sft`.

The last column of losses is the negated mean log-probability of the completions in the last step.

    python -m benchmarks.groups [--threads 1 2] [--rounds 2] [--tune] [--float32]
"""

import sys

from benchmarks._compare import Contender, main
from benchmarks._training import race
from benchmarks._workloads import GROUPS

TRL = [
    Contender(
        f"TRL GRPO/{micro}",
        "trl_groups.py",
        f"bf16 autocast, micro-batches of {micro}",
        options={"micro_rows": micro, "autocast": True},
        best=micro == 8,
    )
    for micro in (1, 2, 8)
]
RACES = [race(GROUPS, TRL)]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:], training=True))
