"""Rows on disk: one JSONL file a day (UTC), whole lines whatever happens, and nothing for longer than was said.

A line is added by one write to a file that only appends, and flushed to the disk. What a crash or a full disk left of a
line is cut off when the file is opened again, or at once. Files that are too old, and the oldest while all are larger
than they may be, are deleted.
"""

import datetime
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.errors import ServeError
from luthier.files import sync
from luthier.jobs.private import private_file, private_folder

log = logging.getLogger("luthier.capture")
_NAME = re.compile(r"capture-(\d{4}-\d{2}-\d{2})\.jsonl")
TAIL = 1 << 16
"""Bytes read at a time to find the last whole line."""


@dataclass(frozen=True)
class Retention:
    """How long rows stay."""

    days: int
    """A file is deleted when its day is more than so many days ago."""
    bytes: int
    """Most bytes of all files."""


class FullError(Exception):
    """The rows of today alone are as many as may be kept."""


class DayFiles:
    """The files of one folder, for one process.

    Raises:
        ServeError: another process writes there.
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = private_folder(folder, parents=True)
        self._retention = retention
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ServeError(f"--out {folder}: another `luthier capture` writes there; name another folder") from None

    def path_of(self, day: datetime.date) -> Path:
        """The file of a day."""
        return self.folder / f"capture-{day.isoformat()}.jsonl"

    def files(self) -> list[tuple[datetime.date, Path]]:
        """What there is, the oldest first; a file of another name is not ours, and never deleted."""
        found = ((_day_of(path), path) for path in self.folder.iterdir())
        return sorted((day, path) for day, path in found if day is not None)

    def append(self, lines: Sequence[bytes], today: datetime.date) -> None:
        """Add whole lines to the file of a day, all or none.

        Raises:
            FullError: today's rows alone would be more than may be kept.
            OSError: they cannot be written; the file is as it was.
        """
        data = b"".join(lines)
        self.tidy(today, len(data))
        path = self.path_of(today)
        is_new = not path.exists()
        with private_file(path, "ab") as file:
            start = _cut_rest(path)
            if start + len(data) > self._retention.bytes:
                raise FullError
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, start)
                raise
        if is_new:
            sync(self.folder)

    def tidy(self, today: datetime.date, more: int = 0) -> None:
        """Delete what is too old, and the oldest days until `more` bytes have room beside the others."""
        files = self.files()
        kept = [(day, path) for day, path in files if (today - day).days <= self._retention.days]
        sizes = {path: path.stat().st_size for _, path in kept}
        while len(kept) > 1 and sum(sizes.values()) + more > self._retention.bytes and kept[0][0] < today:
            del sizes[kept.pop(0)[1]]
        for day, path in files:
            if path not in sizes:
                path.unlink()
                log.info("deleted the rows of %s: they were kept as long as was said", day)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for _, path in self.files())

    def close(self) -> None:
        """Let another process write here."""
        self._lock.release()


def _day_of(path: Path) -> datetime.date | None:
    match = _NAME.fullmatch(path.name)
    try:
        return datetime.date.fromisoformat(match[1]) if match else None
    except ValueError:  # a day that no month has
        return None


def _cut_rest(path: Path) -> int:
    """The size of a file, once what stands behind its last line break is cut off."""
    size = end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            start = max(0, end - TAIL)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
    if end < size:
        os.truncate(path, end)
        log.warning("%s: cut off %d bytes of a line that was never finished", path.name, size - end)
    return end
