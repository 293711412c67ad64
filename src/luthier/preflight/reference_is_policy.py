"""At step 0 the policy is its reference, and the reference stays where it is when the policy moves.

For preference learning all margins are then 0 and the loss is a known number, ln 2 for the sigmoid. A reference with
the adapter left on passes that test and follows the policy for ever after; so the adapter is moved, and the reference
must not be.
"""

from typing import ClassVar

import torch

from luthier.preflight._probe import differences, evaluating, in_float32, nudged, probe_rows, same, scored, tolerance
from luthier.preflight.base import Gate, GateResult, Stage, Subject

LOSS_TOLERANCE = 1e-4


class ReferenceIsPolicy(Gate):
    """The reference equals the policy before step 1, and does not follow it."""

    proves: ClassVar[str] = (
        "Before step 1 the reference scores as the policy does, and it does not move when the policy moves."
    )
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = (
        "The reference must be the model before training: no dropout (adapter.dropout = 0) and no adapter in it."
    )

    def check(self, subject: Subject) -> GateResult:
        """Score real rows with both in the mode of training, then again with the adapter moved."""
        if not subject.objective.uses_reference:
            return self.passes("This objective has no reference.")
        loaded, models = subject.need_model(), subject.need_models()
        if models.reference is None:
            return self.fails("The objective needs a reference and was given none.")
        rows = probe_rows(subject)
        rows = rows[: len(rows) // 2 * 2] or rows * 2  # a pair objective takes rows two by two
        if not rows:
            return self.fails("There is no row with a trained token to score.")
        batch = subject.batches.build(rows).to(loaded.device)
        with evaluating(loaded.model, training=True), in_float32():
            policy, reference = scored(models.policy, batch), scored(models.reference, batch)
            with torch.no_grad():
                (batch,) = subject.objective.whole_step(models, [batch], {})
                loss = subject.objective.loss(models, batch)
            with nudged(subject.need_injected()):
                moved, held = scored(models.policy, batch), scored(models.reference, batch)
                again = scored(models.policy, batch)
        largest, mean = differences(policy, reference)
        weight = subject.objective.weight(batch)
        details = {"largest_difference": largest, "mean_difference": mean, "loss": float(loss.total) / weight}
        problems = []
        allowed = tolerance(loaded.dtype)
        if not (largest <= allowed.largest and mean <= allowed.mean):
            problems.append(f"policy and reference differ by up to {largest:.2g} nats before anything was trained.")
        expected = subject.objective.loss_at_start()
        if expected is not None and not abs(details["loss"] - expected) <= LOSS_TOLERANCE * max(1.0, expected):
            problems.append(f"the loss at step 0 is {details['loss']:.4f}, expected {expected:.4f}.")
        if not same(reference, held):
            problems.append("the reference moved when the adapter was moved: the adapter is on in it.")
        if same(policy, moved):
            problems.append("the policy did not move when the adapter was moved.")
        if not same(moved, again):  # dropout inside the adapter shows only once the adapter does something
            problems.append("two passes of the policy over the same rows differ: dropout is on in it.")
        said = f"Policy and reference differ by at most {largest:.2g} nats; the loss is {details['loss']:.4f}."
        return self.fails(" ".join(problems), **details) if problems else self.passes(said, **details)
