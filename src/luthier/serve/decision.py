"""The body of /v1/decisions as typed values, what each question asks the model, and what its answer is.

A question becomes the last words of a chat, and each of its options a whole reply to it. As a reply includes the token
that ends it, no two options can both be said, and

    P(option) = p(option's reply | chat) / sum over options of p(reply | chat)

is exact: the model's own probability, given that it says one of them. A field is honored, documented to change nothing,
or refused.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from luthier.examples import Message, ToolCall
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body, parse_object

MAX_QUESTIONS, MAX_CHOICES, MAX_OPTIONS = 400, 255, 4096
"""The first two are OpenAI's own; the third is of a request, since each option is rendered and scored."""
MAX_ITEMS = 2048
NO_EFFECT = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")
"""Fields that describe a request to a hosted service."""
Kind: TypeAlias = Literal["predicate", "choice", "score"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question: the words that ask it, and a reply for each option."""

    kind: Kind
    name: str | None
    words: str
    replies: tuple[str, ...]
    values: tuple[Any, ...]
    """What a client knows the options by: strings and booleans of a choice, labels of a score."""

    def answer(self, logprobs: Sequence[float]) -> dict[str, Any]:
        """OpenAI's answer, from the log-probability of each reply."""
        shares = _normalized(logprobs)
        told: dict[str, Any] = {"type": self.kind, "name": self.name}
        if self.kind == "predicate":
            return {**told, "probability": shares[0]}
        told["confidence"] = max(shares)
        if self.kind == "choice":
            pairs = [{"value": v, "probability": p} for v, p in zip(self.values, shares, strict=True)]
            return {**told, "choice": self.values[shares.index(max(shares))], "probabilities": pairs}
        levels = enumerate(zip(self.values, shares, strict=True))
        rows = [{"label": label, "value": value, "probability": p} for value, (label, p) in levels]
        return {**told, "score": sum(row["value"] * row["probability"] for row in rows), "probabilities": rows}


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """A request."""

    model: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...]

    def asked(self, question: Question) -> tuple[Message, ...]:
        """The chat that asks a question. It joins a last message of the user: templates want turns to alternate."""
        last = self.messages[-1]
        if last.role != "user":
            return (*self.messages, Message("user", question.words))
        return (*self.messages[:-1], Message("user", f"{last.content}\n\n{question.words}"))

    def body(self, scores: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
        """OpenAI's answer to the request; `tokens` were read for it, and none was written."""
        return {
            "model": self.model,
            "answers": [q.answer(row) for q, row in zip(self.questions, scores, strict=True)],
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
            },
        }


def _normalized(logprobs: Sequence[float]) -> list[float]:
    top = max(logprobs)
    weights = [math.exp(one - top) for one in logprobs]
    return [weight / math.fsum(weights) for weight in weights]


def parse_decision(body: bytes) -> DecisionRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    model, messages, questions = fields.required_text("model", NAME_LIMIT), _input(fields), _questions(fields)
    fields.without_effect(NO_EFFECT)
    fields.finish()
    if sum(len(question.replies) for question in questions) > MAX_OPTIONS:
        raise ApiError(f"The questions of a request may have {MAX_OPTIONS:,} options in all.", param="questions")
    return DecisionRequest(model, messages, questions)


def _questions(fields: Fields) -> tuple[Question, ...]:
    values = _some(fields, "questions", 1, MAX_QUESTIONS)
    return tuple(_question(Fields(value, f"questions[{i}]")) for i, value in enumerate(values))


def _question(fields: Fields) -> Question:
    kind = fields.required_text("type")
    name = fields.text("name", NAME_LIMIT)
    instructions = _text(fields, "instructions")
    if kind == "predicate":
        words = f"Statement: {instructions}\n\nIs the statement true? Answer with Yes or No and nothing else."
        question = Question("predicate", name, words, ("Yes", "No"), (True, False))
    elif kind == "choice":
        question = _choice(fields, name, instructions)
    elif kind == "score":
        question = _score(fields, name, instructions)
    else:
        at = fields.path("type")
        raise ApiError(f"{at!r} must be predicate, choice or score.", param=at, code="invalid_value")
    fields.finish()
    return question


def _choice(fields: Fields, name: str | None, instructions: str) -> Question:
    options = [Fields(value, f"{fields.path('choices')}[{i}]") for i, value in _each(fields, "choices")]
    values = tuple(_value(option) for option in options)
    texts = [_shown(value, values) for value in values]
    words = _listed(instructions, "choices", texts, [_description(option) for option in options])
    _require_distinct(fields.path("choices"), texts)
    return Question("choice", name, words, tuple(texts), values)


def _value(fields: Fields) -> str | bool:
    value = fields.get("value")
    if isinstance(value, bool):
        return value
    text = fields.required_text("value")
    if not text.strip():
        raise ApiError(f"{fields.path('value')!r} is empty: a model cannot say it.", param=fields.path("value"))
    return text


def _shown(value: str | bool, all_values: Sequence[str | bool]) -> str:
    """What the model is to say for a choice. Where a string reads as a boolean beside it does, it gets quotes."""
    text = _plain(value)
    twice = any(type(other) is not type(value) and _plain(other) == text for other in all_values)
    return json.dumps(value, ensure_ascii=False) if twice else text


def _plain(value: str | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else value


def _score(fields: Fields, name: str | None, instructions: str) -> Question:
    options = [Fields(value, f"{fields.path('levels')}[{i}]") for i, value in _each(fields, "levels")]
    labels = [option.required_text("label") for option in options]
    if not all(label.strip() for label in labels):
        raise ApiError("A level's label is empty: a model cannot say it.", param=fields.path("levels"))
    words = _listed(instructions, "levels, from the lowest to the highest,", labels, [_description(o) for o in options])
    _require_distinct(fields.path("levels"), labels)
    return Question("score", name, words, tuple(labels), tuple(labels))


def _each(fields: Fields, name: str) -> list[tuple[int, Any]]:
    return list(enumerate(_some(fields, name, 2, MAX_CHOICES)))


def _description(option: Fields) -> str | None:
    """The last field of an option."""
    text = option.text("description")
    option.finish()
    return text


def _listed(instructions: str, what: str, texts: Sequence[str], descriptions: Sequence[str | None]) -> str:
    lines = [f"- {text}: {more}" if more else f"- {text}" for text, more in zip(texts, descriptions, strict=True)]
    return f"{instructions}\n\nAnswer with one of these {what} and nothing else:\n" + "\n".join(lines)


def _require_distinct(at: str, texts: Sequence[str]) -> None:
    if len(set(texts)) != len(texts):
        raise ApiError(f"{at!r} holds the same option twice.", param=at, code="invalid_value")


def _input(fields: Fields) -> tuple[Message, ...]:
    value = fields.get("input")
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list):
        raise fields.wrong("input", "a string or an array of messages and calls")
    messages: list[Message] = []
    called: set[str] = set()
    for i, item in enumerate(_some(fields, "input", 1, MAX_ITEMS)):
        own = Fields(item, f"input[{i}]")
        message = _item(own, called)
        own.finish()
        if messages and message.tool_calls and messages[-1].role == "assistant":  # calls of one turn
            before = messages.pop()
            message = Message("assistant", before.content, (*before.tool_calls, *message.tool_calls))
        messages.append(message)
    return tuple(messages)


def _item(fields: Fields, called: set[str]) -> Message:
    kind = fields.text("type") or "message"
    if kind == "message":
        return _message(fields)
    if kind in ("custom_tool_call", "custom_tool_call_output"):
        raise unsupported(fields.path("type"), "only functions can be called")
    if kind not in ("function_call", "function_call_output"):
        at = fields.path("type")
        raise ApiError(f"{at!r} must be message, function_call or function_call_output.", param=at)
    call_id = fields.required_text("call_id", NAME_LIMIT)
    fields.without_effect(["id"])
    fields.only("status", ("completed",), "only what was completed can be judged")
    if kind == "function_call_output":
        if call_id not in called:
            at = fields.path("call_id")
            raise ApiError(f"{at!r} names no call before it.", param=at, code="invalid_value")
        return Message("tool", _text(fields, "output"), tool_call_id=call_id)
    fields.only("namespace", (), "functions have no namespace here")
    name, arguments = fields.required_text("name", NAME_LIMIT), fields.required_text("arguments")
    at = fields.path("arguments")
    called.add(call_id)
    return Message("assistant", "", (ToolCall(name, parse_object(arguments or "{}", repr(at), at), call_id),))


def _message(fields: Fields) -> Message:
    role = fields.required_text("role")
    content = _text(fields, "content")
    if role == "assistant":
        fields.only("phase", ("final_answer",), "templates know no phases of an answer")
        return Message("assistant", content)
    if role == "user":
        return Message("user", content)
    if role == "system":
        return Message("system", content)
    if role == "developer":
        return Message("developer", content)
    at = fields.path("role")
    raise ApiError(f"{at!r} must be user, assistant, system or developer.", param=at, code="invalid_value")


def _text(fields: Fields, name: str) -> str:
    """A text, or parts of one, a line each."""
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong(name, "a string or an array of parts")
    return "\n".join(_part(Fields(part, f"{fields.path(name)}[{i}]")) for i, part in enumerate(value))


def _part(fields: Fields) -> str:
    kind = fields.required_text("type")
    if kind in ("input_text", "output_text"):
        text = fields.required_text("text")
    elif kind == "refusal":
        text = fields.required_text("refusal")
    elif kind == "input_json":
        text = _json(fields)
    else:
        raise unsupported(fields.path("type"), f"parts of the type {kind[:40]!r} cannot be read, only text and JSON")
    fields.without_effect(["prompt_cache_breakpoint"])
    fields.finish()
    return text


def _json(fields: Fields) -> str:
    data = fields.get("data")
    rows = data if isinstance(data, list) else [data]
    if not all(isinstance(row, dict) for row in rows):
        raise fields.wrong("data", "an object or an array of objects")
    return json.dumps(data, ensure_ascii=False)


def _some(fields: Fields, name: str, least: int, most: int) -> list[Any]:
    values = fields.array(name, most) or []
    if len(values) < least:
        at = fields.path(name)
        code = "missing_required_parameter" if not values else "invalid_value"
        raise ApiError(f"{at!r} must have {least} to {most} entries.", param=at, code=code)
    return values
