"""Whether training in bfloat16 follows float32: losses step by step, Luthier in both and TRL in bfloat16.

Same rows, order, learning rate and start; LoRA and full fine-tuning from the published weights. `distance` is how far a
step's loss is from that of float32, on average after the first.

    python -m benchmarks.rounding [--threads 2]
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from benchmarks._compare import Contender, run
from benchmarks._training import BFLOAT16, job_of
from benchmarks._workloads import SUPERVISED
from luthier.models.catalog import resolve
from luthier.recipe import ModelSettings

CONTENDERS = (
    Contender("Luthier, float32", "luthier_train.py", "", options={"settings": {"model.precision": "float32"}}),
    Contender("Luthier, bfloat16", "luthier_train.py", "", options={"settings": BFLOAT16}),
    Contender("TRL, bfloat16", "trl_sft.py", "", options={"micro_rows": 1, "autocast": True}),
)
STEPS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(f"| | | {' | '.join(f'step {i + 1}' for i in range(STEPS))} | distance |\n{'|---' * (STEPS + 3)}|")
    for work in SUPERVISED:
        if work.name not in ("a", "f"):
            continue
        with tempfile.TemporaryDirectory() as place:
            job = job_of(dataclasses.replace(work, steps=STEPS), Path(place))
            job["float32"] = False
            job["model"] = str(resolve(ModelSettings().name).folder)
            wanted: tuple[float, ...] = ()
            for contender in CONTENDERS:
                losses = run(contender, job, threads).losses
                wanted = wanted or losses
                apart = sum(abs(a - b) for a, b in zip(losses[1:], wanted[1:], strict=True)) / (STEPS - 1)
                shown = " | ".join(f"{loss:.3f}" for loss in losses)
                print(
                    f"| {'all weights' if work.full else 'LoRA'} | {contender.name} | {shown} | {apart:.3f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
