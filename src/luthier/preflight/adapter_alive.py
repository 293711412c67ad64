"""Every trained tensor can change what the model says.

An adapter may be listed, stepped and saved, and still be left out of the computation. One backward pass on real rows,
with the adapter moved off its start, must give each of its tensors a gradient, and must move the scores.
"""

from typing import ClassVar

import torch

from luthier.preflight._probe import evaluating, nudged, probe_rows, same, scored
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
            before = scored(scorer, batch)
            with nudged(injected):
                logprobs_K = scorer.token_logprobs(batch)
                if not logprobs_K.requires_grad:
                    return self.fails("No gradient flows from the scores to any trained tensor.", tensors=len(tensors))
                # returned, not accumulated: the engine's own gradients stay as they are
                grads = torch.autograd.grad(logprobs_K.sum(), list(tensors.values()), allow_unused=True)
                rows_K = batch.row_K
                after = [logprobs_K.detach()[rows_K == i].cpu() for i in range(batch.row_count)]
        unmoved = same(before, after)
        dead = [name for name, g in zip(tensors, grads, strict=True) if g is None or not bool(g.any())]
        broken = [
            name for name, g in zip(tensors, grads, strict=True) if g is not None and not bool(g.isfinite().all())
        ]
        faults = [Fault("", "moving the adapter changed no score")] if unmoved else []
        faults += [Fault("", f"{name} gets no gradient") for name in dead]
        faults += [Fault("", f"{name} gets a gradient that is not finite") for name in broken]
        return self.judge(
            faults, f"All {len(tensors):,} trained tensors get a gradient and have an effect.", dead=len(dead)
        )
