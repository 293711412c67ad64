"""A grammar for the calls of a reply: the texts that the template writes around them, names that are offered, arguments
that fit.

It is written in the Lark dialect of `llguidance`. Where a call must be made, the reply is calls and nothing else. Where
it may be made, it is free text in which none of the template's openings stands, or such text and calls behind it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.call_forms import ID, Calls, CallText
from luthier.serve.tool_choice import CallRule

ID_PATTERN = '/"[a-zA-Z0-9]{9}"/'
"""Of Mistral's tokenizers, the only ones whose calls carry ids."""


@dataclass(frozen=True)
class Offered:
    """A tool that may be called."""

    name: str
    schema: Mapping[str, Any]
    """Of its arguments, an object."""


def call_grammar(
    calls: Calls, text: CallText, rule: CallRule, tools: Sequence[Offered], tokens: Mapping[str, int], options: Any
) -> str:
    """The grammar of a whole reply.

    Args:
        calls: the template's form.
        text: the texts that it writes.
        rule: whether and how often tools are called.
        tools: those that may be, at least one.
        tokens: texts that are control tokens, and their ids: the model writes these.
        options: how JSON is spelled.
    """
    literal = _literals(tokens)
    more = "" if rule.single or text.join is None else f" ({literal(text.join)} call)*"
    opening = calls.form.opening
    lines = ["%llguidance {}"]
    if rule.must:
        lines.append(f"start: {literal(text.begin)} call{more} {literal(text.end)}")
    elif not opening:  # a call is the whole reply, and nothing else that begins as one may be said
        lines += [f"start: TEXT | {literal(text.begin)} call{more} {literal(text.end)}", _text(r"[ \n\t\r]*\{(.|\n)*")]
    elif opening in tokens or not text.beside_content:
        before = "TEXT? " if text.beside_content else ""
        lines += [f"start: TEXT | {before}{literal(text.begin)} call{more} {literal(text.end)}", _without(opening)]
    else:
        rest = text.begin.removeprefix(opening)
        lines += [f"start: TEXT | head {literal(rest)} call{more} {literal(text.end)}", _without(opening)]
        lines += [f"head[lazy]: ANY {literal(opening)}", r"ANY: /(.|\n)*/"]
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        name = json.dumps(json.dumps(tool.name, ensure_ascii=False))
        lines.append(f"call_{i}: {name} {literal(text.middle)} arguments_{i}")
        lines.append(f"arguments_{i}: %json {json.dumps({**tool.schema, 'x-guidance': options})}")
    if ID in text.begin + text.middle + text.end:
        lines.append(f"ID: {ID_PATTERN}")
    return "\n".join(lines) + "\n"


def _text(forbidden: str) -> str:
    return rf"TEXT: /(.|\n)*/ & ~/{forbidden}/"


def _without(opening: str) -> str:
    escaped = re.escape(opening).replace("/", r"\/")
    return _text(rf"(.|\n)*{escaped}(.|\n)*")


def _literals(tokens: Mapping[str, int]) -> Callable[[str], str]:
    """How a text stands in the grammar: control tokens by their ids, the place of an id by its pattern."""
    marks = sorted([*tokens, ID], key=len, reverse=True)
    split = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def literal(text: str) -> str:
        parts = []
        for piece in split.split(text):
            if piece == ID:
                parts.append("ID")
            elif piece in tokens:
                parts.append(f"<[{tokens[piece]}]>")
            elif piece:
                parts.append(json.dumps(piece))
        return " ".join(parts)

    return literal
