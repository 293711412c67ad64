"""What people change in a file's rows: kept as entries in the order they were made, each of which can be taken back.

The file itself stays as it is. Its rows with the entries applied become a new file, when somebody asks for it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import sqlalchemy as sa

from luthier.jobs.database import Database, edits, files, now
from luthier.jobs.file_store import FileStore, missing
from luthier.jobs.ids import EDIT, new_id
from luthier.jobs.objects import FileObject
from luthier.jobs.rows import Rows
from luthier.serve.api_error import ApiError

PAGE_ROWS = 25


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The rows of a file with their line numbers; blank lines are none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line.decode("utf-8", "replace").rstrip("\r\n")


def require_row(text: str) -> None:
    """Check a row as it is checked when it is uploaded.

    Raises:
        ApiError: 400: it cannot be trained on.
    """
    rows = Rows()
    rows.feed(text.encode() + b"\n")
    refusal = rows.refusal()
    if refusal is not None:
        raise ApiError(f"The row cannot be used: {refusal.removeprefix('line 1: ')}.", param="row")


class Edits:
    """The entries of all files."""

    def __init__(self, database: Database, store: FileStore) -> None:
        self._database, self._store = database, store

    def of(self, project: str, file_id: str) -> Mapping[int, str | None]:
        """What lines are now instead of what the file says; None: left out."""
        query = (
            sa.select(edits.c.line, edits.c.text)
            .where(edits.c.project_id == project, edits.c.file_id == file_id, edits.c.undone_at.is_(None))
            .order_by(edits.c.seq)
        )
        with self._database.reading() as connection:
            return {row.line: row.text for row in connection.execute(query)}

    def add(self, project: str, file_id: str, line: int, text: str | None) -> None:
        """Put a text in a line's place, or leave the line out.

        Raises:
            ApiError: 404: the file was deleted.
        """
        values = {"project_id": project, "file_id": file_id, "line": line, "text": text}
        is_there = sa.exists().where(files.c.project_id == project, files.c.id == file_id)
        with self._database.writing() as connection:
            if not connection.scalar(sa.select(is_there)):  # within: what a file's rows say must not outlive it
                raise missing("file", file_id)
            connection.execute(edits.insert().values(id=new_id(EDIT), created_at=now(), **values))

    def undo(self, project: str, file_id: str) -> int | None:
        """Take the latest entry back; its line, or None if there is none."""
        mine = edits.c.project_id == project, edits.c.file_id == file_id, edits.c.undone_at.is_(None)
        with self._database.writing() as connection:
            query = sa.select(edits.c.seq, edits.c.line).where(*mine).order_by(edits.c.seq.desc()).limit(1)
            last = connection.execute(query).first()
            if last is None:
                return None
            connection.execute(edits.update().where(edits.c.seq == last.seq).values(undone_at=now()))
            return int(last.line)

    def make(self, project: str, file_id: str) -> FileObject:
        """A new file of the rows as they are now.

        Raises:
            ApiError: 404; 400: nothing was changed, or no row is left; 413: there is no room.
        """
        row, changed = self._store.get(project, file_id), self.of(project, file_id)
        if not changed:
            raise ApiError("No row was changed, so the new file would be the same.")
        with self._store.receiver(project) as received:
            for number, line in lines_of(self._store.path(project, file_id)):
                text = changed.get(number, line)
                if text is not None:
                    received.write(text.encode() + b"\n")
            stem, dot, ending = row["filename"].rpartition(".")
            name = f"{stem}-edited.{ending}" if dot else f"{row['filename']}-edited"
            return self._store.add(project, name, row["purpose"], received)
