"""Figures of rows, wrong labels, and which rows are kept."""

import csv
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from tests.mutants.bench import conversations, template, tiny_model

from luthier.cli.main import main
from luthier.data.label_errors import are_labels, label_errors
from luthier.data.losses import row_losses
from luthier.data.quality import Quality, measure
from luthier.data.selection import WAYS, select
from luthier.data.space import reduced
from luthier.errors import DataError
from luthier.examples import Conversation, Message, Where
from luthier.models.scorer import Scorer

THEMES = {
    "weather": ["rain", "sun", "cloud", "wind", "storm", "snow", "heat", "frost"],
    "money": ["bank", "loan", "coin", "cash", "debt", "bond", "fund", "rent"],
    "food": ["bread", "soup", "rice", "meat", "fruit", "salt", "sugar", "oil"],
}
FILL = [f"{a}{b}n" for a in "bdgklmprst" for b in "aeiou"]


def labeled(count: int = 240, seed: int = 0) -> list[tuple[str, str]]:
    chance, names = random.Random(seed), list(THEMES)
    rows = []
    for n in range(count):
        name = names[n % 3]
        rows.append((" ".join(chance.sample(THEMES[name], 3) + chance.sample(FILL, 6)), name))
    return rows


def chats(rows: list[tuple[str, str]]) -> list[Conversation]:
    return [
        Conversation(
            (Message("user", asked), Message("assistant", said)), where=Where("a.jsonl", n + 1), id=f"r{n + 1}"
        )
        for n, (asked, said) in enumerate(rows)
    ]


def measured(rows: list[tuple[str, str]]) -> Quality:
    return measure(chats(rows))


# Wrong labels


def test_most_wrong_labels_are_found_with_the_likelier_one() -> None:
    rows, wrong = labeled(), {5, 40, 77, 120, 201}
    names = list(THEMES)
    labels = [names[(names.index(label) + 1) % 3] if n in wrong else label for n, (_, label) in enumerate(rows)]
    errors = label_errors([asked for asked, _ in rows], labels)
    found = {error.row for error in errors}
    assert len(found & wrong) >= 4
    assert len(found - wrong) <= 2
    assert all(error.likelier == rows[error.row][1] for error in errors if error.row in wrong)
    assert [e.confidence for e in errors] == sorted(e.confidence for e in errors)
    assert label_errors([asked for asked, _ in rows], labels) == errors


@pytest.mark.slow
def test_a_label_too_rare_to_be_drawn_for_learning_is_still_learned() -> None:
    """Of more rows than one classifier learns from, so few have it that by chance none may be among those."""
    rows = labeled(26_000)
    rare = range(0, 25_000, 5_000)
    texts = ["zebra lion tiger" if n in rare else asked for n, (asked, _) in enumerate(rows)]
    labels = ["animals" if n in rare else label for n, (_, label) in enumerate(rows)]
    for seed in range(3):
        assert not {error.row for error in label_errors(texts, labels, seed)} & set(rare)


def test_answers_that_differ_from_row_to_row_are_no_labels() -> None:
    assert are_labels(["a", "b"] * 10)
    assert not are_labels(["a"] * 20)
    assert not are_labels(["yes"] * 95 + ["no"] * 3)
    assert not are_labels([f"answer {n}" for n in range(20)])
    assert not are_labels(["a", "b"] * 10 + [None] * 5)
    with pytest.raises(DataError, match="expected at least two"):
        label_errors(["x", "y"] * 8, [f"answer {n}" for n in range(8)])


def test_where_labels_cannot_be_judged_all_else_is_measured_and_it_is_said() -> None:
    few = measured([(f"{asked} {n}", "yes" if n < 95 else "no") for n, (asked, _) in enumerate(labeled(98))])
    assert few.suspected is None and few.labels is None and len(select(few, 10).kept) == 10
    apart = measured([(f"{word}{n}", "yes" if n % 2 else "no") for n, word in enumerate(FILL)])
    assert apart.suspected is None and "no words in common" in apart.notes[0]
    assert len(select(apart, 10).kept) == 10


# Figures


def test_figures_name_repeats_near_repeats_faults_and_outliers() -> None:
    rows = labeled(90)
    rows += [rows[3], (rows[7][0] + "!", rows[7][1]), ("zzyzx qwrty plmokn vbxcz", "food"), (rows[9][0], "")]
    quality = measured(rows)
    last = [quality.values(row) for row in range(90, 94)]
    assert (last[0]["line"], last[0]["repeats"]) == (91, 4)
    assert last[1]["near_duplicate_of"] == 8
    assert last[2]["outlier"] == max(quality.values(row)["outlier"] for row in range(94))
    assert last[3]["faults"] == ["empty"]
    assert quality.labels is None  # one row in a hundred may be without a label, not more


def test_points_keep_the_cosines_that_matter() -> None:
    chance = np.random.default_rng(0)
    low = chance.standard_normal((60, 5)) @ chance.standard_normal((5, 300))
    points = reduced(csr_matrix(low.astype(np.float32)), directions=8)
    exact = low @ low.T
    assert np.abs(points @ points.T - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.array_equal(points, reduced(csr_matrix(low.astype(np.float32)), directions=8))


# Selection


def test_what_teaches_nothing_is_left_out_with_its_reason() -> None:
    rows = labeled(90)
    rows += [rows[3], (rows[7][0] + "!", rows[7][1])]
    selection = select(measured(rows), 1000)
    assert {row: dropped.reason for row, dropped in selection.dropped.items()} == {90: "repeat", 91: "near-duplicate"}
    assert "line 4" in selection.dropped[90].detail
    assert len(selection.kept) == 90


def test_a_group_of_near_duplicates_keeps_the_first_row_that_is_fit() -> None:
    rows = [*labeled(90), ("long enough a text to be alike to the next one of them", ""), ("", "")]
    rows[91] = ("long enough a text to be alike to the next one of them", "food")
    selection = select(measured(rows), 1000)
    assert selection.dropped[90].reason == "fault"
    assert 91 in selection.kept


def test_few_rows_stand_for_every_label_and_theme() -> None:
    rows = labeled(300)
    quality = measured(rows)
    kept = select(quality, 9).kept.tolist()
    assert {rows[row][1] for row in kept} == set(THEMES)
    better = select(quality, 30).coverage
    assert list(better) == sorted(better)
    at_random = [random.Random(seed).sample(range(300), 30) for seed in range(20)]
    labels = np.array([label for _, label in rows])

    def covered(chosen: list[int]) -> float:
        cosine = np.maximum(quality.points @ quality.points[chosen].T, 0)
        return float((cosine * (labels[:, None] == labels[None, chosen])).max(axis=1).mean())

    assert covered(select(quality, 30).kept.tolist()) > max(map(covered, at_random))


def test_selection_is_deterministic_and_exact_in_number() -> None:
    quality = measured(labeled(200))
    for keep in (1, 7, 199, 200):
        first, second = select(quality, keep), select(quality, keep)
        assert first.kept.tolist() == second.kept.tolist() == sorted(set(first.kept.tolist()))
        assert len(first.kept) == keep
        assert len(first.kept) + len(first.dropped) == 200


def test_few_rows_of_many_are_chosen_in_little_memory() -> None:
    count, chance = 30_000, np.random.default_rng(0)
    points = chance.standard_normal((count, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    each, ones = np.arange(count), np.ones(count, dtype=np.int64)
    quality = Quality(chats(labeled(1)) * count, ones, ones, each, each, points, np.zeros(count), {})
    tracemalloc.start()
    try:
        selection = select(quality, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(selection.kept) == 10 and list(selection.coverage) == sorted(selection.coverage)
    assert peak < 60 * 2**20, "the whole sample beside all that is to be stood for takes 130 MB for itself"


def test_rows_are_kept_by_loss() -> None:
    quality = measured(labeled(60))
    with pytest.raises(DataError, match="expected --model"):
        select(quality, 5, "hard")
    quality.losses = np.arange(60, dtype=float)
    quality.losses[59] = np.nan
    assert select(quality, 3, "easy").kept.tolist() == [0, 1, 2]
    assert select(quality, 3, "hard").kept.tolist() == [56, 57, 58]
    assert WAYS == ("coverage", "easy", "hard")


def test_losses_are_those_of_each_row_alone() -> None:
    model, rendered = tiny_model(), template()
    model.eval()
    rows = conversations()
    together = row_losses(rows, rendered, Scorer(model))
    alone = [row_losses([row], rendered, Scorer(model))[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-4)
    assert np.isfinite(together).all()


# The commands


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text(
        "".join(json.dumps({"label": said, "text": asked}) + " \n" for asked, said in rows), encoding="utf-8"
    )
    return path


def test_rows_are_written_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", [*labeled(90), labeled(90)[3]])
    before, out, report = source.read_bytes(), tmp_path / "b.jsonl", tmp_path / "r.jsonl"
    assert main(["data", "select", str(source), "--keep", "20", "--out", str(out), "--report", str(report)]) == 0
    assert source.read_bytes() == before
    kept = out.read_bytes().splitlines(keepends=True)
    lines = before.splitlines(keepends=True)
    fates = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert kept == [line for line, fate in zip(lines, fates, strict=True) if fate["kept"]]
    assert len(kept) == 20
    assert (fates[90]["reason"], fates[90]["detail"]) == ("repeat", "of line 4")
    said = capsys.readouterr().out
    assert "20 of 91 rows" in said and "1 dropped: repeat" in said and "line 91: of line 4" in said


def test_figures_are_written_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "a.jsonl", labeled(90)), tmp_path / "f.csv"
    assert main(["data", "score", str(source), "--out", str(out)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["line"]) for row in rows] == list(range(1, 91))
    assert "90 rows: 0 repeat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score"], "expected a data file"),
        (["score", "FILE", "--keep", "3"], "takes no --keep"),
        (["addresses", "FILE"], "takes no file"),
        (["select", "FILE", "--keep", "3"], "expected --keep K and --out FILE"),
        (["select", "FILE", "--keep", "3", "--out", "FILE"], "must not be the file that is read"),
        (["select", "FILE", "--keep", "3", "--out", "b.jsonl", "--by", "hard"], "expected --model NAME"),
        (["score", "FILE", "--out", "FILE"], "must not be the file that is read"),
        (["score", "FILE", "--out", "LINK"], "must not be the file that is read"),
        (["score", "FILE", "--out", "FOLDER"], "is a folder"),
        (["select", "FILE", "--keep", "3", "--out", "b.jsonl", "--report", "./b.jsonl"], "must not be that of --out"),
        (["select", "FILE", "--keep", "3", "--out", "b.jsonl", "--report", "LINK"], "must not be the file"),
        (["select", "FILE", "--keep", "3", "--out", "b.jsonl", "--report", "r.txt"], "expected one of these endings"),
        (["select", "FILE.csv", "--keep", "3", "--out", "b.csv"], "expected the ending .jsonl"),
        (["score", "FILE", "--out", "f.txt"], "expected one of these endings"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, link = write(tmp_path / "a.jsonl", labeled(30)), tmp_path / "link.jsonl"
    link.hardlink_to(source)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "a.csv").write_text("text,label\na,b\n", encoding="utf-8")
    places = {"FILE": "a.jsonl", "FILE.csv": "a.csv", "LINK": "link.jsonl", "FOLDER": "folder.jsonl"}
    before, files = source.read_bytes(), set(tmp_path.iterdir())
    assert main(["data", *(places.get(word, word) for word in words)]) == 2
    told = capsys.readouterr().err
    assert said in told and "reading the rows" not in told, "before anything is measured"
    assert source.read_bytes() == before and set(tmp_path.iterdir()) == files
