"""On-policy distillation: the student writes, and a teacher says at each token what it would have expected there.

    loss = sum over sampled tokens of D(teacher, student)        weight = their number

This is generalized knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649). D is a divergence between the
probabilities of both at the temperature of the sampling; nothing flows through which tokens were drawn, as there. A
student learns where its own replies go wrong, which given replies never show it; no grader is needed. Left out:
`lambda`, the share of given replies among the sampled ones (here there are none): train with `distill` first and go on
from that run (`adapter.start_from`).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.objectives._online import reply_metrics, trained_tokens
from luthier.objectives._taught import TaughtSettings
from luthier.objectives.base import Lesson, Loss, Mean, Memory, Models, OnlineObjective, Reply, no_grad_logprobs


class GKD(TaughtSettings, OnlineObjective):
    """Learn from what a teacher expects in one's own replies."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation,)
    needs_rewards: ClassVar[bool] = False

    def lesson(self) -> Lesson:
        """The likeliest tokens, at the temperature of the sampling."""
        return Lesson(self.top_k)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The reference reply as it would be trained on: what the gates look at before anything is sampled."""
        if not isinstance(example, Conversation):
            at = example.where
            raise DataError("gkd asks prompts and samples replies; a row must be a chat", at.path, at.line, at.row)
        return template.rows(example)

    def measure(self, models: Models, batch: Batch) -> Mapping[str, Tensor]:
        """The policy's log-probabilities, by which the sampler's are checked."""
        return {"old_logprob": no_grad_logprobs(models.policy, batch)}

    def credit(self, replies: Sequence[Reply], memory: Memory) -> list[Row]:
        """The rows as they are: what they are worth says the teacher."""
        return [reply.row for reply in replies]

    def weight(self, batch: Batch) -> float:
        """Number of sampled tokens."""
        return trained_tokens(batch)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed divergence from the teacher."""
        distance_K = self.distance(models.policy.logits(batch), batch, models.told(batch)) * batch.loss_mask_K
        total = distance_K.sum()
        found = Mean(float(total.detach()), self.weight(batch))
        return Loss(total, {**reply_metrics(batch), "loss": found, "divergence": found})
