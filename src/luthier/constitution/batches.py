"""Work in batches, each a file that is there whole or not at all; one that is there is read instead of made."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from luthier.data.write import atomic_text, remove_unfinished
from luthier.errors import DataError
from luthier.progress import Progress

T = TypeVar("T")
Record = dict[str, Any]


def in_batches(
    items: Sequence[T],
    size: int,
    folder: Path,
    make: Callable[[Sequence[T]], Sequence[Record]],
    progress: Progress,
    what: str,
) -> list[Record]:
    """A record of each item, in their order.

    Args:
        items: what is worked on; the same, in the same order, whenever this folder is used.
        size: of a batch; what a process that is killed loses.
        folder: for `batch-000001.jsonl` and so on.
        make: the records of a batch, one for each item.
        progress: told how far it is.
        what: the items are called.

    Raises:
        DataError: a file holds another number of records than its batch has items, or is damaged.
        StorageError: one cannot be written.
    """
    found: list[Record] = []
    for number, batch in enumerate(_chunks(items, size), start=1):
        path = folder / f"batch-{number:06d}.jsonl"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            _write(path, make(batch))
        records = _read(path)
        if len(records) != len(batch):
            raise DataError(
                f"holds {len(records)} records where {len(batch)} were written; remove it, and they are made again",
                path,
            )
        found += records
        progress.update(len(found), len(items), what)
    return found


def _write(path: Path, records: Sequence[Record]) -> None:
    with atomic_text(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def _read(path: Path) -> list[Record]:
    try:
        # not splitlines(): what models write may hold other ends of lines, such as U+2028
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    except ValueError as error:
        raise DataError(f"is damaged ({error}); remove it, and its records are made again", path) from None


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
