"""Preference pairs: {"prompt", "chosen", "rejected"} (TRL's shape), or OpenAI's input and preferred_output.

A side is a text or a list of messages. Without `prompt`, chosen and rejected are whole conversations and the prompt
is what they begin with alike; a prompt that both repeat is taken off them. OpenAI's rows have `input.messages`,
`preferred_output` and `non_preferred_output`.
"""

from collections.abc import Mapping
from typing import Any

from luthier.data.formats._chat import ChatFields, require_reply, shared_prefix
from luthier.data.formats.prompt_completion import side
from luthier.data.read import Record, kind_of
from luthier.examples import Message, Preference

SAMPLE: Mapping[str, Any] = {
    "prompt": "What is the capital of France?",
    "chosen": "Paris",
    "rejected": "I do not know.",
}

_OPENAI = ("input", "preferred_output", "non_preferred_output")
_Sides = tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...], Any]


def matches(values: Mapping[str, Any]) -> bool:
    """A row with `chosen` and `rejected`, or with OpenAI's two outputs."""
    return ("chosen" in values and "rejected" in values) or all(name in values for name in _OPENAI)


def parse(record: Record, instruction: str | None = None) -> Preference:
    """The pair of a row; `instruction` is the prompt's system message if it has none.

    Raises:
        DataError: a field is missing or of the wrong kind, or chosen and rejected answer different prompts.
    """
    fields = ChatFields(record)
    is_openai = "preferred_output" in fields.values
    prompt, chosen, rejected, tools = _openai(fields) if is_openai else _trl(fields)
    require_reply(fields, chosen, "preferred_output" if is_openai else "chosen")
    require_reply(fields, rejected, "non_preferred_output" if is_openai else "rejected")
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        fields.require_results_matched((*prompt, *reply), f"prompt and {name}: ")
    return Preference(
        fields.with_system(prompt, instruction),
        chosen,
        rejected,
        fields.tools(tools),
        record.where,
        fields.id(),
        fields.group(),
        fields.extra(),
    )


def _trl(fields: ChatFields) -> _Sides:
    chosen, rejected = side(fields, "chosen", "assistant"), side(fields, "rejected", "assistant")
    tools = fields.take("tools")
    if fields.values.get("prompt") is None:
        if isinstance(fields.values["chosen"], str) or isinstance(fields.values["rejected"], str):
            raise fields.error(
                "'prompt' is missing, and chosen and rejected are texts; without a prompt they must be lists of "
                "messages that begin alike"
            )
        return *_implicit(fields, chosen, rejected), tools
    prompt = side(fields, "prompt", "user")
    count = len(prompt)
    if prompt and chosen[:count] == prompt and rejected[:count] == prompt:
        chosen, rejected = chosen[count:], rejected[count:]
    return prompt, chosen, rejected, tools


def _implicit(
    fields: ChatFields, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    # each side keeps at least its last message, so equal conversations become equal replies, which a check reports
    count = min(shared_prefix(chosen, rejected), max(min(len(chosen), len(rejected)) - 1, 0))
    differing = next((reply[count].role for reply in (chosen, rejected) if len(reply) > count), "assistant")
    if differing != "assistant":
        raise fields.error(
            f"chosen and rejected differ from message {count + 1} on, a {differing} message: they answer different "
            "prompts; expected conversations that are alike up to the assistant's reply"
        )
    return chosen[:count], chosen[count:], rejected[count:]


def _openai(fields: ChatFields) -> _Sides:
    given = fields.require("input")
    if not isinstance(given, Mapping):
        raise fields.error(f'\'input\' is {kind_of(given)}; expected {{"messages": [...], "tools": [...]}}')
    if given.get("messages") is None:
        raise fields.error("'input' has no messages; expected {\"messages\": [...]}")
    prompt = fields.messages(given["messages"], "input.messages")
    for name in _OPENAI[1:]:
        if not isinstance(fields.require(name), list):
            raise fields.error(f"{name!r} is {kind_of(fields.values[name])}; expected a list of messages")
    chosen = fields.messages(fields.values["preferred_output"], "preferred_output")
    rejected = fields.messages(fields.values["non_preferred_output"], "non_preferred_output")
    if rest := {k: v for k, v in given.items() if k not in ("messages", "tools") and v is not None}:
        fields.keep("input", rest)
    return prompt, chosen, rejected, given.get("tools")
