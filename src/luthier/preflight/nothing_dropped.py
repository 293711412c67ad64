"""Everything in a row reaches the model.

A template prints nothing for a field that it does not know, so tools, tool calls or system messages vanish without an
error, and the model is taught to answer from nothing. Every text of a row is looked for in the decoded tokens; and a
kind of content that the template never renders is missing even where the question happens to hold the same words.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from luthier.data.chat_jinja import tool_values
from luthier.data.template_probes import kinds_of
from luthier.examples import Document
from luthier.preflight._cases import Case
from luthier.preflight._text import decode, leaves, message_leaves, occurs
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

# words of JSON Schema that a template may write in its own way
SCHEMA_WORDS = frozenset(
    (
        "type",
        "function",
        "name",
        "description",
        "parameters",
        "properties",
        "required",
        "items",
        "enum",
        "default",
        "object",
        "string",
        "integer",
        "number",
        "boolean",
        "array",
        "additionalProperties",
        "title",
        "format",
        "strict",
    )
)


class NothingDropped(Gate):
    """Each text, tool and tool call of a row is in its tokens."""

    proves: ClassVar[str] = "Every text, tool description and tool call of a row occurs in the tokens made from it."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "The template has no place for them. For tools and tool calls set model.template = 'chatml_tools'; for others "
        "name a .jinja file that renders them."
    )

    def check(self, subject: Subject) -> GateResult:
        """Decode each row and look for every leaf of its messages and tools."""
        faults, looked = [], 0
        for case in subject.cases:
            if case.error:
                continue
            texts = [decode(subject.tokenizer, row.ids) for row in case.whole]
            wanted = list(_wanted(case))
            looked += len(wanted)
            silent = _kinds(case) - subject.template.capabilities
            missing = [f"any {kind.replace('_', ' ')}" for kind in sorted(silent)]
            missing += dict.fromkeys(path for path, leaf in wanted if not any(occurs(leaf, text) for text in texts))
            if missing:
                more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
                faults.append(Fault(case.row_id, f"not in its tokens: {', '.join(missing[:4])}{more}", case.where))
        behind = sum(len(case.messages) - 1 - _last(case) for case in subject.cases)
        said = f"{looked:,} texts of {subject.coverage()} are all there."
        said += f" {behind:,} messages behind the last trained reply are left out." if behind else ""
        return self.judge(faults, said, texts=looked, messages_behind_last_reply=behind)


def _last(case: Case) -> int:
    """Index of the last message that a row must show: nothing is learned from what follows the last trained reply."""
    return max((turn.index for turn in case.turns), default=len(case.messages) - 1)


def _kinds(case: Case) -> set[str]:
    """Kinds of content, as `Template.capabilities` names them, that a row must show."""
    return set(kinds_of(case.messages[: _last(case) + 1], case.tools))


def _wanted(case: Case) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of everything that one case must show."""
    if isinstance(case.example, Document):
        yield "text", case.example.text
    for index, message in enumerate(case.messages[: _last(case) + 1]):
        yield from message_leaves(message, f"messages[{index}]")
    for index, tool in enumerate(map(tool_values, case.tools)):
        yield from ((path, leaf) for path, leaf in leaves(tool, f"tools[{index}]") if leaf not in SCHEMA_WORDS)
