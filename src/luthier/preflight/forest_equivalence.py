"""The batch that the engine runs gives what the rows give one by one.

Packing and shared prefixes save most of the work and are exact, if attention, positions and targets are. Here that is
shown on this model and real rows, against plain calls of the model. Both are computed in float32 whatever the weights
are held in: the rounding of bfloat16 is as large as a fault may be.
"""

from typing import ClassVar

from luthier.preflight._probe import differences, score_probe, scored_alone, tolerance
from luthier.preflight.base import Gate, GateResult, Stage, Subject


class ForestEquivalence(Gate):
    """Token log-probabilities of the forest equal those of the rows one by one."""

    proves: ClassVar[str] = "On this model, rows scored together in a forest score as they do one by one."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "This model's attention or positions do not fit the forest; please report the model's name."

    def check(self, subject: Subject) -> GateResult:
        """Score up to 8 rows both ways, with the adapter as it is, and compare every trained token."""
        loaded, probe = subject.need_model(), score_probe(subject)
        if probe is None:
            return self.fails("There is no row with a trained token to score.")
        rows, batch = probe.rows, probe.batch
        largest, mean = differences(probe.logprobs, scored_alone(loaded, rows))
        allowed = tolerance(loaded.dtype)
        held, counted = len(batch.forest.ids_N), batch.logical_tokens
        details = {
            "rows": len(rows),
            "tokens": counted,
            "tokens_computed": held,
            "largest_difference": largest,
            "mean_difference": mean,
            "allowed_largest": allowed.largest,
            "allowed_mean": allowed.mean,
            "held_in": str(loaded.dtype),
        }
        said = (
            f"{len(rows)} rows, {counted:,} tokens ({held:,} computed): log-probabilities differ by at most "
            f"{largest:.2g} nats, on average by {mean:.2g} (allowed: {allowed.largest:g} and {allowed.mean:g})."
        )
        # Written so that a NaN fails.
        fits = largest <= allowed.largest and mean <= allowed.mean
        return self.passes(said, **details) if fits else self.fails(said, **details)
