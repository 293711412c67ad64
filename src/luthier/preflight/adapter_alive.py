"""Every trained tensor can change what the model says.

An adapter may be listed, stepped and saved, and still be left out of the computation. One backward pass on real rows,
with the adapter moved off its start, must give each of its tensors a gradient, and must move the scores; a head beside
it must move what it reads.
"""

from typing import ClassVar

import torch
from torch import Tensor

from luthier.adapters.base import Injected
from luthier.models.forest import Batch
from luthier.objectives.base import Policy
from luthier.preflight._probe import evaluating, nudged, probe_rows
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ROWS = 2


class AdapterAlive(Gate):
    """A gradient reaches each trained tensor, and the scores depend on them."""

    proves: ClassVar[str] = (
        "Every trained tensor gets a gradient from real rows, and moving them moves the model's scores."
    )
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "The forward pass leaves these tensors out; please report adapter and model."

    def check(self, subject: Subject) -> GateResult:
        """Score, move the adapter, score again with gradients, move it back; no tensor or gradient is left changed."""
        loaded, scorer, injected = subject.need_model(), subject.need_models().policy, subject.need_injected()
        rows = sorted(probe_rows(subject), key=lambda row: len(row.ids))[:ROWS]
        tensors = dict(injected.trainable)
        if not rows or not tensors:
            return self.fails("There is no row with a trained token, or no trained tensor.")
        batch = subject.batches.build(rows).to(loaded.device)
        with evaluating(loaded.model):
            with torch.no_grad():
                before = _numbers(scorer, batch, injected)
            with nudged(injected):
                after = _numbers(scorer, batch, injected)
                if not after[0].requires_grad:
                    return self.fails("No gradient flows from the scores to any trained tensor.", tensors=len(tensors))
                # returned, not accumulated: the engine's own gradients stay as they are
                total = torch.stack([numbers.sum() for numbers in after]).sum()
                grads = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
        dead = [name for name, g in zip(tensors, grads, strict=True) if g is None or not bool(g.any())]
        broken = [
            name for name, g in zip(tensors, grads, strict=True) if g is not None and not bool(g.isfinite().all())
        ]
        what = ("moving the adapter changed no score", "moving the head changed nothing that it reads")
        faults = [
            Fault("", said) for said, a, b in zip(what, before, after, strict=False) if torch.equal(a, b.detach())
        ]
        faults += [Fault("", f"{name} gets no gradient") for name in dead]
        faults += [Fault("", f"{name} gets a gradient that is not finite") for name in broken]
        return self.judge(
            faults, f"All {len(tensors):,} trained tensors get a gradient and have an effect.", dead=len(dead)
        )


def _numbers(scorer: Policy, batch: Batch, injected: Injected) -> list[Tensor]:
    """The log-probabilities, and what the head reads at the rows' ends if there is one."""
    if injected.head is None:
        return [scorer.token_logprobs(batch)]
    logprobs_K, values = scorer.logprobs_and_values(batch)
    return [logprobs_K, values.rows_RO]
