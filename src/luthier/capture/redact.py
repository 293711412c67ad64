"""Personal data and secrets out of a row, before any of it is written.

What `luthier check` warns of is found by the same patterns, so that a captured file raises no such finding; telephone
numbers are found by libphonenumber's rules as well. Every value becomes a placeholder with a number: the same value has
the same one within a row, so that an answer still speaks of what was asked about. Between rows numbers mean nothing.

Not found: names, postal addresses, dates of birth, account numbers without a country code, and whatever is written in
words or split over two texts. No library finds names offline that is small and well kept (docs/moving.md).
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import phonenumbers

from luthier.data.checks._patterns import Span, personal_spans, secret_spans
from luthier.errors import ServeError

LABELS = {"email": "EMAIL", "phone": "PHONE", "ssn": "SSN", "card": "CARD", "iban": "IBAN", "ip": "IP"}
SECRET = "SECRET"
_KEY_END, _KEY_LAST = "-----END", "KEY-----"
_FEWEST_DIGITS = 5
"""Of what libphonenumber is asked about: its search is the slowest, and most texts hold no such number."""


class Redactor:
    """Rules for rows.

    Args:
        regions: countries (ISO 3166, `DE`) whose numbers are found without their `+` and country code, too.

    Raises:
        ServeError: there is no such country.
    """

    def __init__(self, regions: Sequence[str] = ()) -> None:
        unknown = [name for name in regions if name not in phonenumbers.SUPPORTED_REGIONS]
        if unknown:
            raise ServeError(f"--region {unknown[0]}: no country has this code; expected two capital letters, as DE")
        self._regions: tuple[str | None, ...] = (None, *regions)

    def row(self, values: Any) -> tuple[Any, Counter[str]]:
        """Plain values without what must not be kept, and how often each kind was found."""
        found = _Row(self._regions)
        return found.clean(values), found.counts


class _Row:
    """The placeholders of one row."""

    def __init__(self, regions: Sequence[str | None]) -> None:
        self._regions = regions
        self._names: dict[tuple[str, str], str] = {}
        self.counts: Counter[str] = Counter()

    def clean(self, value: Any) -> Any:
        """The value, whatever it holds, with names of fields cleaned as well."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self._text(key): self._inner(key, inner) for key, inner in value.items()}
        return [self.clean(inner) for inner in value] if isinstance(value, list) else value

    def _inner(self, key: str, value: Any) -> Any:
        """`arguments` of a tool call are JSON within a text: what is escaped there is seen, and it stays JSON."""
        if key == "arguments" and isinstance(value, str):
            try:
                return json.dumps(self.clean(json.loads(value)), ensure_ascii=False)
            except (ValueError, RecursionError):
                return self._text(value)
        return self.clean(value)

    def _text(self, text: str) -> str:
        parts, end = [], 0
        for span in _apart(self._spans(text)):
            parts += [text[end : span.start], self._placeholder(span.kind, text[span.start : span.end])]
            end = span.end
        return "".join([*parts, text[end:]])

    def _spans(self, text: str) -> Iterator[Span]:
        for span in secret_spans(text):
            yield Span(SECRET, span.start, _whole_key(text, span) if span.kind == "private key" else span.end)
        for span in personal_spans(text, also_reserved=True):
            yield Span(LABELS[span.kind], span.start, span.end)
        if sum(character.isdigit() for character in text) >= _FEWEST_DIGITS:
            for region in self._regions:
                for match in phonenumbers.PhoneNumberMatcher(text, region):
                    yield Span(LABELS["phone"], match.start, match.end)

    def _placeholder(self, kind: str, value: str) -> str:
        self.counts[kind] += 1
        number = 1 + sum(known == kind for known, _ in self._names)
        return self._names.setdefault((kind, value), f"[{kind}_{number}]")


def _apart(spans: Iterator[Span]) -> Iterator[Span]:
    """Spans in order, those that overlap as one of the kind that begins first and is longest."""
    held: Span | None = None
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if held is not None and span.start < held.end:
            held = held._replace(end=max(held.end, span.end))
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


def _whole_key(text: str, span: Span) -> int:
    """The end of the block that a private key's first line begins; of the text, if it never ends."""
    begin = text.find(_KEY_END, span.end)
    end = text.find(_KEY_LAST, begin) if begin >= 0 else -1
    return end + len(_KEY_LAST) if end >= 0 else len(text)
