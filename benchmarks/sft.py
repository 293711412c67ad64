"""Supervised fine-tuning on this machine: Luthier and its peers in turn, with the ratio of their speeds.

Same model, rows, order, LoRA (rank 16 on all linear layers), AdamW, learning rate, bfloat16 and threads; losses must
agree. Peers stand in the setting that was fastest for them here (`--tune` tries them out).

    python -m benchmarks.sft [a b e f] [--threads 1 2] [--rounds 2] [--tune]
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._compare import HEADER, Contender, in_turn, lines
from benchmarks._workloads import SUPERVISED, Workload, conversations, write_lines
from benchmarks.peers.luthier_train import example
from luthier.data.templates import build_template
from luthier.models.catalog import resolve
from luthier.models.load import open_without_weights
from luthier.objectives.sft import SFT
from luthier.recipe import ModelSettings

LUTHIER = Contender("Luthier", "luthier_train.py", "defaults", options={"precision": "bfloat16"})
TRL = [
    Contender(
        f"TRL, {micro} a micro-batch, {'autocast' if autocast else 'no autocast'}",
        "trl_sft.py",
        f"bf16, {micro} rows a micro-batch, {'autocast' if autocast else 'no autocast'}",
        options={"micro_rows": micro, "autocast": autocast},
    )
    for micro in (1, 2, 8)
    for autocast in (True, False)
]
BEST = {"TRL": TRL[0]}


def write_tokens(path: Path, rows: Sequence[dict[str, Any]], model: Path) -> Path:
    """The rows as Luthier's template renders them, for a peer that takes tokens and mask."""
    template = build_template(open_without_weights(resolve(str(model))), loss_on="assistant")
    made = []
    for row in rows:
        (rendered,) = SFT().rows(example(row), template)
        made.append({"ids": list(rendered.ids), "mask": [int(m) for m in rendered.loss_mask]})
    return write_lines(path, made)


def job_of(work: Workload, folder: Path) -> dict[str, Any]:
    """The files and numbers of one workload, for every contender."""
    model = resolve(ModelSettings().name).folder
    rows = conversations(work)
    return {
        "model": str(model),
        "rows": str(write_lines(folder / "rows.jsonl", rows)),
        "tokens": str(write_tokens(folder / "tokens.jsonl", rows, model)),
        "full": work.full,
        "steps": work.steps,
        "rows_per_step": work.rows_per_step,
        "learning_rate": 1e-5 if work.full else 5e-4,
    }


def main(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=[work.name for work in SUPERVISED])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tune", action="store_true", help="try every setting of the peers once")
    asked = parser.parse_args(given)
    contenders = [LUTHIER, *(TRL if asked.tune else BEST.values())]
    print(HEADER)
    with tempfile.TemporaryDirectory() as place:
        for work in SUPERVISED:
            if work.name not in asked.workloads:
                continue
            job = job_of(work, Path(place))
            for threads in asked.threads:
                outcomes = in_turn(contenders, job, threads, 1 if asked.tune else asked.rounds)
                print(*lines(f"{work.name}: {work.what}", threads, contenders, outcomes), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
