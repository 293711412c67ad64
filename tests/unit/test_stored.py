"""Rows on disk come back as they were, in any order, and cost no memory."""

import tracemalloc
from pathlib import Path

import pytest

from luthier.data.source import Source
from luthier.data.stored import StoredUnits
from luthier.errors import StorageError
from luthier.examples import Row

UNITS = [
    (Row((1, 2, 3), (0.0, 1.0, 0.3), "first"),),
    (Row((70_000,), (1.0,), "a"), Row((), (), "Zoë/β")),
    (Row(tuple(range(500)), (1 / 3,) * 500),),
    (Row((5, 6), (0.0, 1.0), "valued", {"advantage": -1 / 3}, {"sampled": (0.0, -0.1)}),),
]


def test_units_come_back_as_they_were(tmp_path: Path) -> None:
    stored = StoredUnits(iter(UNITS), tmp_path)
    assert list(stored) == UNITS and stored[-1] == UNITS[-1] and stored[0:3:2] == UNITS[0:3:2] and stored[1] == UNITS[1]
    assert len(stored) == 4 and not list(tmp_path.iterdir()), "the file has no name, so it cannot be left behind"
    with pytest.raises(IndexError):
        stored[4]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing: the rendered rows could not be kept there: No such file"):
        StoredUnits(UNITS, tmp_path / "missing")


def test_a_source_reads_them_in_the_same_order_as_from_memory(tmp_path: Path) -> None:
    stored = Source(StoredUnits(UNITS, tmp_path), 2, 7)
    held = Source(UNITS, 2, 7)
    assert [stored.step(n) for n in range(1, 7)] == [held.step(n) for n in range(1, 7)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        stored = StoredUnits(((Row(tuple(range(i, i + 300)), (1.0,) * 300, str(i)),) for i in range(3000)), tmp_path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stored[2999][0].ids[0] == 2999
    assert held < 3000 * 100, "a few bytes a row; the rows themselves take 10 kB each"
