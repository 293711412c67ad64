"""/v1/files"""

from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from luthier.jobs.file_store import FileStore, file_body
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Answer, Content, Incoming, Multipart, Queried
from luthier.jobs.http.schema import FileForm, FilesQuery
from luthier.jobs.objects import DeletedFile, FileObject, ListObject
from luthier.jobs.pages import list_body


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

    async def create(
        self, request: Request, incoming: Annotated[Incoming[FileForm], Depends(Multipart("file", FileForm))]
    ) -> Answer[FileObject]:
        """POST /v1/files: the bytes are kept, and the rows of a training file looked at, while they arrive."""
        project = caller_of(request).project_id
        with await run_in_threadpool(self._files.receiver, project) as receiver:
            form, name = await incoming.read(receiver)
            seconds = None if form.expires_after is None else form.expires_after.seconds
            body = await run_in_threadpool(self._files.add, project, name, form.purpose, receiver, seconds)
        note_object(request, body["id"])
        return Answer(body)

    def listed(
        self, request: Request, query: Annotated[FilesQuery, Depends(Queried(FilesQuery))]
    ) -> Answer[ListObject[FileObject]]:
        """GET /v1/files"""
        rows, more = self._files.listed(caller_of(request).project_id, query.page(), query.purpose)
        return Answer(list_body(rows, file_body, more))

    def get(self, request: Request, file_id: str) -> Answer[FileObject]:
        """GET /v1/files/{file_id}"""
        return Answer(file_body(self._files.get(caller_of(request).project_id, file_id)))

    def delete(self, request: Request, file_id: str) -> Answer[DeletedFile]:
        """DELETE /v1/files/{file_id}"""
        self._files.delete(caller_of(request).project_id, file_id)
        return Answer({"id": file_id, "object": "file", "deleted": True})

    def content(
        self, request: Request, file_id: str
    ) -> Annotated[Response, Content({"application/octet-stream": bytes})]:
        """GET /v1/files/{file_id}/content: never shown by a browser as a page."""
        chunks = self._files.content(caller_of(request).project_id, file_id)
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)
