"""What a handler declares of itself: one annotation reads a part of the request, or types the answer, and documents it.

Keys are looked at first, as dependencies of the whole application; only then do these read anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from luthier.jobs.http.multipart import Receiver, read_form
from luthier.jobs.http.reading import body_of, chunks_of, object_of, read_as
from luthier.jobs.http.schema import Form, Query

A = TypeVar("A")
B = TypeVar("B", bound=BaseModel)
F = TypeVar("F", bound=Form)
Q = TypeVar("Q", bound=Query)


class Answer(JSONResponse, Generic[A]):
    """A JSON answer: `-> Answer[JobObject]` is what mypy holds the handler to, and what the document shows."""

    def __init__(self, body: A, status_code: int = 200) -> None:
        super().__init__(body, status_code)


class Created(Answer[A], Generic[A]):
    """The same with 201."""

    def __init__(self, body: A) -> None:
        super().__init__(body, 201)


@dataclass(frozen=True)
class Content:
    """An answer that is more than JSON: `-> Annotated[Response, Content({"text/plain": str})]`, by media type."""

    types: Mapping[str, Any]
    also: Mapping[int, Any] = field(default_factory=dict)
    """Types of JSON by further statuses."""


class Json(Generic[B]):
    """A dependency: the JSON body as `kind`."""

    def __init__(self, kind: type[B]) -> None:
        self.kind = kind

    async def __call__(self, request: Request) -> B:
        """Read it, or raise what `body_of` raises."""
        return await body_of(request, self.kind)


class Passed:
    """A dependency: the JSON body as it is, for whoever checks it as `kind` further on."""

    def __init__(self, kind: type[BaseModel]) -> None:
        self.kind = kind

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Read it, or raise what `object_of` raises."""
        return await object_of(request)


class Queried(Generic[Q]):
    """A dependency: the query as `kind`."""

    def __init__(self, kind: type[Q]) -> None:
        self.kind = kind

    async def __call__(self, request: Request) -> Q:
        """Read it, or raise what `read_as` raises."""
        return read_as(self.kind.values(request.query_params.multi_items()), self.kind)


class Incoming(Generic[F]):
    """A form that has not been read."""

    def __init__(self, request: Request, file: str, kind: type[F]) -> None:
        self._request, self._file, self._kind = request, file, kind

    async def read(self, receiver: Receiver) -> tuple[F, str]:
        """The fields and the file's name; its bytes go to `receiver` as they come.

        Raises:
            ApiError: as `read_form` and `read_as`.
        """
        kind = self._request.headers.get("content-type", "")
        form = await read_form(kind, chunks_of(self._request), self._file, receiver)
        return read_as(self._kind.values(form.fields.items()), self._kind), form.filename or "upload"


class Multipart(Generic[F]):
    """A dependency: a multipart body with a file in the field `file`, and with the fields of `kind`."""

    def __init__(self, file: str, kind: type[F]) -> None:
        self.file, self.kind = file, kind

    async def __call__(self, request: Request) -> Incoming[F]:
        """Nothing is read yet: whoever reads says where the bytes go."""
        return Incoming(request, self.file, self.kind)
