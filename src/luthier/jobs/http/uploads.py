"""/v1/uploads: a file in parts."""

from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from luthier.jobs.file_store import FileStore
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Answer, Incoming, Json, Multipart
from luthier.jobs.http.multipart import safe_name
from luthier.jobs.http.schema import CompleteUpload, CreateUpload, PartForm
from luthier.jobs.objects import UploadObject, UploadPart


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

    async def create(
        self, request: Request, asked: Annotated[CreateUpload, Depends(Json(CreateUpload))]
    ) -> Answer[UploadObject]:
        """POST /v1/uploads"""
        values = {
            "bytes": asked.bytes,
            "filename": safe_name(asked.filename),
            "mime_type": asked.mime_type,
            "purpose": asked.purpose,
            "file_seconds": None if asked.expires_after is None else asked.expires_after.seconds,
        }
        body = await run_in_threadpool(self._files.create_upload, caller_of(request).project_id, values)
        note_object(request, body["id"])
        return Answer(body)

    async def add_part(
        self,
        request: Request,
        upload_id: str,
        incoming: Annotated[Incoming[PartForm], Depends(Multipart("data", PartForm))],
    ) -> Answer[UploadPart]:
        """POST /v1/uploads/{upload_id}/parts"""
        project = caller_of(request).project_id
        with await run_in_threadpool(self._files.part_receiver, project, upload_id) as receiver:
            await incoming.read(receiver)
            body = await run_in_threadpool(self._files.add_part, project, upload_id, receiver)
        note_object(request, body["id"])
        return Answer(body)

    async def complete(
        self, request: Request, upload_id: str, asked: Annotated[CompleteUpload, Depends(Json(CompleteUpload))]
    ) -> Answer[UploadObject]:
        """POST /v1/uploads/{upload_id}/complete"""
        project = caller_of(request).project_id
        body = await run_in_threadpool(self._files.complete, project, upload_id, asked.part_ids, asked.md5)
        return Answer(body)

    def cancel(self, request: Request, upload_id: str) -> Answer[UploadObject]:
        """POST /v1/uploads/{upload_id}/cancel"""
        return Answer(self._files.cancel(caller_of(request).project_id, upload_id))
