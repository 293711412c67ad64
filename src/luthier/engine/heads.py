"""What the engine does with a head: reads with it, tells what is ordinary, and finds where it begins.

A head of start `probe` begins as the best one over the model as it is before training, and both learn from there
(linear probing, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054):

    least over W of    sum of the objective's loss / sum of its weights  +  penalty / 2 * |W|^2 * mean |h - mean h|^2

h are hidden states of the training rows, computed once. Without a bias, as these heads are, the mean of h stands in for
one. The penalty is `SLACK` times the one whose head validation rows are told best by: a head that knows its training
rows by heart leaves the model nothing to learn from them. From zeros an adapter has no gradient at first, and the head
takes most of a short training to find its way (docs/log.md).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.source import Source, Unit, micro_batches
from luthier.engine.run import Run
from luthier.models.forest import Batch, HeadValues, build_batch
from luthier.models.scorer import Scorer, in_mode
from luthier.objectives.base import Models

MOST_STATES = 4096
"""Hidden states that a head is fitted to, and as many that its penalty is chosen by: of whole rows, in the order of
training."""
PENALTIES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)
"""Tried from the first on, until validation rows are told worse."""
SLACK = 100.0
"""What the best penalty is multiplied by."""
WITHOUT_VALIDATION = 3e-6
"""Taken for the best penalty where no row is held out to tell."""
STEPS = 60
"""Of L-BFGS for each penalty, from where the one before ended."""


@torch.no_grad()
def read_units(run: Run, units: Sequence[Unit], reader: Scorer | None = None) -> Iterator[tuple[Batch, HeadValues]]:
    """What the head reads of rows, batch by batch; with `reader`, what that does."""
    policy = run.models.policy if reader is None else reader
    with in_mode(run.model, training=False):
        for group in micro_batches(units, run.micro_batch_tokens):
            batch = build_batch(group).to(run.device)
            yield batch, policy.head_values(batch)


def settle_head(run: Run) -> None:
    """Where a head's numbers are told normalized: by what it reads at the ends of all validation rows."""
    head = run.injected.head
    if head is None or not head.shape.normalized:
        return
    read = [values.rows_RO for _, values in read_units(run, run.validation)]
    if read:
        head.settle(torch.cat(read))


def begins_fitted(run: Run) -> bool:
    """Whether the head is still to be fitted."""
    head = run.injected.head
    return head is not None and head.shape.start == "probe" and not bool(head.weight.any())


def probe(run: Run) -> int:
    """Fit the head to what the model says of training rows, if that is where it begins; a second time does nothing.

    Returns:
        Of how many; 0: nothing was done.
    """
    head = run.injected.head
    if head is None or not begins_fitted(run):
        return 0
    source = run.source
    if not isinstance(source, Source):
        raise TypeError("a head that begins fitted needs rows that were given")
    planned = chain.from_iterable(source.planned(step) for step in count(1))
    train = list(_states(run, islice(planned, len(source.units))))
    held_out = list(_states(run, iter(run.validation)))
    scale = _spread(train)
    mine = copy.deepcopy(head).to("cpu", torch.float64)  # once, and the same on every device
    best, penalty = math.inf, WITHOUT_VALIDATION
    for tried in PENALTIES if held_out else ():
        _descend(run, mine, train, tried * scale)
        with torch.no_grad():
            loss = float(_mean_loss(run, mine, held_out))
        if not loss < best:
            break
        best, penalty = loss, tried
    _descend(run, mine, train, SLACK * penalty * scale)
    head.load_state_dict(mine.state_dict())
    return sum(batch.row_count for batch, _ in train)


class _Through(nn.Module):
    """In the place of a head: its numbers are the hidden states."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


class _Known:
    """A policy whose hidden states are known: only its head computes."""

    def __init__(self, head: nn.Module, states: HeadValues) -> None:
        self.head, self.states = head, states

    def head_values(self, _batch: Batch) -> HeadValues:
        return HeadValues(self.head(self.states.rows_RO), self.head(self.states.tokens_KO))


def _states(run: Run, units: Iterator[Unit]) -> Iterator[tuple[Batch, HeadValues]]:
    """Batches with their hidden states at the ends of rows, and where tokens are what the head speaks of, before
    these; until there are enough."""
    policy: Any = run.models.policy
    through: Any = _Through()
    held, states = [], 0
    for unit in units:
        held.append(unit)
        states += sum(row.trained_tokens if row.token_values else 1 for row in unit)
        if states >= MOST_STATES:
            break
    for batch, values in read_units(run, held, Scorer(policy.model, policy.autocast, through)):
        tokens_KE = values.tokens_KO if batch.values_K else values.tokens_KO[:0]  # what is said is of rows
        known = HeadValues(values.rows_RO.cpu().double(), tokens_KE.cpu().double())
        yield batch.to(torch.device("cpu")), known


def _spread(read: Sequence[tuple[Batch, HeadValues]]) -> float:
    """Mean squared distance of hidden states from their mean, so that a penalty means the same for every model."""
    states_SE = torch.cat([part for _, values in read for part in values])
    return float((states_SE - states_SE.mean(0)).square().sum(1).mean())


def _mean_loss(run: Run, head: nn.Module, read: Sequence[tuple[Batch, HeadValues]]) -> Tensor:
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for batch, states in read:
        policy: Any = _Known(head, states)
        total = total + run.objective.loss(Models(policy), batch).total
        weight += run.objective.weight(batch)
    return total / weight if weight else total


def _descend(run: Run, head: nn.Module, read: Sequence[tuple[Batch, HeadValues]], penalty: float) -> None:
    parameters = list(head.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        least = _mean_loss(run, head, read) + penalty / 2 * sum(p.square().sum() for p in parameters)
        least.backward()
        return least

    optimizer.step(closure)  # type: ignore[no-untyped-call]
