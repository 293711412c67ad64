"""/v1/uploads: a file in parts."""

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.jobs.file_store import FileStore
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.multipart import read_form, safe_name
from luthier.jobs.http.reading import body_of, chunks_of
from luthier.jobs.http.schema import CompleteUpload, CreateUpload


class UploadRoutes:
    """The handlers."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/uploads", self.create, methods=["POST"], response_model=None)
        app.add_api_route("/v1/uploads/{upload_id}/parts", self.add_part, methods=["POST"], response_model=None)
        app.add_api_route("/v1/uploads/{upload_id}/complete", self.complete, methods=["POST"], response_model=None)
        app.add_api_route("/v1/uploads/{upload_id}/cancel", self.cancel, methods=["POST"], response_model=None)

    async def create(self, request: Request) -> Response:
        """POST /v1/uploads"""
        asked = await body_of(request, CreateUpload)
        values = {
            "bytes": asked.bytes,
            "filename": safe_name(asked.filename),
            "mime_type": asked.mime_type,
            "purpose": asked.purpose,
            "file_seconds": None if asked.expires_after is None else asked.expires_after.seconds,
        }
        body = await run_in_threadpool(self._files.create_upload, caller_of(request).project_id, values)
        note_object(request, body["id"])
        return JSONResponse(body)

    async def add_part(self, request: Request, upload_id: str) -> Response:
        """POST /v1/uploads/{upload_id}/parts"""
        project = caller_of(request).project_id
        with await run_in_threadpool(self._files.part_receiver, project, upload_id) as receiver:
            await read_form(request.headers.get("content-type", ""), chunks_of(request), "data", receiver)
            body = await run_in_threadpool(self._files.add_part, project, upload_id, receiver)
        note_object(request, body["id"])
        return JSONResponse(body)

    async def complete(self, request: Request, upload_id: str) -> Response:
        """POST /v1/uploads/{upload_id}/complete"""
        asked = await body_of(request, CompleteUpload)
        project = caller_of(request).project_id
        body = await run_in_threadpool(self._files.complete, project, upload_id, asked.part_ids, asked.md5)
        return JSONResponse(body)

    def cancel(self, request: Request, upload_id: str) -> Response:
        """POST /v1/uploads/{upload_id}/cancel"""
        return JSONResponse(self._files.cancel(caller_of(request).project_id, upload_id))
