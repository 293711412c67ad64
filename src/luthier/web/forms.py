"""Forms of pages, read and held against the token of their session before any handler sees them."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from luthier.jobs.http.reading import chunks_of
from luthier.serve.api_error import ApiError
from luthier.web.sessions import require_token

FORM = "luthier.form"
FORM_BYTES = 9 * 1024 * 1024
"""A row of a data set may have 8 MiB."""
MOST_FIELDS = 2000
TOKEN = "token"
UPLOADS = ("/studio/files",)
"""Where files are uploaded: too long to be read before their handler does, which looks at the token itself."""


@dataclass(frozen=True)
class Posted:
    """The fields of a form."""

    fields: Mapping[str, list[str]]

    def one(self, name: str, default: str = "") -> str:
        """A field without the blanks around it; the default if it is empty."""
        return (self.fields.get(name) or [""])[-1].strip() or default

    def all(self, name: str) -> list[str]:
        """A field that may be there several times."""
        return self.fields.get(name, [])

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number.

        Raises:
            ApiError: 400.
        """
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 10) or not least <= int(text) <= most:
            raise ApiError(f"{name!r}: expected a whole number from {least:,} to {most:,}.", param=name)
        return int(text)


async def require_form(request: Request) -> None:
    """A dependency of every page: what is posted is read here, and refused without the session's token.

    Raises:
        ApiError: 403, 413, 415 or 400.
    """
    if request.method in ("GET", "HEAD"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data" and request.scope["path"] in UPLOADS:
        return
    if kind != "application/x-www-form-urlencoded":
        raise ApiError("The content type must be that of a form.", status=415)
    body = bytearray()
    async for chunk in chunks_of(request):
        body += chunk
        if len(body) > FORM_BYTES:
            raise ApiError(f"A form may have at most {FORM_BYTES:,} bytes.", status=413, code="body_too_large")
    posted = await run_in_threadpool(_read, body)  # megabytes take a while
    require_token(request, posted.one(TOKEN))
    request.scope[FORM] = posted


def _read(body: bytearray) -> Posted:
    fields: dict[str, list[str]] = {}
    try:
        for name, text in parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS):
            fields.setdefault(name, []).append(text)
    except ValueError:
        raise ApiError("The form cannot be read.") from None
    if any("\x00" in text for texts in fields.values() for text in texts):
        raise ApiError("The form holds a NUL character.")
    return Posted(fields)


def posted_of(request: Request) -> Posted:
    """The form that came.

    Raises:
        ApiError: 415: an upload came in its place.
    """
    found = request.scope.get(FORM)
    if not isinstance(found, Posted):
        raise ApiError("The content type must be application/x-www-form-urlencoded.", status=415)
    return found
