"""The gradient of a forest is the gradient of its rows, and a batch that is cut in two has the gradient of the whole.

A backward pass can be wrong where the forward pass is right, and a loss can be averaged where it should be summed; in
both cases every score is right, the loss falls, and what is learned depends on how rows were packed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import ClassVar

import torch
from torch import Tensor

from luthier.examples import Row
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.preflight._probe import evaluating, in_float32, nudged, plain_logprobs, plain_value, probe_rows
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ROWS = 4
ALLOWED = 1e-3
"""Largest difference of a tensor's gradient, as a share of the gradient's norm."""
FLOOR = 1e-3
"""Gradients below this share of the largest one are rounding: they are compared with it instead of with themselves."""


class GradientEquivalence(Gate):
    """Packing and accumulation change no gradient."""

    proves: ClassVar[str] = "A forest has the gradient of its rows one by one, and two micro-batches that of one batch."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = (
        "The backward pass or the loss depends on how rows are packed; please report the model's name."
    )

    def check(self, subject: Subject) -> GateResult:
        """Compare gradients of a few short rows in float32, with the adapter moved off its start, where some are 0."""
        loaded, tensors = subject.need_model(), dict(subject.need_injected().trainable)
        rows = sorted(probe_rows(subject), key=lambda row: len(row.ids))
        rows = list(islice(cycle(rows), ROWS))  # a pair objective takes rows two by two, and each half needs a pair
        if not rows or not tensors:
            return self.fails("There is no row with a trained token, or no trained tensor.")
        if subject.objective.uses_reference and subject.need_models().reference is None:
            return self.fails("The objective needs a reference and was given none.")
        held = list(tensors.values())
        with evaluating(loaded.model), in_float32(), nudged(subject.need_injected()):
            off = {
                "rows one by one": _differences(
                    _gradient(_packed(subject, rows), held), _gradient(_one_by_one(loaded, rows), held)
                ),
                "micro-batches": _differences(
                    _gradient(_losses(subject, rows, ROWS), held), _gradient(_losses(subject, rows, ROWS // 2), held)
                ),
            }
            if (head := subject.need_injected().head) is not None:
                off["the values of rows one by one"] = _differences(
                    _gradient(_values(subject, rows), held), _gradient(_values_alone(loaded, head, rows), held)
                )
        faults = [
            Fault("", f"the gradient of {name} is off by {value:.2g} of its norm from that of {what}")
            for what, values in off.items()
            for name, value in zip(tensors, values, strict=True)
            if not value <= ALLOWED  # written so that a NaN fails
        ]
        worst = {what: max(values) for what, values in off.items()}
        told = " and ".join(f"{value:.1g} from that of {what}" for what, value in worst.items())
        said = (
            f"The gradients of {len(tensors):,} tensors are off by at most {told} (allowed: {ALLOWED:g} of the norm)."
        )
        return self.judge(faults, said, **worst, allowed=ALLOWED)


def _packed(subject: Subject, rows: Sequence[Row]) -> Iterator[Tensor]:
    """The log-probability of all rows, from one forest."""
    batch = subject.batches.build(rows).to(subject.need_model().device)
    yield subject.need_models().policy.token_logprobs(batch).sum()


def _one_by_one(loaded: LoadedModel, rows: Sequence[Row]) -> Iterator[Tensor]:
    """The log-probability of each row, from a plain call of the model."""
    for row in rows:
        yield plain_logprobs(loaded.model, row, loaded.device).sum()


def _values(subject: Subject, rows: Sequence[Row]) -> Iterator[Tensor]:
    """What the head reads at the end of all rows, from one forest."""
    batch = subject.batches.build(rows).to(subject.need_model().device)
    yield subject.need_models().policy.head_values(batch).rows_RO.sum()


def _values_alone(loaded: LoadedModel, head: Head, rows: Sequence[Row]) -> Iterator[Tensor]:
    """What it reads at the end of each row, from a plain call of the model."""
    for row in rows:
        yield plain_value(loaded.model, head, row, loaded.device).sum()


def _losses(subject: Subject, rows: Sequence[Row], size: int) -> Iterator[Tensor]:
    """The loss of each micro-batch of `size` rows of a step, as the engine sums it."""
    device, models = subject.need_model().device, subject.need_models()
    batches = [subject.batches.build(rows[start : start + size]).to(device) for start in range(0, len(rows), size)]
    with torch.no_grad():
        batches = list(subject.objective.whole_step(models, batches, {}))
    for batch in batches:
        yield subject.objective.loss(models, batch).total


def _gradient(totals: Iterable[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the sum of `totals`; it is returned, not accumulated: the engine's own stay as they are."""
    summed = [torch.zeros_like(t) for t in tensors]
    for total in totals:
        if total.requires_grad:  # that none flows at all is told by `adapter_alive`
            for mine, found in zip(summed, torch.autograd.grad(total, tensors, allow_unused=True), strict=True):
                mine += 0.0 if found is None else found
    return summed


def _differences(whole: Sequence[Tensor], parts: Sequence[Tensor]) -> list[float]:
    """For each tensor the norm of the difference as a share of the gradient's; a NaN stays one."""
    norms = [float(p.norm()) for p in parts]
    floor = FLOOR * max(norms) or 1.0
    return [float((a - b).norm()) / max(n, floor) for a, b, n in zip(whole, parts, norms, strict=True)]
