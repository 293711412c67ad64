"""The body of a request, bounded in type, size and time, and whether its client still waits. No torch here."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from luthier.serve.api_error import ApiError, gone
from luthier.serve.limits import HttpLimits

T = TypeVar("T")


async def read_body(request: Request, limits: HttpLimits) -> bytes:
    """The body of a POST.

    Raises:
        ApiError: 415, 413, or 408; 499 if the client hung up.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form can be posted by any web page, JSON cannot
        raise ApiError("The content type must be application/json.", status=415)
    limit = limits.body_bytes
    too_large = ApiError(f"The body may have at most {limit} bytes.", status=413, code="body_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError("The body took too long to arrive.", status=408) from None
    except ClientDisconnect:
        raise gone() from None
    return bytes(body)


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """Await `answer`, and cancel it as soon as the client hangs up."""
    task = asyncio.ensure_future(answer)
    watch = asyncio.ensure_future(hang_up(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise gone()
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


async def hang_up(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
