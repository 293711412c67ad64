"""A process reward: whether each step of a reply is right (Lightman et al. 2023, arXiv:2305.20050).

A head over the hidden state of each step's last token gives one number s, and the step is right with probability
sigmoid(s):

    loss = - y log sigmoid(s) - (1 - y) log sigmoid(-s)        y in [0, 1]: the step's label        weight: steps

Where the tokenizer writes a step's end and the line break after it as one token, that token is its last. A step is read
before the token that follows it, so that the last step's number knows nothing of the end of the turn. With a head of
zeros the loss begins at ln 2. Left out: a token of its own between steps (TRL's `step_separator`), since a model that
is served would have to write it.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch.nn.functional as F

from luthier.data.steps import SEPARATOR, steps_and_labels
from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives.base import Loss, Mean, Models, Objective, in_float64
from luthier.objectives.reward import scored_row

KIND = "process_reward"
"""Of the head."""


def ends_of(steps: Sequence[str]) -> list[int]:
    """Where each step ends in the text of all of them."""
    ends, at = [], -len(SEPARATOR)
    for step in steps:
        at += len(SEPARATOR) + len(step)
        ends.append(at)
    return ends


def line_ends(text: str) -> list[int]:
    """Where the steps of a reply without labels end: its lines that say something."""
    lines = text.split(SEPARATOR)
    return [end for line, end in zip(lines, ends_of(lines), strict=True) if line.strip()]


def stepwise_row(
    template: Template, conversation: Conversation, ends: Sequence[int], labels: Sequence[float] | None = None
) -> Row:
    """The row of a conversation whose last message has steps that end there.

    `token_values`: `step` is 1 at each token that follows a step, 0 elsewhere; `label` is the step's there.

    Raises:
        TemplateError: the template refuses a message.
    """
    *history, reply = conversation.messages
    whole = copy.copy(template)
    whole.max_tokens = None  # where a step ends is told from its neighbors, not from where a row was cut
    row = scored_row(whole, conversation, (reply,))
    step, label = [0.0] * len(row.ids), [0.0] * len(row.ids)
    for number, end in enumerate(ends):
        begun = replace(reply, content=reply.content[:end])
        alone = scored_row(whole, replace(conversation, messages=(*history, begun)), (begun,))
        shared = next((i for i, (a, b) in enumerate(zip(row.ids, alone.ids, strict=False)) if a != b), len(alone.ids))
        turn_end = len(alone.ids) - 1
        follows = turn_end if shared >= turn_end else shared + 1
        step[follows], label[follows] = 1.0, 0.0 if labels is None else labels[number]
    row = replace(row, token_values={"step": tuple(step), "label": tuple(label)})
    return row if template.max_tokens is None else row.first(template.max_tokens)


class ProcessReward(Objective):
    """Learn whether each step of a reply is right."""

    accepts: ClassVar[tuple[type, ...]] = (Conversation,)
    rate_factor: ClassVar[float] = 0.5

    head_start: Literal["normal", "zeros"] = "normal"
    """How the head begins: drawn from N(0, 1 / (width + 1)), or at zeros."""

    def head(self) -> HeadShape:
        """One number for a step."""
        return HeadShape(KIND, start=self.head_start)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """One row, which carries the steps' labels.

        Raises:
            DataError: the example has no judged steps, or the template writes nothing after the last one.
        """
        judged = steps_and_labels(example)
        if judged is None or not isinstance(example, Conversation):
            at = example.where
            raise DataError(
                'process_reward needs judged steps: rows {"prompt", "completions", "labels"}', at.path, at.line, at.row
            )
        steps, labels = judged
        if template.end_of_turn_id is None:
            raise DataError(
                f"template {template.name!r} writes no token after a reply, before which its last step could be read; "
                "choose another model.template"
            )
        return (stepwise_row(template, example, ends_of(steps), labels),)

    def weight(self, batch: Batch) -> float:
        """Number of steps."""
        return float(in_float64(batch.values_K["step"]).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed cross-entropy of the steps."""
        is_step_K = batch.values_K["step"] > 0
        score_T = models.policy.head_values(batch).tokens_KO[is_step_K, 0]
        label_T = batch.values_K["label"][is_step_K].to(score_T.dtype)
        losses_T = F.binary_cross_entropy_with_logits(score_T, label_T, reduction="none")
        said_T = (score_T > 0).float() + 0.5 * (score_T == 0).float()
        return Loss(
            losses_T.sum(),
            {
                "loss": Mean.of(losses_T),
                # of a label between 0 and 1 the likelier side counts; a tie of either is half right
                "accuracy": Mean.of(1 - (said_T - (label_T > 0.5).float() - 0.5 * (label_T == 0.5).float()).abs()),
                "right_steps": Mean.of(label_T),
            },
        )
