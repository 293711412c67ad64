"""A local model's judgement of an answer beside its passages, as three numbers; nothing is generated.

    yes      mean over both orders of [log p("Yes") - log p("No")], to a fixed question about answer and passages
    lift     mean over the answer's tokens of [log p(token | passages, question) - log p(token | question)]
    surprise -log p of the answer's least probable token, passages and question given

The question is asked with "yes or no" and with "no or yes", because a small model leans to the word that it read last,
and to one of the two whatever it read. The mean takes the first lean away; the second is a constant, which the fitted
weights take away. A model too small to say whether passages support an answer may still find the answer more probable
when it has read them: that is the lift. All but the few tokens without passages are scored in one forest, which reads
the passages once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch

from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.answering import group_rows
from luthier.evaluation.grounding.item import Item
from luthier.examples import Message, Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer

Told: TypeAlias = Callable[[int, int], None]
"""Called with (items done, items in all)."""

Signals: TypeAlias = tuple[float, float, float]
"""In the order of `SIGNALS`."""
ORDERS = ("yes or no", "no or yes")
TOKENS_AT_ONCE = 4096
_ANSWERED = (
    "Question: {question}\nAnswer: {answer}\n\nDo the passages above say what the answer says? Reply with {order}."
)


class Judge:
    """A model with its template that says how well passages support an answer."""

    def __init__(self, name: str, loaded: LoadedModel, template: Template) -> None:
        self.name, self.loaded, self.template = name, loaded, template
        self._words = tuple(template.text_ids(word)[-1] for word in ("Yes", "No"))
        if self._words[0] == self._words[1]:
            raise EvaluationError(f"{name}: its tokenizer writes Yes and No alike, so it cannot judge")

    def signals(self, items: Sequence[Item], told: Told = lambda done, total: None) -> list[Signals]:
        """What the model finds of each item.

        Raises:
            EvaluationError: an item does not fit into the model's context.
        """
        rows = [row for item in items for row in self._rows(item)]
        values: list[list[float]] = []
        for group in group_rows(rows, TOKENS_AT_ONCE):
            values += self._logprobs(group)
            told(len(values) // _ROWS, len(items))
        return [_signals(values[at : at + _ROWS]) for at in range(0, len(values), _ROWS)]

    def _rows(self, item: Item) -> list[Row]:
        """Both orders with `Yes` and with `No`, the answer's own tokens scored in the first; then the answer without
        passages."""
        found: list[Row] = []
        for order in ORDERS:
            prompt, answer = self._prompt(item, item.passages, order)
            marked = answer if not found else range(0)
            for word in self._words:
                found.append(_row((*prompt, word), [*marked, len(prompt)], item.id))
                marked = range(0)
        bare, answer = self._prompt(item, (), ORDERS[0])
        return [*found, _row(bare, answer, item.id)]

    def _prompt(self, item: Item, passages: Sequence[str], order: str) -> tuple[list[int], range]:
        """The ids of a prompt, and which of them are the answer's.

        Raises:
            EvaluationError: it does not fit into the model's context.
        """
        ids, without = (
            self.template.prompt_ids((Message("user", "\n\n".join([*passages, text])),))
            for text in (
                _ANSWERED.format(question=item.question, answer=answer, order=order) for answer in (item.answer, "")
            )
        )
        if len(ids) + 1 > self.loaded.max_tokens:
            raise EvaluationError(
                f"row {item.id}: its passages and answer need {len(ids) + 1:,} tokens, and the context of the judge "
                f"{self.name} ends at {self.loaded.max_tokens:,}; choose another evaluation.grounding.judge, or none"
            )
        start = _shared(ids, without)
        end = len(ids) - _shared(ids[: start - 1 : -1], without[: start - 1 : -1])
        return ids, range(start, max(start, end))

    @torch.inference_mode()
    def _logprobs(self, rows: Sequence[Row]) -> list[list[float]]:
        """Of each row the log-probabilities of its scored tokens."""
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            values = iter(Scorer(self.loaded.model).token_logprobs(batch).tolist())
        return [[float(next(values)) for _ in range(row.trained_tokens)] for row in rows]


_ROWS = len(ORDERS) * 2 + 1
"""Rows of an item."""


def _row(ids: Sequence[int], scored: Iterable[int], name: str) -> Row:
    mask = [0.0] * len(ids)
    for at in scored:
        mask[at] = 1.0
    return Row(tuple(ids), tuple(mask), name)


def _signals(values: Sequence[Sequence[float]]) -> Signals:
    """From the scored tokens of the rows of one item; an empty answer lifts and surprises by nothing."""
    yes = sum(values[at][-1] - values[at + 1][-1] for at in range(0, _ROWS - 1, 2)) / len(ORDERS)
    given, bare = values[0][:-1], values[-1]
    lift = sum(a - b for a, b in zip(given, bare, strict=True)) / len(given) if given else 0.0
    return yes, lift, -min(given, default=0.0)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two have in common from their beginning on."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
