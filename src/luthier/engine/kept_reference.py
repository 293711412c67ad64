"""Log-probabilities under the reference, computed once for rows that a training sees more than once, and kept.

They are token values of the rows (`objectives.base.REFERENCE`), so batches carry them where an objective looks for
them. They are computed in the order of the rows, whatever order training takes them in, and lie in the run's folder
under the fingerprint of the training: a run that goes on reads them, and one whose file is gone makes the same bits
again. Beside a reference that is asked anew in every step they are other bits, since sums round by what they stand
among; the tests compare both.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from luthier.data.source import Source, Unit, micro_batches
from luthier.data.stored import StoredUnits
from luthier.engine import kept_tensors
from luthier.engine.run import Run
from luthier.examples import Row
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer, in_mode
from luthier.objectives.base import REFERENCE, no_grad_logprobs
from luthier.progress import Progress

FILE = "reference.safetensors"


def worth_keeping(run: Run) -> dict[str, Sequence[Unit]]:
    """The rows, by split, whose reference would be asked for more often than once for each; empty where none are.

    Validation looks at all of its rows before the first step and after the last one at least, always in the same
    micro-batches, so what is kept has the bits that it would be asked for. A step mixes rows anew: in float32 that is
    1e-6, but in bfloat16 sums of a reply move by hundredths of a nat, which cancel only against a reference that is
    scored in the same micro-batch. There the reference is asked in every step.
    """
    objective, source = run.objective, run.source
    if not (objective.uses_reference and objective.keeps_reference and isinstance(source, Source)):
        return {}
    units = source.units
    found: dict[str, Sequence[Unit]] = {"validation": run.validation} if len(run.validation) else {}
    again = run.steps * run.settings.rows_per_step > len(units)
    return {"train": units, **found} if again and not _rounds_coarsely(run) else found


def _rounds_coarsely(run: Run) -> bool:
    """Whether products are computed in 16 bits."""
    policy = run.models.policy
    return isinstance(policy, Scorer) and (policy.autocast or policy.model.dtype).itemsize < 4


def keep(run: Run, folder: Path, progress: Progress) -> None:
    """Give the rows of a run that are worth it their log-probabilities under its reference.

    Raises:
        StorageError: the disk is full.
    """
    wanted = worth_keeping(run)
    if not wanted:
        return
    path = folder / FILE
    counts = {name: sum(row.trained_tokens for unit in units for row in unit) for name, units in wanted.items()}
    told = " and ".join(f"{len(units):,} {name}" for name, units in wanted.items())
    values = _read(path, run.fingerprint, counts)
    if values is None:
        title = f"the reference scores {told} rows once, which is kept ({FILE})"
        with progress.stage("reference", title), in_mode(run.model, training=False):
            values = {name: _scored(run, units, progress) for name, units in wanted.items()}
        kept_tensors.write(path, values, run.fingerprint, "what the reference scored")
    source = run.source
    for name, units in wanted.items():
        stored = StoredUnits(_told(units, values[name]), folder)
        if name == "validation":
            run.validation = stored
        elif isinstance(source, Source):
            run.source = Source(stored, source.rows_per_step, source.seed)


def _scored(run: Run, units: Sequence[Unit], progress: Progress) -> Tensor:
    """(K,) of all rows, in their order."""
    parts: list[Tensor] = []
    rows, done = sum(len(unit) for unit in units), 0
    for group in micro_batches(units, run.micro_batch_tokens):
        batch = build_batch(group).to(run.device)
        parts.append(no_grad_logprobs(run.models.reference, batch).float().cpu())
        done += batch.row_count
        progress.update(done, rows)
    return torch.cat(parts)


def _told(units: Sequence[Unit], values_K: Tensor) -> Iterator[Unit]:
    """The units with their part of the values."""
    at = 0
    for unit in units:
        rows: list[Row] = []
        for row in unit:
            end = at + row.trained_tokens
            rows.append(row.telling({REFERENCE: values_K[at:end].tolist()}))
            at = end
        yield tuple(rows)


def _read(path: Path, fingerprint: str, counts: dict[str, int]) -> dict[str, Tensor] | None:
    """What was kept by this training; None if there is nothing, or it is of another one or damaged."""
    values = kept_tensors.read(path, fingerprint)
    return values if values is not None and {name: len(value) for name, value in values.items()} == counts else None
