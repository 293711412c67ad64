"""Scoring rows in a second, plain way, and moving an adapter a little so that its effect can be seen.

The plain way is one ordinary call of the model for each row: its own attention, no forest, no sharing. What the engine
computes is compared with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.adapters.base import Injected
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives.base import Scorer
from luthier.preflight._cases import spread
from luthier.preflight.base import Subject

PROBE_ROWS = 8
PROBE_TOKENS = 1024
NUDGE = 0.02


@dataclass(frozen=True)
class Tolerance:
    """How far two ways of computing the same log-probability may differ, in nats."""

    largest: float
    mean: float


# Float32 differs by the order of additions. Bfloat16 keeps 8 bits, so a logit of 20 is known to 0.06 to 0.12; single
# tokens stray, the mean hardly does. Measured values stand in docs/preflight.md.
TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-10),
    torch.float32: Tolerance(5e-4, 5e-5),
    torch.bfloat16: Tolerance(0.75, 0.08),
    torch.float16: Tolerance(0.1, 0.01),
}


def tolerance(dtype: torch.dtype) -> Tolerance:
    """The tolerance for a model that computes in `dtype`; an unknown type is held to float32's."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32])


def probe_rows(subject: Subject) -> list[Row]:
    """Up to 8 real rows, spread over the file, of at most 1,024 tokens together; a longer one ends early.

    Every row keeps a trained token; one whose first trained token lies too far on is left out.
    """
    chosen: list[Row] = []
    left = PROBE_TOKENS
    for row in spread(subject.trained_rows, PROBE_ROWS):
        room = max(left // (PROBE_ROWS - len(chosen)), 1)
        first = next(i for i, weight in enumerate(row.loss_mask) if weight and i > 0)
        length = min(len(row.ids), max(room, first + 1))
        if length > left:
            continue
        chosen.append(Row(row.ids[:length], row.loss_mask[:length], row.id))
        left -= length
    if not chosen and subject.trained_rows:  # every row is longer than the budget: one row costs what it costs
        chosen = [min(subject.trained_rows, key=lambda row: len(row.ids))]
    return chosen


@contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """No dropout while open (with `training`, as in a step); every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def plain_logprobs(model: Any, row: Row, device: torch.device) -> Tensor:
    """(k,) float32 log-probabilities of the trained tokens of one row, by one plain call of the model."""
    trained = [i for i, weight in enumerate(row.loss_mask) if weight and i > 0]
    ids = torch.tensor(row.ids, device=device)
    out = model(input_ids=ids[None], use_cache=False, logits_to_keep=torch.tensor(trained, device=device) - 1)
    logits: Tensor = out.logits[0]
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return -F.cross_entropy(logits.to(kind), ids[trained], reduction="none").cpu()


@torch.no_grad()
def scored(scorer: Scorer, batch: Batch) -> list[Tensor]:
    """The log-probabilities of each row of the batch, as the engine computes them, on the CPU."""
    logprobs_K = scorer.token_logprobs(batch).detach().cpu()
    rows = batch.row_K.cpu()
    return [logprobs_K[rows == index] for index in range(batch.row_count)]


@dataclass(frozen=True)
class Scored:
    """The probe rows, the batch they make, and each row's log-probabilities by the engine's path, without dropout."""

    rows: list[Row]
    batch: Batch
    logprobs: list[Tensor]


def score_probe(subject: Subject) -> Scored | None:
    """Score the probe rows once for all gates; None if there is no row with a trained token."""
    rows, cast = probe_rows(subject), subject.need_models()
    if not rows:
        return None
    key = (id(cast.policy), id(subject.batches), id(subject.loaded))
    if key not in subject.memo:
        loaded = subject.need_model()
        batch = subject.batches.build(rows).to(loaded.device)
        with evaluating(loaded.model):
            subject.memo[key] = Scored(rows, batch, scored(cast.policy, batch))
    found: Scored = subject.memo[key]
    return found


def differences(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """(largest, mean) absolute difference; infinite where shapes differ or a value is not finite."""
    if any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return float("inf"), float("inf")
    delta = torch.cat([(a.double() - b.double()).abs() for a, b in zip(found, wanted, strict=True)])
    if not bool(torch.isfinite(delta).all()):
        return float("inf"), float("inf")
    return float(delta.max()), float(delta.mean())


@contextmanager
def nudged(injected: Injected) -> Iterator[None]:
    """Move the adapter while open, so that it changes the model; afterwards every bit is as before.

    A fresh adapter does nothing because some of its tensors are all 0 (LoRA's B): those are moved. If there are none
    (full fine-tuning), the smallest tensor is.
    """
    tensors = dict(injected.trainable)
    chosen = [p for p in tensors.values() if not bool(p.any())] or [min(tensors.values(), key=lambda p: p.numel())]
    before = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in chosen:
            p.add_((NUDGE * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(chosen, before, strict=True):
                p.copy_(old)
