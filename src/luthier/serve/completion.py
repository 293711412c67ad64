"""The body of /v1/completions as typed values. A field is honored, documented to change nothing, or refused."""

from dataclasses import dataclass
from typing import Any

from luthier.serve.api_error import ApiError
from luthier.serve.chat import Common, parse_common
from luthier.serve.fields import Fields, parse_body
from luthier.serve.work import MAX_PROMPTS

MAX_LOGPROBS = 5
DEFAULT_TOKENS = 16
"""OpenAI's own default for this endpoint."""
NO_EFFECT = ("user",)
"""Fields that change no answer."""
MAX_PROMPT_IDS = 1_000_000


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request to /v1/completions; a prompt is text or token ids."""

    common: Common
    prompts: tuple[str | tuple[int, ...], ...]
    max_tokens: int


def parse_completion(body: bytes) -> CompletionRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    common = parse_common(fields, fields.integer("logprobs", 0, MAX_LOGPROBS))
    prompts = _prompts(fields)
    max_tokens = fields.integer("max_tokens", 1, 2**31) or DEFAULT_TOKENS
    best_of = fields.integer("best_of", 1, 8)
    if best_of is not None and best_of != common.n:
        raise ApiError(
            "'best_of' is not supported unless it equals 'n'.", param="best_of", code="unsupported_parameter"
        )
    fields.only("echo", (False,), "the prompt is not repeated in the answer")
    fields.only("suffix", ("",), "text cannot be inserted, only continued")
    fields.without_effect(NO_EFFECT)
    fields.finish()
    return CompletionRequest(common, prompts, max_tokens)


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise fields.wrong("prompt", "a string, an array of strings, an array of token ids, or an array of those")
    if are_ids(value):
        return (tuple(value),)
    if len(value) > MAX_PROMPTS:
        raise ApiError(f"'prompt' may hold at most {MAX_PROMPTS} prompts.", param="prompt")
    if all(isinstance(p, str) for p in value):
        return tuple(value)
    if all(isinstance(p, list) and p and are_ids(p) for p in value):
        return tuple(tuple(p) for p in value)
    raise fields.wrong("prompt", "a string, an array of strings, an array of token ids, or an array of those")


def are_ids(values: list[Any]) -> bool:
    """Whether a list of a request is one of token ids."""
    return len(values) <= MAX_PROMPT_IDS and all(type(v) is int for v in values)
