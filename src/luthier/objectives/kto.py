"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306): replies that were liked, or were not.

    reward = log pi(y|x) - log ref(y|x)        baseline = max(0, mean over the step of log pi(y'|x) - log ref(y'|x))
    loss = weight * (1 - sigmoid(beta * (reward - baseline)))   if y is good
           weight * (1 - sigmoid(beta * (baseline - reward)))   if it is not

y' is a reply to another prompt than x, so the baseline stands for KL(pi || ref); no gradient goes through it. It is
taken over all rows of a step before any of its losses, so how the step is cut up cannot change it: rows in the order of
their ids, each with the reply of the next one that has another prompt. As in the paper it is a rough estimate: from as
many replies as a step has rows, none of which the policy wrote. A step whose rows all have one prompt has no mismatched
reply: its baseline is 0. A mismatched row is cut where rows are, since a long prompt and another's reply may be too
long for the model. Validation is one step. Shapes: R rows; K trained-on tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.data.templates import Template
from luthier.examples import Example, Judged, Preference, Row
from luthier.models.forest import Batch, build_batch
from luthier.objectives._judged import judged_rows, reward_metrics, weighed
from luthier.objectives.base import (
    Loss,
    Mean,
    Memory,
    Models,
    Objective,
    in_float64,
    no_grad_logprobs,
    reference_logprobs,
    with_value,
)

BASELINE, LIMIT = "baseline", "limit"


class KTO(Objective):
    """Learn from single replies that were good or bad, and from pairs as two of them."""

    accepts: ClassVar[tuple[type, ...]] = (Judged, Preference)
    rate_factor: ClassVar[float] = 0.1
    least_per_step: ClassVar[int] = 2

    beta: float = Field(0.1, gt=0)
    """Pull towards the reference model: higher stays closer; 0.01 to 0.5 in the paper."""
    penalty: Literal["kto", "apo_zero"] = "kto"
    """`apo_zero` measures from 0 instead of the baseline (APO; TRL: `apo_zero_unpaired`) and saves its pass."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of a good reply; good rows times this over bad rows times theirs should be 1 to 4/3."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of a bad reply."""

    @property
    def uses_reference(self) -> bool:
        """Always."""
        return True

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """A row for each judged reply, with only the reply trained on."""
        rows = judged_rows(example, template, "kto")
        if template.max_tokens is None:
            return rows
        return tuple(replace(row, values={**row.values, LIMIT: float(template.max_tokens)}) for row in rows)

    def weight(self, batch: Batch) -> float:
        """Number of replies."""
        return float(batch.row_count)

    def whole_step(self, models: Models, batches: Iterable[Batch], memory: Memory) -> Iterable[Batch]:
        """The baseline of the step."""
        if self.penalty == "apo_zero":
            return batches
        batches = list(batches)
        gains = list(_mismatched_gains(models, batches))
        baseline = max(0.0, float(in_float64(torch.cat(gains)).mean())) if gains else 0.0
        return [with_value(batch, BASELINE, baseline) for batch in batches]

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed losses of the replies."""
        gain_K = models.policy.token_logprobs(batch) - reference_logprobs(models, batch)
        reward_R = batch.sum_rows(gain_K * batch.loss_mask_K)
        baseline_R = torch.zeros_like(reward_R) if self.penalty == "apo_zero" else batch.values_R[BASELINE]
        ahead_R = self.beta * (reward_R - baseline_R) * weighed(batch, 1.0, -1.0)
        losses_R = weighed(batch, self.desirable_weight, self.undesirable_weight) * (1 - torch.sigmoid(ahead_R))
        metrics = {"loss": Mean.of(losses_R), **reward_metrics(batch, self.beta * reward_R)}
        if self.penalty == "kto":
            metrics["kl"] = Mean.of(baseline_R)
        return Loss(losses_R.sum(), metrics)

    def loss_at_start(self) -> float | None:
        """Half of the weight of a reply; None where it depends on how many of them are good."""
        return self.desirable_weight / 2 if self.desirable_weight == self.undesirable_weight else None


def _mismatched_gains(models: Models, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """(R,) for each micro-batch: by how much the policy likes replies to other prompts more than the reference does."""
    others = dict(_mismatched(sorted((row for batch in batches for row in batch.rows), key=_order)))
    for batch in batches:
        rows = [others[_order(row)] for row in batch.rows if _order(row) in others]
        if rows:
            mismatched = build_batch(rows).to(batch.row_K.device)
            gain_K = no_grad_logprobs(models.policy, mismatched) - no_grad_logprobs(models.reference, mismatched)
            yield mismatched.sum_rows(gain_K * mismatched.loss_mask_K)


def _order(row: Row) -> tuple[str, tuple[int, ...]]:
    """What tells rows apart, and orders them alike however they come."""
    return row.id, row.ids


def _mismatched(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Row]]:
    """Each row's prompt with the reply of the next row, in a circle, that has another prompt."""
    prompts = [_prompt(row) for row in rows]
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        for step in range(1, len(rows)):
            other = (index + step) % len(rows)
            if prompts[other] != prompt:
                start = len(prompts[other])
                ids, mask = rows[other].ids[start:], rows[other].loss_mask[start:]
                joined = Row(prompt + ids, (0.0,) * len(prompt) + mask, row.id)
                yield _order(row), joined.first(int(row.values.get(LIMIT, len(joined.ids))))
                break


def _prompt(row: Row) -> tuple[int, ...]:
    """The ids before the first trained token."""
    return row.ids[: next((i for i, weight in enumerate(row.loss_mask) if weight), len(row.ids))]
