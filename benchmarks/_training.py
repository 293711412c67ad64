"""What the comparisons of training have in common: the job made of a workload."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks._arithmetic import Decoder, operations
from benchmarks._compare import Contender, Race
from benchmarks._workloads import Workload, rows_of, write_lines
from benchmarks.peers.luthier_train import run_of
from luthier.adapters.full import Full
from luthier.data.source import Unit
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.recipe import ModelSettings

BFLOAT16 = {"model.precision": "bfloat16"}  # as the peers, also where `auto` would take float32
LUTHIER = Contender("Luthier", "luthier_train.py", "defaults", options={"settings": BFLOAT16})
SMALLER = [
    Contender(
        f"Luthier/{tokens}",
        "luthier_train.py",
        f"micro-batches of {tokens:,} tokens",
        options={"settings": {**BFLOAT16, "training.micro_batch_tokens": tokens}},
        best=False,
    )
    for tokens in (2048, 1024)
]


def race(work: Workload, peers: Sequence[Contender]) -> Race:
    """Luthier against peers on one workload."""
    return Race(work.name, work.what, lambda folder: job_of(work, folder), (LUTHIER, *SMALLER, *peers))


def job_of(work: Workload, folder: Path) -> dict[str, Any]:
    """The files and numbers of one workload, for every contender.

    Peers that take tokens find Luthier's in `tokens`; `counts` are tokens and trained-on tokens of each row, pair or
    group, `operations` what each step cannot do without.
    """
    rows = rows_of(work)
    job: dict[str, Any] = {
        "folder": str(folder),
        "model": str(_off_the_grid(folder / "model") if work.full else resolve(ModelSettings().name).folder),
        "rows": str(write_lines(folder / "rows.jsonl", rows)),
        "objective": "dpo" if work.kind == "pairs" else "sft",
        "full": work.full,
        "steps": work.steps,
        "rows_per_step": work.rows_per_step,
        "learning_rate": 1e-5 if work.full else 5e-4 if work.kind == "rows" else 1e-4,
    }
    run = run_of(job)
    steps = [run.source.step(number + 1) for number in range(work.steps)]
    units = [unit for step in steps for unit in step]
    decoder, forwards = _decoder(run.model, work.full), 0 if work.kind == "rows" else 1
    return {
        **job,
        "tokens": str(write_lines(folder / "tokens.jsonl", _tokens(rows, units))),
        "counts": [(sum(len(r.ids) for r in unit), sum(r.trained_tokens for r in unit)) for unit in units],
        "operations": [operations(step, decoder, forwards) for step in steps],
    }


def _off_the_grid(folder: Path) -> Path:
    """The default model with its weights where Luthier starts to train them, for every contender.

    From the published weights, peers that multiply in bfloat16 take another path than float32 does (docs/log.md), and
    no losses could be compared.
    """
    files = resolve(ModelSettings().name)
    Full().inject(load(files, precision="bfloat16", device="cpu").model, seed=0).save(folder, files.name)
    for file in files.folder.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    return folder


def _tokens(rows: Sequence[dict[str, Any]], units: Sequence[Unit]) -> list[dict[str, Any]]:
    """A line for each row: ids and mask; for each group: the prompt, its completions and their advantages."""
    if "advantages" not in rows[0]:
        return [{"ids": r.ids, "mask": [int(m) for m in r.loss_mask]} for unit in units for r in unit]
    made = []
    for row, unit in zip(rows, units, strict=True):
        first = unit[0].loss_mask.index(1.0)
        completions = [r.ids[first : first + r.trained_tokens] for r in unit]  # a line break after them is not trained
        made.append({"prompt": unit[0].ids[:first], "completions": completions, "advantages": row["advantages"]})
    return made


def _decoder(model: Any, full: bool) -> Decoder:
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return Decoder(
        layers=model.config.num_hidden_layers,
        attention_width=model.config.num_attention_heads * model.config.head_dim,
        linear=linear,
        head=head.weight.numel(),
        low_rank=0 if full else sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
