"""A local model's judgement: how probable it finds "yes" to a fixed question about an answer and its passages.

    s = mean over both orders of [log p("Yes") - log p("No")]

The question is asked with "yes or no" and with "no or yes", because a small model leans to the word that it read last,
and to one of the two whatever it read. The mean takes the first lean away; the second is a constant, which the fitted
weights take away. Nothing is generated: only the first token of each word is scored.
"""

from collections.abc import Callable, Sequence
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

ORDERS = ("yes or no", "no or yes")
TOKENS_AT_ONCE = 4096
_ASKED = (
    "{passages}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
    "Do the passages above say what the answer says? Reply with {order}."
)


class Judge:
    """A model with its template that says how well passages support an answer."""

    def __init__(self, name: str, loaded: LoadedModel, template: Template) -> None:
        self.name, self.loaded, self.template = name, loaded, template
        self._words = tuple(tuple(template.text_ids(word))[-1:] for word in ("Yes", "No"))
        if self._words[0] == self._words[1]:
            raise EvaluationError(f"{name}: its tokenizer writes Yes and No alike, so it cannot judge")

    def scores(self, items: Sequence[Item], told: Told = lambda done, total: None) -> list[float]:
        """The mean log-odds of "yes" for each item; above 0 the model leans to yes.

        Raises:
            EvaluationError: an item does not fit into the model's context.
        """
        rows = [row for item in items for row in self._rows(item)]
        values: list[float] = []
        per_item = len(ORDERS) * len(self._words)
        for group in group_rows(rows, TOKENS_AT_ONCE):
            values += self._logprobs(group)
            told(len(values) // per_item, len(items))
        pairs = [values[at] - values[at + 1] for at in range(0, len(values), 2)]
        return [sum(pairs[at : at + len(ORDERS)]) / len(ORDERS) for at in range(0, len(pairs), len(ORDERS))]

    def _rows(self, item: Item) -> list[Row]:
        """For each order the prompt with `Yes` and with `No`; they share all but their ends, so a forest reads the
        passages once."""
        found = []
        for order in ORDERS:
            text = _ASKED.format(
                passages="\n\n".join(item.passages), question=item.question, answer=item.answer, order=order
            )
            prompt = self.template.prompt_ids((Message("user", text),))
            if len(prompt) + 1 > self.loaded.max_tokens:
                raise EvaluationError(
                    f"row {item.id}: its passages and answer need {len(prompt) + 1:,} tokens, and the context of the "
                    f"judge {self.name} ends at {self.loaded.max_tokens:,}; choose another evaluation.grounding.judge, "
                    "or none"
                )
            found += [Row((*prompt, *word), (*[0.0] * len(prompt), 1.0), item.id) for word in self._words]
        return found

    @torch.inference_mode()
    def _logprobs(self, rows: Sequence[Row]) -> list[float]:
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            return [float(value) for value in Scorer(self.loaded.model).token_logprobs(batch).tolist()]
