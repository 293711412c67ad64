"""Supervised fine-tuning on this machine: Luthier and its peers in turn, with the ratio of their speeds.

Same model, rows, order, LoRA (rank 16 on all linear layers) or all weights, AdamW, learning rate, bfloat16 and threads;
losses must agree. Peers stand in the setting that was fastest for them here; `--tune` runs the others, too.

    python -m benchmarks.sft [a b e f] [--threads 1 2] [--rounds 2] [--tune] [--float32]
"""

import sys

from benchmarks._compare import Contender, main
from benchmarks._training import race
from benchmarks._workloads import SUPERVISED

TRL = [
    Contender(
        f"TRL/{micro}{'' if autocast else '/no autocast'}",
        "trl_sft.py",
        f"bf16{' autocast' if autocast else ''}, micro-batches of {micro}",
        options={"micro_rows": micro, "autocast": autocast},
        best=(micro, autocast) == (1, True),
    )
    for micro in (1, 2, 8)
    for autocast in (True, False)
]
OTHERS = [
    Contender(
        f"{name}/{micro}",
        script,
        f"bf16 autocast, micro-batches of {micro}",
        environment=environment,
        options={"micro_rows": micro},
        best=micro == 1,
    )
    for name, script, environment in (
        ("LLaMA-Factory", "llama_factory_sft.py", "llama_factory"),
        ("ms-swift", "ms_swift_sft.py", "ms_swift"),
    )
    for micro in (1, 8)
]
RACES = [race(work, [*TRL, *OTHERS]) for work in SUPERVISED]

if __name__ == "__main__":
    sys.exit(main(__doc__ or "", RACES, sys.argv[1:], training=True))
