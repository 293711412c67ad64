"""/v1/files"""

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.jobs.file_store import FileStore, file_body
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.multipart import Form, read_form
from luthier.jobs.http.reading import DIGITS, chunks_of, page_from, read_as, require_known
from luthier.jobs.http.schema import ExpiresAfter
from luthier.jobs.pages import list_body
from luthier.serve.api_error import ApiError

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
MOST_FILES = 10_000


class FileRoutes:
    """The handlers."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/files", self.create, methods=["POST"], response_model=None)
        app.add_api_route("/v1/files", self.listed, methods=["GET"], response_model=None)
        app.add_api_route("/v1/files/{file_id}", self.get, methods=["GET"], response_model=None)
        app.add_api_route("/v1/files/{file_id}", self.delete, methods=["DELETE"], response_model=None)
        app.add_api_route("/v1/files/{file_id}/content", self.content, methods=["GET"], response_model=None)

    async def create(self, request: Request) -> Response:
        """POST /v1/files: the bytes are kept, and the rows of a training file looked at, while they arrive."""
        project = caller_of(request).project_id
        with await run_in_threadpool(self._files.receiver, project) as receiver:
            kind = request.headers.get("content-type", "")
            form = await read_form(kind, chunks_of(request), "file", receiver)
            _require_fields(form, ("purpose", ANCHOR, SECONDS))
            purpose = form.fields.get("purpose")
            if purpose is None:
                raise ApiError("'purpose' is required.", param="purpose", code="missing_required_parameter")
            seconds = _seconds(form)
            name = form.filename or "upload"
            body = await run_in_threadpool(self._files.add, project, name, purpose, receiver, seconds)
        note_object(request, body["id"])
        return JSONResponse(body)

    def listed(self, request: Request) -> Response:
        """GET /v1/files"""
        require_known(request, ("after", "limit", "order", "purpose"))
        page = page_from(request, MOST_FILES, MOST_FILES)
        rows, more = self._files.listed(caller_of(request).project_id, page, request.query_params.get("purpose"))
        return JSONResponse(list_body(rows, file_body, more))

    def get(self, request: Request, file_id: str) -> Response:
        """GET /v1/files/{file_id}"""
        return JSONResponse(file_body(self._files.get(caller_of(request).project_id, file_id)))

    def delete(self, request: Request, file_id: str) -> Response:
        """DELETE /v1/files/{file_id}"""
        self._files.delete(caller_of(request).project_id, file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    def content(self, request: Request, file_id: str) -> Response:
        """GET /v1/files/{file_id}/content: never shown by a browser as a page."""
        chunks = self._files.content(caller_of(request).project_id, file_id)
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def _require_fields(form: Form, known: tuple[str, ...]) -> None:
    for name in form.fields:
        if name not in known:
            raise ApiError(f"Unknown field {name[:100]!r}.", param=name[:100], code="unknown_parameter")


def _seconds(form: Form) -> int | None:
    """The seconds of `expires_after`; None if it is not there."""
    if ANCHOR not in form.fields and SECONDS not in form.fields:
        return None
    text = form.fields.get(SECONDS, "")
    values = {"anchor": form.fields.get(ANCHOR), "seconds": int(text) if DIGITS.fullmatch(text) else text}
    return read_as(values, ExpiresAfter).seconds
