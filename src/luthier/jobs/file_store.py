"""Files and uploads: rows in the database, bytes among the blobs, and what a project may keep.

An upload is a file that comes in parts; its parts are blobs until they are put together. What nothing names any more is
removed: expired files and uploads by `sweep`, bytes when their last row goes.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from luthier.errors import StorageError
from luthier.jobs.blobs import Blobs, TooLarge, Writer
from luthier.jobs.database import Database, Row, edits, files, insert_new, now, upload_parts, uploads
from luthier.jobs.disk import Disk
from luthier.jobs.ids import FILE, PART, UPLOAD, new_id
from luthier.jobs.objects import FileObject, UploadObject, UploadPart
from luthier.jobs.pages import Page, page_of
from luthier.jobs.rows import Rows
from luthier.serve.api_error import ApiError

RESULTS = "fine-tune-results"
UPLOAD_SECONDS = 3600
"""Life of an upload that nobody completes."""
MOST_PARTS = 10_000
"""Of one upload."""
SHORTEST_DIGEST = 16
"""Characters."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Quota:
    """What files may take."""

    file_bytes: int = 512 * MIB
    """One file, or one part of an upload."""
    upload_bytes: int = 8192 * MIB
    """One upload, put together."""
    project_bytes: int = 64 * 1024 * MIB
    """All files of a project, uploads that were announced, and what is on its way in."""


class FileStore:
    """The files of all projects."""

    def __init__(self, database: Database, blobs: Blobs, quota: Quota, disk: Disk) -> None:
        self._database, self._blobs, self.quota, self._disk = database, blobs, quota, disk
        # bytes are put in their place before a row names them: nobody may find them nameless in between
        # whoever adds bytes holds this from the look for room on, too, so several at once do not take the same room
        self._naming = threading.RLock()
        self._arriving: Counter[str] = Counter()
        self._counting = threading.Lock()

    def receiver(self, project: str, limit: int | None = None, upload: str | None = None) -> "Receiver":
        """Takes the bytes of one file; its purpose may be known before or after.

        Args:
            project: whose room it takes.
            limit: bytes; None: of one file.
            upload: whose announced bytes these are.

        Raises:
            ApiError: 507: the disk is nearly full.
        """
        self._disk.require_room()
        limit = self.quota.file_bytes if limit is None else limit
        kept = self._kept(project, upload)
        return Receiver(self._blobs.writer(limit), limit, lambda size: self._arrive(project, kept, size))

    def add(
        self,
        project: str,
        filename: str,
        purpose: str,
        received: "Receiver",
        seconds: int | None = None,
        upload: str | None = None,
    ) -> FileObject:
        """Keep what was received as a file; `seconds` until it expires, None: never; `upload`: which it completes.

        Raises:
            ApiError: 400: rows that cannot be trained on; 413: the project has no room.
        """
        if purpose == "fine-tune":
            received.require_rows()
        with self._naming:
            self._require_room(project, received.size, upload)
            return self.keep(project, filename, purpose, received.finish(), received.size, seconds)

    def keep(
        self,
        project: str,
        filename: str,
        purpose: str,
        digest: str,
        size: int,
        seconds: int | None = None,
        file_id: str | None = None,
    ) -> FileObject:
        """A file over bytes that are among the blobs; one of a given id is there at most once."""
        created = now()
        values = {
            "id": file_id or new_id(FILE),
            "created_at": created,
            "project_id": project,
            "filename": filename,
            "purpose": purpose,
            "bytes": size,
            "sha256": digest,
            "status": "processed",
            "expires_at": None if seconds is None else created + seconds,
        }
        with self._database.writing() as connection:
            insert_new(connection, files, values)
        return file_body({**values, "status_details": None})

    def get(self, project: str, file_id: str) -> Row:
        """A file's row.

        Raises:
            ApiError: 404: the project has no such file.
        """
        with self._database.reading() as connection:
            row = (
                connection.execute(_live().where(files.c.project_id == project, files.c.id == file_id))
                .mappings()
                .first()
            )
        if row is None:
            raise missing("file", file_id)
        return row

    def listed(self, project: str, page: Page, purpose: str | None) -> tuple[Sequence[Row], bool]:
        """A page of the project's files."""
        query = _live().where(files.c.project_id == project)
        wanted = [] if purpose is None else [files.c.purpose == purpose]
        with self._database.reading() as connection:
            return page_of(connection, query, files, page, wanted)

    def content(self, project: str, file_id: str) -> Iterator[bytes]:
        """A file's bytes.

        Raises:
            ApiError: 404.
            StorageError: they are gone, and nobody deleted the file.
        """
        try:
            return self._blobs.read(self.get(project, file_id)["sha256"])
        except StorageError:
            self.get(project, file_id)  # deleted between the two: 404
            raise

    def path(self, project: str, file_id: str) -> Path:
        """Where a file's bytes lie, to be read or linked.

        Raises:
            ApiError: 404.
        """
        return self._blobs.path(self.get(project, file_id)["sha256"])

    def delete(self, project: str, file_id: str) -> None:
        """Remove a file; jobs that were made with it have copies of their own.

        Raises:
            ApiError: 404.
        """
        digest = self.get(project, file_id)["sha256"]
        with self._naming, self._database.writing() as connection:
            self._remove(connection, {file_id: digest})

    def create_upload(self, project: str, asked: dict[str, Any]) -> UploadObject:
        """Begin an upload; `asked` has the columns that a client decides.

        Raises:
            ApiError: 413 or 507.
        """
        if asked["bytes"] > self.quota.upload_bytes:
            raise too_large(self.quota.upload_bytes)
        created = now()
        values = {
            "id": new_id(UPLOAD),
            "created_at": created,
            "project_id": project,
            "status": "pending",
            "expires_at": created + UPLOAD_SECONDS,
            "file_id": None,
            **asked,
        }
        self._disk.require_room(asked["bytes"])
        with self._naming:
            self._require_room(project, asked["bytes"])
            with self._database.writing() as connection:
                connection.execute(uploads.insert().values(**values))
        return upload_body(values, None)

    def part_receiver(self, project: str, upload_id: str) -> "Receiver":
        """Takes the bytes of one part.

        Raises:
            ApiError: 404, or 400: the upload takes no more parts.
        """
        row = self._pending(project, upload_id)
        return self.receiver(project, None, row["id"])

    def add_part(self, project: str, upload_id: str, received: "Receiver") -> UploadPart:
        """Keep a part.

        Raises:
            ApiError: as `part_receiver`; 413: the parts are too many or too long, or the project has no room.
        """
        with self._naming:
            row = self._pending(project, upload_id)
            part_id, created = new_id(PART), now()
            values = {"id": part_id, "created_at": created, "upload_id": row["id"], "bytes": received.size}
            self._require_room_of_parts(row, received.size)
            digest = received.finish()
            with self._database.writing() as connection:
                connection.execute(upload_parts.insert().values(**values, sha256=digest))
        return {"id": part_id, "created_at": created, "object": "upload.part", "upload_id": upload_id}

    def complete(self, project: str, upload_id: str, part_ids: Sequence[str], md5: str | None) -> UploadObject:
        """Put the parts together, in the order that is given, as a file.

        Raises:
            ApiError: 404; 400: a part is not one of this upload or given twice, sizes or sums differ, rows are bad.
        """
        row = self._pending(project, upload_id)
        parts = self._parts(row["id"], part_ids)
        total = sum(part["bytes"] for part in parts)
        if total != row["bytes"]:
            raise ApiError(
                f"The parts have {total} bytes; the upload was announced with {row['bytes']}.", param="part_ids"
            )
        with self.receiver(project, self.quota.upload_bytes, row["id"]) as received:
            try:
                for part in parts:
                    for chunk in self._blobs.read(part["sha256"]):
                        received.write(chunk)
            except StorageError:
                with self._naming:  # another request is just ending it, and its parts are gone
                    self._pending(project, upload_id)
                raise
            # OpenAI's own tests send the word "md5"; what is too short for any digest is none, and is not compared
            if md5 is not None and len(md5) >= SHORTEST_DIGEST and md5.lower() != received.md5:
                raise ApiError("The md5 of the parts is another one.", param="md5")
            with self._naming:
                self._pending(project, upload_id)  # another request may have ended it meanwhile
                file = self.add(project, row["filename"], row["purpose"], received, row["file_seconds"], row["id"])
                self._close(row, "completed", file["id"])
        return upload_body({**row, "status": "completed"}, file)

    def cancel(self, project: str, upload_id: str) -> UploadObject:
        """Take no more parts, and forget those that came.

        Raises:
            ApiError: 404, or 400: it is not pending.
        """
        with self._naming:
            row = self._pending(project, upload_id)
            self._close(row, "cancelled", None)
        return upload_body({**row, "status": "cancelled"}, None)

    def sweep(self) -> None:
        """Remove expired files, and close uploads that nobody completed."""
        late = sa.select(uploads).where(uploads.c.status == "pending", uploads.c.expires_at <= now())
        with self._naming:
            with self._database.writing() as connection:
                old = connection.execute(sa.select(files.c.id, files.c.sha256).where(files.c.expires_at <= now())).all()
                self._remove(connection, {row.id: row.sha256 for row in old})
                ended = connection.execute(late).mappings().all()
            for row in ended:
                self._close(row, "expired", None)

    def _pending(self, project: str, upload_id: str) -> Row:
        query = sa.select(uploads).where(uploads.c.project_id == project, uploads.c.id == upload_id)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise missing("upload", upload_id)
        status = "expired" if row["status"] == "pending" and row["expires_at"] <= now() else row["status"]
        if status != "pending":
            raise ApiError(f"The upload {row['id']!r} is {status} and takes nothing more.", code="upload_not_pending")
        return row

    def _parts(self, upload_id: str, part_ids: Sequence[str]) -> list[Row]:
        with self._database.reading() as connection:
            found = connection.execute(sa.select(upload_parts).where(upload_parts.c.upload_id == upload_id)).mappings()
            by_id = {row["id"]: row for row in found}
        for number, part_id in enumerate(part_ids):
            if part_id not in by_id or part_id in part_ids[:number]:
                why = "is given twice" if part_id in by_id else "is no part of this upload"
                raise ApiError(f"{part_id[:100]!r} {why}.", param=f"part_ids[{number}]")
        return [by_id[part_id] for part_id in part_ids]

    def _close(self, row: Row, status: str, file_id: str | None) -> None:
        with self._naming, self._database.writing() as connection:
            connection.execute(uploads.update().where(uploads.c.id == row["id"]).values(status=status, file_id=file_id))
            parts = (
                connection.execute(sa.select(upload_parts.c.sha256).where(upload_parts.c.upload_id == row["id"]))
                .scalars()
                .all()
            )
            connection.execute(upload_parts.delete().where(upload_parts.c.upload_id == row["id"]))
            self._forget(connection, list(parts))

    def _remove(self, connection: sa.Connection, digests: Mapping[str, str]) -> None:
        """Remove files, whose digests these are, with what people changed in their rows, as that quotes them."""
        connection.execute(edits.delete().where(edits.c.file_id.in_(digests)))
        connection.execute(files.delete().where(files.c.id.in_(digests)))
        self._forget(connection, list(digests.values()))

    def _forget(self, connection: sa.Connection, digests: Sequence[str]) -> None:
        """Remove bytes that no row names, while nobody else can name them."""
        for digest in set(digests):
            named = connection.scalar(
                sa.select(
                    sa.exists().where(files.c.sha256 == digest) | sa.exists().where(upload_parts.c.sha256 == digest)
                )
            )
            if not named:
                self._blobs.remove(digest)

    def _require_room_of_parts(self, upload: Row, size: int) -> None:
        """Parts may have more bytes than were announced: a client sends one again whose answer it missed."""
        of_upload = sa.select(sa.func.coalesce(sa.func.sum(upload_parts.c.bytes), 0), sa.func.count())
        with self._database.reading() as connection:
            found = connection.execute(of_upload.where(upload_parts.c.upload_id == upload["id"])).one()
        total = int(found[0]) + size
        if total > self.quota.upload_bytes:
            raise too_large(self.quota.upload_bytes)
        if found[1] >= MOST_PARTS:
            raise ApiError(f"An upload has at most {MOST_PARTS} parts.", status=413, code="too_many_parts")
        self._require_room(upload["project_id"], total, upload["id"])

    def _require_room(self, project: str, size: int, upload: str | None = None) -> None:
        kept = self._kept(project, upload)
        if kept + size > self.quota.project_bytes:
            raise self._no_room(kept)

    def _kept(self, project: str, upload: str | None) -> int:
        """Bytes of the project's files, and those that its pending uploads but this one announced, or have by now."""
        of_files = sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0)).where(files.c.project_id == project)
        of_parts = sa.select(sa.func.coalesce(sa.func.sum(upload_parts.c.bytes), 0))
        received = of_parts.where(upload_parts.c.upload_id == uploads.c.id).correlate(uploads).scalar_subquery()
        taken = sa.case((received > uploads.c.bytes, received), else_=uploads.c.bytes)
        of_uploads = sa.select(sa.func.coalesce(sa.func.sum(taken), 0)).where(
            uploads.c.project_id == project, uploads.c.status == "pending", uploads.c.id != (upload or "")
        )
        with self._database.reading() as connection:
            return int(connection.scalar(of_files) or 0) + int(connection.scalar(of_uploads) or 0)

    def _arrive(self, project: str, kept: int, size: int) -> None:
        """Count bytes that come in, or, below 0, that came and are kept or dropped now.

        Raises:
            ApiError: 413 or 507.
        """
        if size > 0:
            self._disk.require_room(size)
        with self._counting:
            self._arriving[project] += size
            arriving = self._arriving[project]
        if size > 0 and kept + arriving > self.quota.project_bytes:
            raise self._no_room(kept)

    def _no_room(self, kept: int) -> ApiError:
        return ApiError(
            f"The project keeps {kept} bytes of files and may keep {self.quota.project_bytes}; delete some.",
            status=413,
            code="quota_exceeded",
        )


class Receiver:
    """One file on its way in: counted, summed, and its rows looked at; a context that keeps nothing by itself."""

    def __init__(self, writer: Writer, limit: int, arrive: Callable[[int], None]) -> None:
        self._writer, self._rows, self._limit = writer, Rows(), limit
        self._arrive, self._counted = arrive, 0

    def __enter__(self) -> "Receiver":
        self._writer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._arrive(-self._counted)
        self._writer.__exit__()

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self._writer.bytes

    @property
    def md5(self) -> str:
        """Of all that was received."""
        return self._writer.md5

    def write(self, chunk: bytes) -> None:
        """Take more.

        Raises:
            ApiError: 413: it is too long, or the project has no room; 507: the disk has none.
        """
        self._counted += len(chunk)
        self._arrive(len(chunk))
        try:
            self._writer.write(chunk)
        except TooLarge:
            raise too_large(self._limit) from None
        self._rows.feed(chunk)

    def require_rows(self) -> None:
        """Check that what was received can be trained on.

        Raises:
            ApiError: 400 with the first bad lines.
        """
        self._rows.finish()
        refusal = self._rows.refusal()
        if refusal is not None:
            raise ApiError(f"Invalid file format: {refusal}.", param="file", code="invalid_file_format")

    def finish(self) -> str:
        """Put the bytes in their place; their sha256."""
        return self._writer.finish()


def _live() -> sa.Select[Any]:
    return sa.select(files).where(files.c.expires_at.is_(None) | (files.c.expires_at > now()))


def missing(what: str, object_id: str) -> ApiError:
    """404: there is none, or it is another project's."""
    return ApiError(f"No such {what}: {object_id[:100]!r}.", status=404, param="id", code=f"{what}_not_found")


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(f"At most {limit:,} bytes are taken.", status=413, code="file_too_large")


def file_body(row: "Row | dict[str, Any]") -> FileObject:
    """OpenAI's file object."""
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": row["status"],
        "status_details": row["status_details"],
    }


def upload_body(row: "Row | dict[str, Any]", file: FileObject | None) -> UploadObject:
    """OpenAI's upload object."""
    return {
        "id": row["id"],
        "object": "upload",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": row["status"],
        "file": file,
    }
