"""The body of /v1/embeddings as typed values. A field is honored, documented to change nothing, or refused."""

from dataclasses import dataclass

from luthier.serve.api_error import ApiError
from luthier.serve.completion import are_ids
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body

MAX_INPUTS, MAX_TOKENS = 2048, 300_000
"""OpenAI's own limits; the second is of all inputs of a request."""
NO_EFFECT = ("user",)
"""Fields that change no vector."""
SHAPES = "a string, an array of strings, an array of token ids, or an array of those"


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request; an input is text or token ids."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    as_base64: bool
    dimensions: int | None


def parse_embedding(body: bytes) -> EmbeddingRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    asked = EmbeddingRequest(
        model=fields.required_text("model", NAME_LIMIT),
        inputs=_inputs(fields),
        as_base64=_as_base64(fields),
        dimensions=fields.integer("dimensions", 1, 2**31),
    )
    fields.without_effect(NO_EFFECT)
    fields.finish()
    return asked


def _inputs(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("input")
    if isinstance(value, str) or (isinstance(value, list) and value and are_ids(value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong("input", SHAPES)
    if len(value) > MAX_INPUTS:
        raise ApiError(f"'input' may hold at most {MAX_INPUTS} inputs; got {len(value)}.", param="input")
    if not all(isinstance(one, str) or (isinstance(one, list) and are_ids(one)) for one in value):
        raise fields.wrong("input", SHAPES)
    if not all(value):
        raise ApiError("'input' holds an empty text, of which there is no vector.", param="input")
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _as_base64(fields: Fields) -> bool:
    value = fields.text("encoding_format")
    if value not in (None, "float", "base64"):
        raise ApiError("'encoding_format' must be float or base64.", param="encoding_format", code="invalid_value")
    return value == "base64"
