"""A multipart body, read while it arrives: one file goes on chunk by chunk, everything else is short fields.

Nothing is spooled: the file's bytes go on as they come, whatever fields stand before or after it.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from luthier.serve.api_error import ApiError

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would write of every bad body
MOST_FIELDS, LONGEST_FIELD, LONGEST_NAME = 32, 4096, 512
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069/\\]")
"""Control characters, what turns the direction of text, and what separates the parts of a path."""


class Receiver(Protocol):
    """Takes the bytes of a file."""

    def write(self, chunk: bytes) -> None:
        """Take more."""


@dataclass
class Form:
    """What was in the body."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    """As the client named it, without a path and control characters; None: no file came."""


class _Reader:
    """Callbacks of the parser."""

    def __init__(self, name: str, receiver: Receiver) -> None:
        self.form, self._name, self._receiver = Form(), name, receiver
        self._header = self._value = b""
        self._headers: dict[str, bytes] = {}
        self._field: str | None = None
        self._text = bytearray()
        self._is_file = False

    def on_part_begin(self) -> None:
        self._headers, self._text = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._field == self._name
        if self._is_file:
            if self.form.filename is not None:
                raise ApiError(f"{self._name!r} is given twice.", param=self._name)
            self.form.filename = safe_name(options.get(b"filename", b"upload").decode("utf-8", "replace"))
        elif len(self.form.fields) >= MOST_FIELDS or len(self._field) > LONGEST_NAME:
            raise ApiError("The form has too many fields, or one with too long a name.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._receiver.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > LONGEST_FIELD:
            raise ApiError(f"{str(self._field)[:100]!r} may have at most {LONGEST_FIELD} bytes.", param=self._field)

    def on_part_end(self) -> None:
        if not self._is_file and self._field is not None:
            if self._field in self.form.fields:
                raise ApiError(f"{self._field[:100]!r} is given twice.", param=self._field)
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")


async def read_form(content_type: str, body: AsyncIterator[bytes], name: str, receiver: Receiver) -> Form:
    """Read a whole body.

    Args:
        content_type: of the request.
        body: its chunks.
        name: of the field that holds the file.
        receiver: takes the file.

    Raises:
        ApiError: 415: it is no multipart body; 400: it is none that can be read, or has no such file; and what
            `receiver` raises.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError("The content type must be multipart/form-data.", status=415)
    reader = _Reader(name, receiver)
    callbacks: dict[str, Callable[..., None]] = {
        "on_part_begin": reader.on_part_begin,
        "on_header_field": reader.on_header_field,
        "on_header_value": reader.on_header_value,
        "on_header_end": reader.on_header_end,
        "on_headers_finished": reader.on_headers_finished,
        "on_part_data": reader.on_part_data,
        "on_part_end": reader.on_part_end,
    }
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        async for chunk in body:
            await run_in_threadpool(parser.write, chunk)  # it goes to the disk, and rows are looked at
        parser.finalize()
    except FormParserError as error:
        raise ApiError(f"The body is no multipart form: {error}") from None
    if reader.form.filename is None:
        raise ApiError(f"{name!r} is required, as a file.", param=name, code="missing_required_parameter")
    return reader.form


def safe_name(name: str) -> str:
    """A file's name for people: it is shown and never opened."""
    name = _UNSAFE.sub("_", name)[:255]
    return name if name.strip(". ") else "upload"
