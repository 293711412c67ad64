"""What a teacher said of the rows of a training, once, and kept: it need not be in memory while its student learns.

Rows lie in parts, each a file of the run's folder that is there whole or not at all, under the fingerprint of all that
decides them. A process that was stopped goes on with the next part; files are mapped, not read, so they take no memory.

    teacher/part-000001.safetensors      ids (tokens, B) and logprobs (tokens, B + 1), row after row
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import DataError, StorageError
from luthier.examples import Row
from luthier.files import sync
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
        path = folder / FOLDER / f"part-{number + 1:06d}.safetensors"
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
    paths = [folder / FOLDER / f"part-{number + 1:06d}.safetensors" for number in range(count)]
    return all(_key(path) == key for path in paths)


def _key(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("key")
    except (OSError, SafetensorError):
        return None


def _read(path: Path, key: str, count: int) -> Told | None:
    """A part as it was written; None if there is nothing, or it is another one or damaged."""
    if _key(path) != key:
        return None
    with safe_open(path, framework="pt") as file:
        ids, logprobs = file.get_tensor("ids"), file.get_tensor("logprobs")
    return Told(ids, logprobs) if len(ids) == len(logprobs) == count else None


def _write(path: Path, key: str, told: Told) -> None:
    tensors: dict[str, Tensor] = {
        "ids": told.ids_KB.to("cpu", torch.int32).contiguous(),
        "logprobs": told.logprobs_KB.to("cpu").contiguous(),
    }
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"key": key})
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: what the teacher said could not be kept: {error}") from None
