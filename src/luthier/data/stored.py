"""Rendered rows in a file, read when a step needs them, so that memory does not grow with their number."""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from luthier.data.source import Unit
from luthier.errors import StorageError
from luthier.examples import Row


class StoredUnits(Sequence[Unit]):
    """Units in the order in which they were given, in a file without a name that ends with this object.

    A unit is: how many rows it has; of each row the number of its tokens and of the bytes of what it is called; then of
    each row the tokens (int32), the weights of the loss (float64) and, as JSON, its id and values.
    """

    def __init__(self, units: Iterable[Unit], folder: Path) -> None:
        """Writes all units; `folder` is where there is room for them (12 bytes a token).

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        ends = [0]
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (read as long as this object lives)
            for unit in units:
                ends.append(ends[-1] + self._file.write(_packed(unit)))
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"{folder}: the rendered rows could not be kept there: {error.strerror or error}. They take 12 bytes a "
                f"token, {ends[-1] / 2**20:.0f} MiB so far; make room, or put the run elsewhere with --out"
            ) from None
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Unit]: ...
    def __getitem__(self, index: int | slice) -> Unit | list[Unit]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, end = int(self._ends[place]), int(self._ends[place + 1])
        return _unpacked(os.pread(self._file.fileno(), end - start, start))


def _packed(unit: Unit) -> bytes:
    names = [json.dumps([row.id, dict(row.values), dict(row.token_values)]).encode() for row in unit]
    sizes = [len(unit), *(size for row, name in zip(unit, names, strict=True) for size in (len(row.ids), len(name)))]
    parts = [np.array(sizes, dtype=np.int32).tobytes()]
    for row, name in zip(unit, names, strict=True):
        parts += [
            np.array(row.ids, dtype=np.int32).tobytes(),
            np.array(row.loss_mask, dtype=np.float64).tobytes(),
            name,
        ]
    return b"".join(parts)


def _unpacked(data: bytes) -> Unit:
    count = int(np.frombuffer(data, np.int32, 1)[0])
    sizes = np.frombuffer(data, np.int32, 2 * count, 4).tolist()
    at, rows = 4 + 8 * count, []
    for tokens, name in zip(sizes[::2], sizes[1::2], strict=True):
        ids = np.frombuffer(data, np.int32, tokens, at).tolist()
        mask = np.frombuffer(data, np.float64, tokens, at + 4 * tokens).tolist()
        at += 12 * tokens
        row_id, values, token_values = json.loads(data[at : at + name])
        token_values = {key: tuple(numbers) for key, numbers in token_values.items()}
        rows.append(Row(tuple(ids), tuple(mask), row_id, values, token_values))
        at += name
    return tuple(rows)
