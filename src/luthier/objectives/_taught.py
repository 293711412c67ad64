"""What objectives share that learn from a teacher: which divergence, over how many of its tokens.

Shapes: K trained-on tokens over all rows; B tokens that the teacher thinks likeliest, and one bucket for all others.
Merging the others can only lower a divergence, so what is minimized is a lower bound of it over the whole vocabulary,
and is it where B is the vocabulary.
"""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from luthier.config import Settings
from luthier.errors import RecipeError
from luthier.models.forest import Batch
from luthier.models.kernels.buckets import bucket_logprobs
from luthier.objectives._divergences import Divergence, divergence
from luthier.objectives.base import Told


class TaughtSettings(Settings):
    """Which divergence from the teacher is lowered."""

    divergence: Divergence = "forward_kl"
    """`forward_kl`: cover all that the teacher may say. `reverse_kl`: say only what it may say. `js`: between both.
    `skew_kl`, `skew_reverse_kl`: the same, from a mixture of both models, whose gradients are steadier."""
    beta: float = Field(0.5, gt=0, lt=1)
    """Of `js`: near 0 it behaves like `forward_kl`, near 1 like `reverse_kl`."""
    skew: float = Field(0.1, ge=0, lt=1)
    """Of `skew_kl` and `skew_reverse_kl`: the share of the mixture that is the model's own; 0: no mixture."""
    top_k: int = Field(64, ge=1)
    """Tokens of the teacher that are compared one by one; all others count as one."""

    @model_validator(mode="after")
    def _refuse_what_is_ignored(self) -> Self:
        for name, kinds in (("beta", ("js",)), ("skew", ("skew_kl", "skew_reverse_kl"))):
            if self.divergence not in kinds and self.model_dump()[name] != type(self).model_fields[name].default:
                raise RecipeError(
                    f"objective.{name} changes nothing with objective.divergence = {self.divergence!r}; leave it out, "
                    f"or choose {' or '.join(map(repr, kinds))}"
                )
        return self

    def distance(self, logits_HV: Tensor, batch: Batch, told: Told) -> Tensor:
        """(K,) from what the teacher told, with the graph of the logits."""
        student_KB = bucket_logprobs(logits_HV, batch.hidden_K, told.ids_KB)
        return divergence(self.divergence, told.logprobs_KB, student_KB, self.beta, self.skew)
