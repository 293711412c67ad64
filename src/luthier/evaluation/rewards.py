"""What a trained head says of replies: a reward for each, or for each of its steps.

The one path by which evaluation, server, graders and training read a reward model. A reply is rendered as it was in
training and read at the end of its last turn; the batch is a forest, so what replies share is computed once, and what
else is in the batch changes nothing.

Rewards are told normalized, `(r - mean) / std`, by what the head keeps of the rows that it was validated on, so that 0
is an ordinary reply and numbers of several models may be compared; a process reward is the probability that a step is
right, and that of the reply the smallest of its steps' (Lightman et al. 2023, arXiv:2305.20050).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.source import micro_batches
from luthier.data.steps import steps_and_labels
from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.examples import NOWHERE, Conversation, Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives import process_reward, reward

MOST_TOKENS = 4096
"""Read at once, which bounds memory; a longer reply is read by itself."""
KINDS = frozenset({reward.KIND, process_reward.KIND})
"""Of heads that judge replies."""


@dataclass(frozen=True)
class Judgement:
    """What a head says of one reply."""

    reward: float
    """Normalized; of judged steps the smallest probability that one is right."""
    raw: float
    """As the head reads it; of judged steps the smallest."""
    steps: tuple[float, ...] | None = None
    """Probability that each step is right; None where the whole reply is judged."""


class RewardModel:
    """A model with a head that judges replies, in whatever state its adapter is."""

    def __init__(self, loaded: LoadedModel, template: Template, head: Head | None) -> None:
        """
        Raises:
            EvaluationError: there is no head, or one that judges no replies.
        """
        if head is None or head.shape.kind not in KINDS:
            found = "no head" if head is None else f"a head of kind {head.shape.kind!r}"
            raise EvaluationError(
                f"the model has {found}, and rewards are read by one that `objective.type` reward or process_reward "
                "trains"
            )
        self.loaded, self.head = loaded, head
        self.template = copy.copy(template)
        self.template.max_tokens = None  # a reply that is cut off would be judged by its middle
        self._scorer = Scorer(loaded.model, head=head)

    @property
    def judges_steps(self) -> bool:
        """Whether it reads each step of a reply."""
        return self.head.shape.kind == process_reward.KIND

    def judge(
        self,
        conversations: Sequence[Conversation],
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[Judgement]:
        """What the head says of each conversation's last message.

        Raises:
            EvaluationError: a conversation does not end with the assistant's turn, has no step, or does not fit into
                the model's context.
            TemplateError: the template refuses a message.
        """
        rows = [self.row(conversation) for conversation in conversations]
        found: list[Judgement] = []
        start = 0
        for group in micro_batches([(row,) for row in rows], MOST_TOKENS):
            found += self.read(group)
            start += len(group)
            on_progress(start, len(rows))
        return found

    def row(self, conversation: Conversation) -> Row:
        """What is read of a conversation; raises as `judge`."""
        reply = conversation.messages[-1] if conversation.messages else None
        name = conversation.id or "the conversation"
        name += "" if conversation.where == NOWHERE else f" ({conversation.where})"
        if reply is None or reply.role != "assistant":
            role = "nothing" if reply is None else f"a {reply.role} message"
            raise EvaluationError(f"{name} ends with {role}; a reward is that of the assistant's reply at its end")
        if self.judges_steps:
            judged = steps_and_labels(conversation)
            ends = process_reward.ends_of(judged[0]) if judged else process_reward.line_ends(reply.content)
            if not ends:
                raise EvaluationError(
                    f"{name}: the reply has no line that says something, so there is no step to judge"
                )
            row = process_reward.stepwise_row(self.template, conversation, ends)
        else:
            row = reward.scored_row(self.template, conversation, (reply,))
        if len(row.ids) > self.loaded.max_tokens:
            raise EvaluationError(
                f"{name} has {len(row.ids)} tokens, and the model's context ends at {self.loaded.max_tokens}"
            )
        return row

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[Judgement]:
        """What the head says of rows, all of them at once."""
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            values = self._scorer.head_values(batch)
        if not self.judges_steps:
            told_R = self.head.normal(values.rows_RO)[:, 0].tolist()
            return [Judgement(told, raw) for told, raw in zip(told_R, values.rows_RO[:, 0].tolist(), strict=True)]
        is_step_K = batch.values_K["step"] > 0
        score_K = values.tokens_KO[:, 0]
        return [_of_steps(score_K[is_step_K & (batch.row_K == index)]) for index in range(batch.row_count)]


def _of_steps(score_T: Tensor) -> Judgement:
    right = score_T.sigmoid().tolist()
    return Judgement(min(right), float(score_T.min()), tuple(right))


def judge_of(loaded: LoadedModel, template: Template, head: Head | None) -> RewardModel | None:
    """The reward model that this is; None where it is none."""
    return None if head is None or head.shape.kind not in KINDS else RewardModel(loaded, template, head)
