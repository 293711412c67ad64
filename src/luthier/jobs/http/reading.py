"""Bodies and queries of requests, typed and bounded, with what is wrong told as OpenAI's clients expect it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from luthier.config import did_you_mean
from luthier.serve.api_error import ApiError, gone
from luthier.serve.fields import parse_body

B = TypeVar("B", bound=BaseModel)
BODY_BYTES = 4 * 1024 * 1024
CHUNK_SECONDS = 60.0
"""Longest wait for more of a body."""
SLOWEST_BYTES = 4096
"""A second; a body that comes slower on the whole holds a place for nothing."""
CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "whole_number": "out_of_range",
}
"""By pydantic's types of errors."""


async def chunks_of(request: Request, patience: float = CHUNK_SECONDS) -> AsyncIterator[bytes]:
    """The body as it arrives; `patience`: seconds to wait for more of it.

    Raises:
        ApiError: 408: nothing came for too long, or it comes too slowly; the client hung up.
    """
    stream, began, size = request.stream(), time.monotonic(), 0
    while True:
        left = patience + size / SLOWEST_BYTES - (time.monotonic() - began)
        try:
            async with asyncio.timeout(min(patience, left)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError("The body took too long to arrive.", status=408) from None
        except ClientDisconnect:
            raise gone() from None
        size += len(chunk)
        yield chunk


async def body_of(request: Request, kind: type[B]) -> B:
    """The JSON body.

    Raises:
        ApiError: 415, 413 or 400; 400 names the field.
    """
    return read_as(await object_of(request), kind)


async def object_of(request: Request) -> dict[str, Any]:
    """The JSON body as it is.

    Raises:
        ApiError: 415, 413, or 400: it is no JSON object.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = bytearray()
    async for chunk in chunks_of(request):
        body += chunk
        if len(body) > BODY_BYTES:
            raise ApiError(f"The body may have at most {BODY_BYTES} bytes.", status=413, code="body_too_large")
    if content_type != "application/json":  # a form can be posted by any web page, JSON cannot
        raise ApiError("The content type must be application/json.", status=415)
    return parse_body(bytes(body))


def read_as(values: Mapping[str, object], kind: type[B]) -> B:
    """Values as a body; raises ApiError 400 that names the first field that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _told(error, kind) from None


def _told(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    errors = error.errors(include_url=False, include_context=False)
    first, param = errors[0], _place(errors[0])
    # of a field that may be one of several things, each says what it would take
    message = " or ".join(dict.fromkeys(str(one["msg"]) for one in errors if _place(one) == param))
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])[:100]
        message = f"Unknown field{did_you_mean(name, list(kind.model_fields)) if len(first['loc']) == 1 else ''}"
    elif first["type"] == "missing":
        message = "This field is required"
    return ApiError(f"{param[:200]!r}: {message}.", param=param[:200], code=CODES.get(first["type"], "invalid_value"))


def _place(error: ErrorDetails) -> str:
    """Where it is wrong, in the client's words."""
    own = ("function-", "literal[", "constrained-")
    return ".".join(str(part) for part in error["loc"] if not str(part).startswith(own))


def require_no_nul(request: Request) -> None:
    """A dependency of every route: a NUL in a path or query names nothing, and PostgreSQL takes none.

    Raises:
        ApiError: 400.
    """
    if "\x00" in request.scope["path"] or "%00" in request.scope["query_string"].decode("latin-1"):
        raise ApiError("The path or the query holds a NUL character.")
