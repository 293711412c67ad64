"""A training in a process of its own: starts or resumes, says each step on stdout, writes the final weights' hash."""

import hashlib
import sys
from pathlib import Path

import torch
from tests.engine_runs import make_run

from luthier.engine import checkpoint
from luthier.engine.loop import train

STEPS = 60


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run = make_run(
        folder,
        adapter={"type": "lora", "dropout": 0.1},
        training={"steps": STEPS, "rows_per_step": 4, "save_every": 1, "validate_every": 7, "patience": 1000},
    )
    found = checkpoint.latest(run.checkpoints)
    if found is not None:
        checkpoint.restore(run, found.folder)
    print(f"start {run.state.step}", flush=True)
    for step in train(run):
        print(f"step {step.number}", flush=True)
    digest = hashlib.sha256()
    for parameter in run.injected.trainable.values():
        digest.update(parameter.detach().numpy().tobytes())
    print(f"done {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
