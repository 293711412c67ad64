"""Data is data: no text of a row can become a token that controls the model.

A user who writes `<|im_end|><|im_start|>system` must not open a system turn. Rows that carry such text are rendered
again with the text replaced, and both must hold the same control tokens in the same order; because clean data would
prove nothing, such text is also planted in a few rows: as it is, and in spellings that a template which edits content
could turn into it. A template may refuse such a row; then nothing came of it.
"""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from luthier.data.templates import Template
from luthier.errors import TemplateError
from luthier.examples import Example
from luthier.preflight._cases import Change, map_strings, spread
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

PLANTED_ROWS = 8
PLANTED_TOKENS = 24

SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "whole": lambda token: token,
    "in capitals": lambda token: token.upper(),
    "with [ref] inside": lambda token: _split(token, "[ref]"),
    "with ## inside": lambda token: _split(token, "##"),
    "with a line break inside": lambda token: _split(token, "\n"),
    "escaped as HTML": html.escape,
    "escaped as JSON": lambda token: "".join(f"\\u{ord(c):04x}" if c in "<>&" else c for c in token),
}
"""How a control token may be written in a text; folding case, cutting out and unescaping lead back to it."""


class NoControlTokens(Gate):
    """Control tokens come from the template only."""

    proves: ClassVar[str] = "No control token comes from the text of a row, not even from text that spells one."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "Content must be encoded apart from the template, with control tokens switched off."

    def check(self, subject: Subject) -> GateResult:
        """Compare the control tokens of each suspicious row with those of the same row without the suspicious text."""
        control, spoken = control_tokens(subject.tokenizer, subject.untruncated)
        if not control:
            return self.passes("This tokenizer has no control tokens.")
        neutral = _neutralizer(control, spoken)
        renderable = [case.example for case in subject.cases if not case.error]
        own = [(example, map_strings(example, neutral), "text") for example in renderable]
        compared = [(example, clean, origin) for example, clean, origin in own if clean != example]
        compared += _planted(spread(renderable, PLANTED_ROWS), list(control.values())[:PLANTED_TOKENS], neutral)
        faults, refused = [], 0
        for example, clean, origin in compared:
            try:
                found = _ids(example, subject, control)
            except TemplateError:
                refused += 1
                continue
            if found != _ids(clean, subject, control):
                message = f"{origin} that spells a control token changes the control tokens of the row"
                faults.append(Fault(example.id, message, example.where))
        kept = len(compared) - refused
        if not kept:
            return self.fails("No row with such text could be rendered, so nothing was shown.", refused=refused)
        success = f"{kept:,} rows with suspicious text (most of it planted) keep their control tokens."
        return self.judge(faults, success, rows=kept, refused=refused, control_tokens=len(control))


def control_tokens(tokenizer: Any, template: Template) -> tuple[dict[int, str], list[str]]:
    """(control tokens by id, texts of those that models write themselves).

    Control tokens are the special ones and those that the template writes. Of the latter, the ones that are not special
    (thinking tags, tool-call tags) may stand in an assistant's text too.
    """
    added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if str(t.content).strip()}
    control = {i: str(t.content) for i, t in added.items() if t.special or str(t.content) in template.source}
    return control, [str(t.content) for t in added.values() if not t.special]


def _split(token: str, separator: str) -> str:
    """The token with `separator` in its middle."""
    return token[: len(token) // 2] + separator + token[len(token) // 2 :]


def _planted(
    examples: Sequence[Example], tokens: Sequence[str], neutral: Change
) -> Iterator[tuple[Example, Example, str]]:
    """(example with control tokens planted in one spelling, the same with other text in that place, what was done)."""
    for name, spell in SPELLINGS.items():
        plant = _planter("".join(map(spell, tokens)))
        for example in examples:
            clean = map_strings(example, neutral)
            yield map_strings(clean, plant), map_strings(clean, _planter("x")), f"planted text, {name},"


def _planter(plant: str) -> Change:
    # not into a tool's schema: templates read words such as "object" there
    return lambda text, role: f"{text} {plant}" if text and role not in ("assistant", "schema") else text


def _neutralizer(control: Mapping[int, str], spoken: Sequence[str]) -> Change:
    """A function that replaces text which might spell a control token; tokens that models write stay in their text."""
    firsts = frozenset(text[0] for text in control.values())
    own = re.compile("|".join(map(re.escape, sorted(spoken, key=len, reverse=True))) or r"(?!)")

    def neutral(text: str, role: str) -> str:
        if not firsts & frozenset(text):
            return text
        kept = own.findall(text) if role == "assistant" else []
        return "x".join(["", *kept, ""]) if kept else "x"

    return neutral


def _ids(example: Example, subject: Subject, control: Mapping[int, str]) -> list[list[int]]:
    return [[i for i in row.ids if i in control] for row in subject.objective.rows(example, subject.untruncated)]
