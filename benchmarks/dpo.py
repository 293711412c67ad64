"""Preference pairs (DPO, sigmoid, beta 0.1): Luthier and TRL in turn, as `benchmarks.sft`.

python -m benchmarks.dpo [--threads 1 2] [--rounds 2] [--tune] [--float32]
"""

import sys

from benchmarks._compare import Contender, main
from benchmarks._training import race
from benchmarks._workloads import PAIRS

TRL = [
    Contender(
        f"TRL DPO/{micro}",
        "trl_dpo.py",
        f"bf16 autocast, micro-batches of {micro}, reference: adapter off",
        options={"micro_rows": micro, "autocast": True},
        best=micro == 1,
    )
    for micro in (1, 2, 4)
]
RACES = [race(PAIRS, TRL)]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:], training=True))
