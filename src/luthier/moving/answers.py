"""What the old model answered: from stored completions, from output items of Evals, and from JSON Lines.

A line of `answers.jsonl`, which is written and read:

    messages            what was asked; or `id`, of a row of the test file
    answer              the assistant's message; or `output`, its text
    model, created, prompt_tokens, completion_tokens, seconds, usd, item, from      where known

Two prompts are the same if roles, texts and tool calls are; ids, names and the tools on offer play no part.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from luthier.data.formats._chat import ChatFields
from luthier.data.read import Record, kind_of
from luthier.data.write import atomic_text, message_values
from luthier.errors import DataError
from luthier.evaluation.systems._wire import usage_of
from luthier.examples import Message, Where
from luthier.moving.exports import LEAVE_OUT, Export, read_export, refuse
from luthier.moving.found import Found

NUMBERS = ("prompt_tokens", "completion_tokens", "seconds", "usd", "created")
KNOWN = frozenset({"id", "messages", "answer", "output", "model", "item", "from", *NUMBERS})
MEND = "Mend what is wrong:"
_OF_A_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id")


@dataclass(frozen=True)
class Recorded:
    """One answer."""

    reply: Message
    where: str
    id: str | None = None
    """Of the row, where no prompt says it."""
    prompt: tuple[Message, ...] | None = None
    model: str | None = None
    """None: nobody said which."""
    created: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    usd: float | None = None
    item: Mapping[str, Any] | None = None
    """Of an Eval: what its graders read."""

    def dump(self) -> dict[str, Any]:
        """A line of `answers.jsonl`."""
        asked = {"id": self.id} if self.prompt is None else {"messages": [message_values(m) for m in self.prompt]}
        rest = {name: value for name, value in vars(self).items() if name in ("model", "item", *NUMBERS)}
        kept = {name: value for name, value in rest.items() if value is not None}
        return {**asked, "answer": message_values(self.reply), **kept, "from": self.where}


def prompt_key(messages: Sequence[Message]) -> str:
    """Equal for the same prompts."""
    shown = [[m.role, m.content, [[c.name, c.arguments] for c in m.tool_calls]] for m in messages]
    return sha256(json.dumps(shown, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def collect(export: Export, advice: str = LEAVE_OUT) -> tuple[list[Recorded], list[str]]:
    """All answers of an export, and what is said about those that are none.

    Raises:
        DataError: one cannot be read; the message has every one.
    """
    said: list[str] = []
    asked = {identifier: _asked(export, identifier, one) for identifier, one in export.completions.items()}
    if lonely := [one for identifier, one in export.completions.items() if not asked[identifier]]:
        said.append(
            f"{len(lonely)} stored completions are not used: nothing tells what was asked, since the list has answers "
            f"alone; export GET /chat/completions/ID/messages of each, too. The first: {lonely[0].where}"
        )
    if orphans := export.messages.keys() - export.completions.keys():
        said.append(f"messages of {len(orphans)} stored completions are not used: the completions are not there")
    found: list[Recorded] = []
    failed, problems = 0, []
    makers: list[Callable[[], Recorded | None]] = [
        *(partial(_of_completion, one, asked[name]) for name, one in export.completions.items() if asked[name]),
        *(partial(_of_item, one) for one in export.items.values()),
        *(partial(_of_line, one) for one in export.answers),
    ]
    for make in makers:
        try:
            recorded = make()
        except DataError as error:
            problems.append(error)
            continue
        if recorded is None:
            failed += 1
        else:
            found.append(recorded)
    refuse(problems, advice)
    if failed:
        said.append(f"{failed} output items of Evals have no answer: sampling failed, as they say themselves")
    return found, said


def read_answers(path: Path) -> list[Recorded]:
    """The answers in one file, of any kind that an export has.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    found, said = collect(read_export([path], MEND), MEND)
    if not found:
        raise Found({}, Where(str(path), 1)).error("; ".join(said) or "the file holds no recorded answers")
    return found


def write_answers(path: Path, answers: Sequence[Recorded]) -> None:
    """A line each.

    Raises:
        StorageError: the file cannot be written.
    """
    with atomic_text(path) as file:
        for one in answers:
            file.write(json.dumps(one.dump(), ensure_ascii=False) + "\n")


def newest(answers: Sequence[Recorded]) -> tuple[dict[str, Recorded], dict[str, Recorded], int]:
    """Answers by prompt and by id, the newest of several to the same, and how many older ones there are."""
    by_prompt: dict[str, Recorded] = {}
    by_id: dict[str, Recorded] = {}
    for one in sorted(answers, key=lambda one: one.created):
        if one.prompt is not None:
            by_prompt[prompt_key(one.prompt)] = one
        elif one.id is not None:
            by_id[one.id] = one
    return by_prompt, by_id, len(answers) - len(by_prompt) - len(by_id)


def _asked(export: Export, identifier: str, one: Found) -> list[Found]:
    """The messages that a stored completion answered; none if they are not there."""
    own = one.values.get("messages")
    if isinstance(own, list) and own and all(isinstance(m, Mapping) for m in own):
        return [Found(m, one.where) for m in own]
    numbered = export.messages.get(identifier, {})
    return [numbered[number] for number in sorted(numbered)]


def _of_completion(one: Found, asked: Sequence[Found]) -> Recorded:
    choices = one.values.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(message, Mapping):
        raise one.error("the completion has no message in 'choices'")
    usage = usage_of(one.values)
    return Recorded(
        _message(one, {**message, "role": "assistant"}, "choices[0].message"),
        str(one.where),
        prompt=tuple(_message(m, m.values, f"message {n}") for n, m in enumerate(asked)),
        model=one.text("model"),
        created=_number(one, "created") or 0.0,
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
    )


def _of_item(one: Found) -> Recorded | None:
    """The answer in an output item; None where sampling it failed."""
    sample = one.table("sample")
    output, asked = sample.get("output"), sample.get("input")
    if not isinstance(output, list) or not isinstance(asked, list):
        raise one.error("'sample' has no lists 'input' and 'output'; expected what OpenAI writes")
    if not output or not asked:
        return None
    for message in (*asked, output[-1]):
        if not isinstance(message, Mapping):
            raise one.error(f"a message of 'sample' is {kind_of(message)}")
    usage, model = usage_of(sample), sample.get("model")
    return Recorded(
        _message(one, {"role": "assistant", **output[-1]}, "sample.output"),
        str(one.where),
        prompt=tuple(_message(one, m, f"sample.input[{n}]") for n, m in enumerate(asked)),
        model=model if isinstance(model, str) and model else None,
        created=_number(one, "created_at") or 0.0,
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
        item=one.table("datasource_item"),
    )


def _of_line(one: Found) -> Recorded:
    values = one.values
    if unknown := sorted(values.keys() - KNOWN):
        raise one.error(f"a recorded answer has the unknown field {unknown[0]!r}; known are {', '.join(sorted(KNOWN))}")
    if ("answer" in values) == ("output" in values):
        raise one.error("a recorded answer has either 'answer', a message, or 'output', its text")
    answer = values.get("answer", {"role": "assistant", "content": values.get("output")})
    if not isinstance(answer, Mapping):
        raise one.error(f"'answer' is {kind_of(answer)}; expected the assistant's message")
    asked, item = values.get("messages"), values.get("item")
    if not isinstance(item, Mapping | None):
        raise one.error(f"'item' is {kind_of(item)}; expected an object")
    counts = [None if (count := _number(one, name)) is None else round(count) for name in NUMBERS[:2]]
    return Recorded(
        _message(one, {**answer, "role": "assistant"}, "answer"),
        str(one.where),
        id=one.text("id") if asked is None else None,
        prompt=None if asked is None else tuple(_messages(one, asked)),
        model=one.text("model") if values.get("model") is not None else None,
        created=_number(one, "created") or 0.0,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        seconds=_number(one, "seconds"),
        usd=_number(one, "usd"),
        item=item,
    )


def _messages(one: Found, asked: Any) -> Iterator[Message]:
    if not isinstance(asked, list) or not asked:
        raise one.error(f"'messages' is {kind_of(asked)}; expected a list of messages")
    for number, message in enumerate(asked):
        if not isinstance(message, Mapping):
            raise one.error(f"messages[{number}] is {kind_of(message)}; expected a message")
        yield _message(one, message, f"messages[{number}]")


def _message(one: Found, values: Mapping[str, Any], at: str) -> Message:
    """A message as a row has it; what a model refused with is its text."""
    kept = {name: values[name] for name in _OF_A_MESSAGE if values.get(name) is not None}
    if values.get("content_parts"):
        kept["content"] = values["content_parts"]
    content = kept.get("content") or values.get("refusal") or kept.get("content")  # which may be empty
    return ChatFields(Record(dict(one.values), one.where)).message({**kept, "content": content}, at)


def _number(one: Found, name: str) -> float | None:
    value = one.values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise one.error(f"{name!r} is {kind_of(value)}; expected a number, 0 or more")
    return float(value)
