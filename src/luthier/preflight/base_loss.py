"""Training starts where the base model stands.

With a fresh adapter the loss before step 1 is the base model's own. If it is not, the adapter changes the model before
it has learned anything, the mask or the targets are off, or dropout is on where it should not be.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from luthier.adapters.base import Injected
from luthier.examples import Row
from luthier.objectives.sft import SFT
from luthier.preflight._probe import (
    differences,
    evaluating,
    in_float32,
    score_probe,
    scored,
    scored_alone,
    tolerance,
)
from luthier.preflight.base import Gate, GateResult, Stage, Subject


class BaseLoss(Gate):
    """The loss at step 0, with the adapter in, is the base model's loss, computed apart."""

    proves: ClassVar[str] = (
        "Before step 1 the loss with the adapter is the loss of the base model, computed in a plain way."
    )
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = (
        "The adapter or the loss is not what it should be at step 0; please report adapter and model."
    )

    def check(self, subject: Subject) -> GateResult:
        """Weighted negative log-likelihood in float32: by the engine's path, and row by row on the base alone."""
        loaded, models = subject.need_model(), subject.need_models()
        probe = score_probe(subject)
        if probe is None:
            return self.fails("There is no row with a trained token to score.")
        rows, batch, found = probe.rows, probe.batch, probe.logprobs
        with torch.no_grad(), evaluating(loaded.model), in_float32():
            total = float(subject.objective.loss(models, batch).total) if isinstance(subject.objective, SFT) else None
        injected = subject.need_injected()
        with _base(injected):
            wanted = scored_alone(loaded, rows)
            if not injected.starts_as_base:  # what is to be shown is that it can be taken off
                total = None
                with evaluating(loaded.model), in_float32():
                    found = scored(models.policy, batch)
        mine = _weighted(rows, found) if total is None else total / _weight(rows)
        base = _weighted(rows, wanted)
        largest, mean = differences(found, wanted)
        allowed = tolerance(loaded.dtype)
        details = {"loss": mine, "base_loss": base, "largest_difference": largest, "allowed": allowed.mean}
        said = f"The loss is {mine:.4f}, the base model's {base:.4f}; tokens differ by at most {largest:.2g} nats."
        # Written so that a NaN fails.
        fits = abs(mine - base) <= allowed.mean and largest <= allowed.largest and mean <= allowed.mean
        return self.passes(said, **details) if fits else self.fails(said, **details)


def _base(injected: Injected) -> AbstractContextManager[None]:
    """The base model; with full fine-tuning, before step 1, that is the model as it is."""
    try:
        return injected.disabled()
    except NotImplementedError:
        return nullcontext()


def _weights(row: Row) -> list[float]:
    return [weight for weight in row.loss_mask[1:] if weight]


def _weight(rows: list[Row]) -> float:
    return sum(sum(_weights(row)) for row in rows)


def _weighted(rows: list[Row], logprobs: list[Tensor]) -> float:
    """The loss of all rows, a mean over the weights of their trained tokens."""
    total = sum(
        -weight * float(value)
        for row, values in zip(rows, logprobs, strict=True)
        for weight, value in zip(_weights(row), values, strict=True)
    )
    return total / _weight(rows)
