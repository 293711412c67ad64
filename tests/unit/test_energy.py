"""Energy from counters that start again, are not there, or vanish, in folders made like those of powercap."""

import os
import time
from pathlib import Path

import pytest

from luthier import energy
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder


def domain(root: Path, folder: str, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    for key, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (path / key).write_text(f"{value}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_counted_once_and_their_parts_are_not(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 50)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 10)
    whole = domain(tmp_path, "intel-rapl:1", "psys", 500)
    with energy.measured(tmp_path) as spent:
        for counter, now in ((package, 300_100), (core, 200_050), (memory, 50_010), (whole, 900_500)):
            counter.write_text(f"{now}\n")
        assert spent.joules is None
    assert spent.joules == pytest.approx(0.35)


def test_a_counter_that_starts_again_is_added_up(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, most=1_000_000)
    with energy.measured(tmp_path) as spent:
        package.write_text("100000\n")
    assert spent.joules == pytest.approx(0.2)


def test_a_thread_reads_often_enough_for_several_starts(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 0, most=1_000_000)
    with energy.measured(tmp_path, every_seconds=0.001) as spent:
        for now in (500_000, 0) * 4:  # four whole ranges, a half at a time
            (tmp_path / "next").write_text(f"{now}\n")
            os.replace(tmp_path / "next", package)
            seen, patience = spent.readings, time.monotonic() + 60
            while spent.readings < seen + 2:  # the second one began after the change
                assert time.monotonic() < patience, "the counters are not read while the block runs"
                time.sleep(0.001)
    assert spent.joules == pytest.approx(4.0)


def test_nothing_is_measured_where_nothing_can_be_read(tmp_path: Path) -> None:
    with energy.measured(tmp_path / "absent") as spent:
        pass
    assert spent.joules is None
    domain(tmp_path, "intel-rapl:0", "package-0", 1).unlink()  # not readable, as it is for most users
    with energy.measured(tmp_path) as spent:
        pass
    assert spent.joules is None


def test_a_sum_with_a_gap_is_not_told(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    with energy.measured(tmp_path) as spent:
        package.unlink()
    assert spent.joules is None


def test_what_failed_inside_is_not_hidden_and_is_counted(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    held = None
    with pytest.raises(KeyError), energy.measured(tmp_path) as spent:
        held = spent
        package.write_text("250000\n")
        raise KeyError("x")
    assert held is not None and held.joules == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("parts", "joules"), [([5.0, 6.0], 11.0), ([5.0, None], None), ([None, 6.0], None), ([None, None], None)]
)
def test_energy_of_some_parts_of_a_stage_is_not_that_of_all(
    parts: list[float | None], joules: float | None, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.write("manifest.json", {"stages": {}})
    for part in parts:
        folder.add_spent("train", 2.0, part)
    stage = folder.read("manifest.json")["stages"]["train"]
    assert stage == {"seconds": 4.0} | ({} if joules is None else {"joules": joules})


def test_the_folder_keeps_the_users_book_and_drops_it_when_the_recipe_does(tmp_path: Path) -> None:
    book = tmp_path / "prices.toml"
    book.write_text(
        '[[prices]]\nprovider = "a"\nmodel = "b"\nusd_per_hour = 2\nread = 2026-01-02\nsource = "x"\n', encoding="utf-8"
    )
    file = tmp_path / "recipe.toml"
    file.write_text("")
    folder = RunFolder(tmp_path / "run")
    with_book = {"prices": str(book), "hosted": ["a/b"]}
    folder.open(Recipe(data={"train": "x"}, cost=with_book), file)  # type: ignore[arg-type]
    assert (folder / "prices.toml").read_text() == book.read_text()
    folder.open(Recipe(data={"train": "x"}), file)  # type: ignore[arg-type]
    assert not (folder / "prices.toml").exists()
