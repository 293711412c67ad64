"""What a teacher said of the rows of a training, once, and kept: it need not be in memory while its student learns.

Rows lie in parts, each a file of the run's folder that is there whole or not at all, under the fingerprint of all that
decides them. A process that was stopped goes on with the next part; files are mapped, not read, so they take no memory.

    teacher/part-000001.safetensors      ids (tokens, B) and logprobs (tokens, B + 1), row after row
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.engine import kept_tensors
from luthier.errors import DataError, StorageError
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.objectives.base import Told

FOLDER = "teacher"
ROWS_OF_PART = 128
"""What a process that is killed loses at most."""


@dataclass(frozen=True)
class Place:
    """Where a row's tokens stand."""

    part: int
    """Counted from 0."""
    first: int
    """Token in the part."""
    count: int


class KeptTeacher:
    """A teacher as its kept words: of a row that it was asked about, or of the beginning of one."""

    def __init__(self, parts: Sequence[Told], places: Mapping[str, Place]) -> None:
        self._parts, self._places = parts, places

    def told(self, batch: Batch) -> Told:
        """What it said of these rows, by their ids."""
        ids, logprobs = [], []
        for row in batch.rows:
            place, count = self._places[row.id], row.trained_tokens
            if count > place.count:
                raise ValueError(f"row {row.id} has {count} trained tokens, and the teacher was asked of {place.count}")
            here = slice(place.first, place.first + count)
            part = self._parts[place.part]
            ids.append(part.ids_KB[here])
            logprobs.append(part.logprobs_KB[here])
        device = batch.row_K.device
        return Told(torch.cat(ids).to(device).long(), torch.cat(logprobs).to(device))

    def at(self, temperature: float) -> "KeptTeacher":
        """Raises a ValueError: what was said at one temperature is not known at another."""
        raise ValueError("a teacher's kept words are those of one temperature")

    def held_bytes(self) -> int:
        """Nothing: files are mapped."""
        return 0


def places_of(rows: Iterable[Row]) -> dict[str, Place]:
    """Where the tokens of each row will stand.

    Raises:
        DataError: two rows have one id, so that nobody could tell their words apart.
    """
    places: dict[str, Place] = {}
    first = 0
    for number, row in enumerate(rows):
        if row.id in places:
            raise DataError(f"two rows have the id {row.id!r}; a teacher's words are kept by it: give each its own")
        first = first if number % ROWS_OF_PART else 0
        places[row.id] = Place(number // ROWS_OF_PART, first, row.trained_tokens)
        first += row.trained_tokens
    return places


def keep(
    folder: Path, key: str, places: Mapping[str, Place], say: Callable[[int], Told], done: Callable[[int], None]
) -> KeptTeacher:
    """The words of all parts: those that are kept, and others as they are asked for.

    Args:
        folder: of the run.
        key: fingerprint of all that decides them; parts of another one are written anew.
        places: of all rows.
        say: what the teacher says of the rows of a part.
        done: told how many parts are there.

    Raises:
        StorageError: the disk is full.
    """
    counts: list[int] = []
    for place in places.values():
        counts += [0] * (place.part + 1 - len(counts))
        counts[place.part] += place.count
    parts = []
    for number, count in enumerate(counts):
        path = _part(folder, number)
        told = _read(path, key, count)
        if told is None:
            _write(path, key, say(number))
            told = _read(path, key, count)
        if told is None:
            raise StorageError(f"{path} is not what was written; look after the disk")
        parts.append(told)
        done(number + 1)
    return KeptTeacher(parts, places)


def is_kept(folder: Path, key: str, places: Mapping[str, Place]) -> bool:
    """Whether nothing has to be asked."""
    count = max((place.part for place in places.values()), default=-1) + 1
    return all(kept_tensors.holds(_part(folder, number), key) for number in range(count))


def _part(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"part-{number + 1:06d}.safetensors"


def _read(path: Path, key: str, count: int) -> Told | None:
    """A part as it was written; None if there is nothing, or it is another one or damaged."""
    found = kept_tensors.read(path, key)
    if found is None or found.keys() != {"ids", "logprobs"}:
        return None
    told = Told(found["ids"], found["logprobs"])
    return told if len(told.ids_KB) == len(told.logprobs_KB) == count else None


def _write(path: Path, key: str, told: Told) -> None:
    tensors = {
        "ids": told.ids_KB.to("cpu", torch.int32).contiguous(),
        "logprobs": told.logprobs_KB.to("cpu").contiguous(),
    }
    kept_tensors.write(path, tensors, key, "what the teacher said")
