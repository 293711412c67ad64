"""Data: files, and the rows of one to be read, searched, mended and left out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from luthier.jobs.database import Row
from luthier.jobs.http.app import Service
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.multipart import read_form
from luthier.jobs.http.reading import chunks_of
from luthier.jobs.pages import Page
from luthier.serve.api_error import ApiError
from luthier.web.edits import PAGE_ROWS, Edits, lines_of, require_row
from luthier.web.forms import TOKEN, posted_of
from luthier.web.pages import go_to, show
from luthier.web.row_text import compact, indented, tools, turns, with_texts
from luthier.web.sessions import require_token, session_of

PURPOSES = {"fine-tune": "Rows to train on", "user_data": "Text to find passages in"}
MOST_FILES = 100
LONGEST_LINE_NUMBER = 12


def holds(text: str, words: Sequence[str]) -> bool:
    """Whether a row has all words, as it is written or as it is read; only escapes make a difference."""
    written = text.casefold()
    missing = [word for word in words if word not in written]
    if not missing or "\\" not in text:
        return not missing
    read = "\n".join([tools(text), *(f"{turn.text}\n{turn.beside}" for turn in turns(text))]).casefold()
    return all(word in read for word in missing)


class FilePages:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service, self._files = service, service.files
        self._edits = Edits(service.database, service.files)

    def add_to(self, app: FastAPI) -> None:
        """Add the pages."""
        file = "/studio/files/{file_id}"
        app.add_api_route("/studio/files", self.listed, methods=["GET"], response_model=None)
        app.add_api_route("/studio/files", self.upload, methods=["POST"], response_model=None)
        app.add_api_route(file, self.rows, methods=["GET"], response_model=None)
        app.add_api_route(file + "/content", self.content, methods=["GET"], response_model=None)
        app.add_api_route(file + "/delete", self.delete, methods=["POST"], response_model=None)
        app.add_api_route(file + "/rows/{line}", self.row, methods=["GET"], response_model=None)
        app.add_api_route(file + "/rows/{line}", self.fix, methods=["POST"], response_model=None)
        app.add_api_route(file + "/rows/{line}/exclude", self.exclude, methods=["POST"], response_model=None)
        app.add_api_route(file + "/rows/{line}/include", self.include, methods=["POST"], response_model=None)
        app.add_api_route(file + "/undo", self.undo, methods=["POST"], response_model=None)
        app.add_api_route(file + "/make", self.make, methods=["POST"], response_model=None)

    def listed(self, request: Request) -> Response:
        """GET /studio/files"""
        rows, more = self._files.listed(session_of(request).caller.project_id, Page(limit=MOST_FILES), None)
        return show(request, "files.html.jinja", files=rows, more=more, purposes=PURPOSES)

    async def upload(self, request: Request) -> Response:
        """POST /studio/files: the token is a field like the purpose, and looked at before anything is kept"""
        project = session_of(request).caller.project_id
        with await run_in_threadpool(self._files.receiver, project) as received:
            form = await read_form(request.headers.get("content-type", ""), chunks_of(request), "file", received)
            require_token(request, form.fields.get(TOKEN, ""))
            purpose = form.fields.get("purpose", "")
            if purpose not in PURPOSES:
                raise ApiError(f"'purpose': expected {' or '.join(PURPOSES)}.", param="purpose")
            name = form.filename or "upload"
            made = await run_in_threadpool(self._files.add, project, name, purpose, received)
        note_object(request, made["id"])
        return go_to(f"/studio/files/{made['id']}/job" if purpose == "fine-tune" else "/studio/files")

    def rows(self, request: Request, file_id: str) -> Response:
        """GET /studio/files/{file_id}?search=&from="""
        file = self._file(request, file_id)
        search, start = request.query_params.get("search", "")[:500], request.query_params.get("from", "1")
        first = int(start) if start.isascii() and start.isdigit() and len(start) < LONGEST_LINE_NUMBER else 1
        changed = self._edits.of(file["project_id"], file["id"])
        found = islice(self._matching(file, changed, search, first), PAGE_ROWS + 1)
        listed = [
            {"line": n, "text": text, "tools": tools(text), "turns": turns(text), "excluded": gone}
            for n, text, gone in found
        ]
        return show(
            request,
            "rows.html.jinja",
            file=file,
            rows=listed[:PAGE_ROWS],
            following=listed[PAGE_ROWS]["line"] if len(listed) > PAGE_ROWS else None,
            first=first,
            search=search,
            changed=changed,
            excluded=sum(text is None for text in changed.values()),
            is_rows=file["purpose"] == "fine-tune",
        )

    def _matching(
        self, file: Row, changed: Mapping[int, str | None], search: str, first: int
    ) -> Iterator[tuple[int, str, bool]]:
        """Lines from `first` on that hold what is searched for, as they are now, and whether they are left out."""
        words = search.casefold().split()
        for number, line in lines_of(self._files.path(file["project_id"], file["id"])):
            if number < first:
                continue
            new = changed.get(number, line)
            text, gone = (line, True) if new is None else (new, False)
            if holds(text, words):
                yield number, text, gone

    def content(self, request: Request, file_id: str) -> Response:
        """GET /studio/files/{file_id}/content: a download, which a browser never shows as a page"""
        file = self._file(request, file_id)
        headers = {"content-disposition": "attachment"}
        chunks = self._files.content(file["project_id"], file["id"])
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)

    def delete(self, request: Request, file_id: str) -> Response:
        """POST /studio/files/{file_id}/delete"""
        file = self._file(request, file_id)
        self._files.delete(file["project_id"], file["id"])
        return go_to("/studio/files")

    def row(self, request: Request, file_id: str, line: str) -> Response:
        """GET /studio/files/{file_id}/rows/{line}: one row, to be mended"""
        file, number, text, _ = self._line(request, file_id, line)
        return show(
            request,
            "row.html.jinja",
            file=file,
            line=number,
            tools=tools(text),
            turns=turns(text),
            text=indented(text),
            problem=None,
        )

    def fix(self, request: Request, file_id: str, line: str) -> Response:
        """POST /studio/files/{file_id}/rows/{line}: texts by their places, or the whole row as JSON"""
        file, number, text, _ = self._line(request, file_id, line)
        posted = posted_of(request)
        texts = {name.removeprefix("at:"): posted.all(name)[-1] for name in posted.fields if name.startswith("at:")}
        new = with_texts(text, texts) if texts else compact(posted.one("row"))
        try:
            require_row(new)
        except ApiError as error:
            shown = turns(new) if texts else []
            return show(
                request,
                "row.html.jinja",
                400,
                file=file,
                line=number,
                tools=tools(new) if texts else "",
                turns=shown,
                text=indented(new),
                problem=error.message,
            )
        if new != text:
            self._edits.add(file["project_id"], file["id"], number, new)
        return go_to(f"/studio/files/{file['id']}", **{"from": str(number)})

    def exclude(self, request: Request, file_id: str, line: str) -> Response:
        """POST /studio/files/{file_id}/rows/{line}/exclude"""
        file, number, _, _ = self._line(request, file_id, line)
        self._edits.add(file["project_id"], file["id"], number, None)
        return self._back(request, file, number)

    def include(self, request: Request, file_id: str, line: str) -> Response:
        """POST /studio/files/{file_id}/rows/{line}/include: as the file has it"""
        file, number, _, original = self._line(request, file_id, line)
        self._edits.add(file["project_id"], file["id"], number, original)
        return self._back(request, file, number)

    def undo(self, request: Request, file_id: str) -> Response:
        """POST /studio/files/{file_id}/undo"""
        file = self._file(request, file_id)
        self._edits.undo(file["project_id"], file["id"])
        return self._back(request, file, None)

    def make(self, request: Request, file_id: str) -> Response:
        """POST /studio/files/{file_id}/make: a new file of the rows as they are now"""
        file = self._file(request, file_id)
        made = self._edits.make(file["project_id"], file["id"])
        note_object(request, made["id"])
        return go_to(f"/studio/files/{made['id']}")

    def _back(self, request: Request, file: Row, line: int | None) -> Response:
        """To the page that the form was on, whose search and first line it carries."""
        posted = posted_of(request)
        query = {"search": posted.one("search"), "from": posted.one("from", "1")}
        answer = go_to(f"/studio/files/{file['id']}", **query)
        if line is not None:
            answer.headers["location"] += f"#line-{line}"
        return answer

    def _file(self, request: Request, file_id: str) -> Row:
        return self._files.get(session_of(request).caller.project_id, file_id)

    def _line(self, request: Request, file_id: str, line: str) -> tuple[Row, int, str, str]:
        """The file, the number, the row as it is now (as it was, if it is left out), and as the file has it."""
        file = self._file(request, file_id)
        if file["purpose"] != "fine-tune":
            raise ApiError("The rows of this file are not for training, and cannot be changed here.")
        wanted = int(line) if line.isascii() and line.isdigit() and len(line) < LONGEST_LINE_NUMBER else 0
        lines = lines_of(self._files.path(file["project_id"], file["id"]))
        original = next((text for number, text in lines if number == wanted), None)
        if original is None:
            raise ApiError(f"The file has no row in line {line[:20]!r}.", status=404)
        return file, wanted, self._edits.of(file["project_id"], file["id"]).get(wanted) or original, original
