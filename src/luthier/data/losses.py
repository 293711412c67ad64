"""How hard each row is for a model: its mean loss over the tokens that are trained on, by forward passes alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Document, Example, Judged, Preference, Row
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer

AT_ONCE_TOKENS = 4096
SORTED_ROWS = 512
"""Rows of a stretch that are batched by length."""


def row_losses(
    examples: Iterable[Example],
    template: Template,
    scorer: Scorer,
    done: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """(N,) mean of -log p over the trained tokens of each row, in nats; NaN where nothing is trained on.

    Args:
        examples: rows; of a preference the chosen reply counts. One that is longer than `template.max_tokens` is cut
            off as it would be in training.
        template: renders them.
        scorer: of the model.
        done: told how many rows are through.
    """
    losses: list[float] = []
    for stretch in _stretches(examples):
        rendered = [_rows(example, template) for example in stretch]
        sums, weights = np.zeros(len(stretch)), np.zeros(len(stretch))
        owned = [(number, row) for number, rows in enumerate(rendered) for row in rows if row.trained_tokens]
        for group in _batches(sorted(owned, key=lambda pair: -len(pair[1].ids))):
            rows = [row for _, row in group]
            total, weight = _score(rows, scorer)
            at = [number for number, _ in group]
            np.add.at(sums, at, total)
            np.add.at(weights, at, weight)
        losses += np.where(weights > 0, sums / np.maximum(weights, 1e-12), np.nan).tolist()
        done(len(losses))
    return np.array(losses)


def _rows(example: Example, template: Template) -> tuple[Row, ...]:
    if isinstance(example, Preference):
        return (template.reply_row(Conversation((*example.prompt, *example.chosen), example.tools), example.chosen),)
    if isinstance(example, Judged):
        return (template.reply_row(Conversation((*example.prompt, *example.reply), example.tools), example.reply),)
    if isinstance(example, Conversation | Document):
        return template.rows(example)
    raise DataError(
        f"a {type(example).__name__} has no loss; expected a conversation, a preference, a judged reply or a document"
    )


def _score(rows: Sequence[Row], scorer: Scorer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    batch = build_batch(rows).to(scorer.model.device)
    with torch.inference_mode():
        logprobs = scorer.token_logprobs(batch)
        total = batch.sum_rows(-logprobs * batch.loss_mask_K)
        weight = batch.sum_rows(batch.loss_mask_K)
    return total.double().cpu().numpy(), weight.double().cpu().numpy()


def _stretches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    waiting: list[Example] = []
    for example in examples:
        waiting.append(example)
        if len(waiting) == SORTED_ROWS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _batches(owned: Sequence[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    group: list[tuple[int, Row]] = []
    tokens = 0
    for number, row in owned:
        if group and tokens + len(row.ids) > AT_ONCE_TOKENS:
            yield group
            group, tokens = [], 0
        group.append((number, row))
        tokens += len(row.ids)
    if group:
        yield group
