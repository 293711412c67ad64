"""Spans of a text and their labels: a label for each word, of a head that reads the word's last token.

    loss = sum over words of - log softmax(z)_y        weight: words

A word begins a span (`B-name`), goes on in it (`I-name`) or is in none (`O`), as in CoNLL-2003 (Tjong Kim Sang and De
Meulder 2003). Words are runs of letters and digits, and single other characters; a span takes in every word that it
touches. The head reads a word before the token that follows it, and so knows what stands before the word and nothing
that stands behind: that is what a model that writes can know. A head of zeros begins at ln(2 L + 1). Left out: spans
within spans, and which labels may follow one another.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Document, Example, Row
from luthier.models.forest import Batch
from luthier.models.heads import HeadShape
from luthier.objectives._labeled import UNKNOWN, Labeled, error_at, text_of, wanted_of
from luthier.objectives.base import Loss, Mean, Models, in_float64

KIND = "token_classify"
"""Of the head."""
OUTSIDE = "O"
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Span:
    """A part of a text: characters from `start` up to `end`, and what they are."""

    start: int
    end: int
    label: str


def spans_of(example: Example) -> list[Span]:
    """The row's spans, by their beginnings.

    Raises:
        DataError: its target is no list of spans, or one is not in the text.
    """
    wanted = wanted_of(example)
    if isinstance(wanted, str):
        try:
            wanted = json.loads(wanted)
        except ValueError:
            wanted = None
    if not isinstance(wanted, list | tuple) or not isinstance(example, Conversation):
        raise error_at(example, 'the target is no list of spans; expected one such as [{"start", "end", "label"}]')
    length = len(text_of(example))
    return sorted((_span(example, item, length) for item in wanted), key=lambda span: (span.start, span.end))


def _span(example: Example, item: Any, length: int) -> Span:
    try:
        found = Span(item["start"], item["end"], item["label"])
    except (TypeError, KeyError):
        raise error_at(example, f"a span is {str(item)[:80]}; expected start, end and label") from None
    if not isinstance(found.label, str) or not all(type(at) is int for at in (found.start, found.end)):
        raise error_at(example, f"a span is {str(item)[:80]}; expected whole numbers and a text")
    if not 0 <= found.start < found.end <= length:
        raise error_at(example, f"a span goes from {found.start} to {found.end}, and the text has {length} characters")
    return found


def words_of(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends."""
    return [match.span() for match in _WORD.finditer(text)]


def tags_of(words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """The tag of each word; of spans that touch the same word the first has it."""
    tags, last = [], None
    for start, end in words:
        span = next((span for span in spans if span.start < end and span.end > start), None)
        tags.append(OUTSIDE if span is None else f"{'I' if span is last else 'B'}-{span.label}")
        last = span
    return tags


def spans_from(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
    """The spans that tags say; one that goes on in nothing begins."""
    found: list[Span] = []
    before = OUTSIDE
    for (start, end), tag in zip(words, tags, strict=True):
        if tag != OUTSIDE:
            label = tag[2:]
            if tag[0] == "I" and before != OUTSIDE and before[2:] == label:
                found[-1] = Span(found[-1].start, end, label)
            else:
                found.append(Span(start, end, label))
        before = tag
    return found


def read_after(text: str, template: Template) -> tuple[tuple[int, ...], list[tuple[int, int]], list[int]]:
    """Token ids of a text with its end, its words, and for each word the place of the token that follows it; words that
    end in the same token are one.

    Raises:
        TemplateError: the text cannot be encoded.
        DataError: the tokenizer has no end-of-text token, before which the last word could be read.
    """
    (row,) = template.rows(Document(text))
    spans = template.text_spans(text)
    is_cut = template.max_tokens is not None and len(spans) >= template.max_tokens
    if len(row.ids) == len(spans) and not is_cut:
        raise DataError("the tokenizer has no end-of-text token, before which the last word could be read")
    words: list[tuple[int, int]] = []
    follows: list[int] = []
    at = 0
    for start, end in words_of(text):
        while at + 1 < len(spans) and spans[at + 1][0] < end:
            at += 1
        if follows and follows[-1] == at + 1:
            words[-1] = (words[-1][0], end)
        elif at + 1 < len(row.ids):
            words.append((start, end))
            follows.append(at + 1)
    return row.ids, words, follows


def read_row(example: Conversation, template: Template, place: Mapping[str, float] | None = None) -> Row:
    """The text of a row, trained on behind each word; with `place`, the numbers of tags, there stands the word's.

    Raises:
        DataError, TemplateError: as `read_after`, and as `spans_of` with `place`.
    """
    ids, words, follows = read_after(text_of(example), template)
    tag, mask = [0.0] * len(ids), [0.0] * len(ids)
    tags = [OUTSIDE] * len(words) if place is None else tags_of(words, spans_of(example))
    for name, at in zip(tags, follows, strict=True):
        tag[at], mask[at] = (0.0 if place is None else place.get(name, UNKNOWN)), 1.0
    return Row(ids, tuple(mask), example.id, token_values={"tag": tuple(tag)})


class TokenClassify(Labeled):
    """Learn the spans of a text."""

    kind: ClassVar[str] = KIND

    def said(self, example: Example) -> Sequence[str]:
        """Labels of its spans."""
        return [span.label for span in spans_of(example)]

    @property
    def tags(self) -> tuple[str, ...]:
        """What a word can be."""
        return (OUTSIDE, *(f"{part}-{label}" for label in self.named() for part in "BI"))

    def head(self) -> HeadShape:
        """A number for each tag."""
        return self.shape(len(self.tags), self.tags)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """The text; at the token behind each word stands the number of its tag."""
        assert isinstance(example, Conversation)
        place = {tag: float(number) for number, tag in enumerate(self.tags)}
        return (read_row(example, template, place),)

    def weight(self, batch: Batch) -> float:
        """Number of words whose tag is known."""
        return float(in_float64(batch.values_K["tag"] >= 0).sum())

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed cross-entropy of the words."""
        logits_KC = models.policy.head_values(batch).tokens_KO
        tag_K = batch.values_K["tag"]
        losses_K = F.cross_entropy(logits_KC, tag_K.clamp_min(0).long(), reduction="none") * (tag_K >= 0)
        right_K = (logits_KC.argmax(-1) == tag_K).float()
        mean = Mean(float(in_float64(losses_K).sum()), self.weight(batch))
        return Loss(losses_K.sum(), {"loss": mean, "accuracy": Mean.of(right_K)})
