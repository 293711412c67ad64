"""Findings, their text, the run over all checks, and the signatures that near-duplicates are found by."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from luthier.data.checks import _minhash
from luthier.data.checks._text import normalized, render_findings, safe, view
from luthier.data.checks.base import PLACES_KEPT, Finding, Places, Tally, run_checks
from luthier.data.prompts import canonical
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Message, Where

FINDING = Finding("empty", "error", "an empty reply", "remove it", (Where("a.jsonl", 3),), 7)
IN_ARRAY = Finding("empty", "error", "an empty reply", "remove it", (Where("a.json", 1, 31), Where("a.json", 1, 32)), 2)


def test_a_finding_survives_json() -> None:
    for finding in (FINDING, IN_ARRAY):
        assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding
    before_rows_had_numbers = FINDING.to_dict() | {"where": [{"path": "a.jsonl", "line": 3}]}
    assert Finding.from_dict(before_rows_had_numbers) == FINDING


@pytest.mark.parametrize(
    "broken", [{}, {**FINDING.to_dict(), "severity": "fatal"}, {**FINDING.to_dict(), "where": [1]}]
)
def test_a_broken_finding_is_a_data_error(broken: dict) -> None:
    with pytest.raises(DataError, match="not a finding"):
        Finding.from_dict(broken)


def test_a_finding_keeps_twenty_places() -> None:
    many = Finding("x", "note", "m", "a", tuple(Where("a", line) for line in range(99)), 99)
    assert len(many.where) == PLACES_KEPT


def test_places_and_tallies() -> None:
    places = Places()
    kept = [Where("a", 1), Where("b", 2**31, 7), Where("a", 3)]
    assert [places.add(where) for where in kept] == [0, 1, 2]
    assert [places[index] for index in range(len(places))] == kept
    tally = Tally()
    for where in (kept[0], kept[0], kept[1]):
        tally.add(where)
    assert (tally.count, tally.where) == (3, [kept[0], kept[0], kept[1]])  # two rows on one line are two rows


def test_errors_come_first_and_only_selects() -> None:
    rows = [Conversation((Message("user", "a"), Message("user", "b\x07"), Message("assistant", ""))) for _ in range(2)]
    severities = [finding.severity for finding in run_checks({"train": rows})]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert {finding.check for finding in run_checks({"train": rows}, only=["encoding"])} == {"encoding"}
    with pytest.raises(RecipeError, match="did you mean 'encoding'"):
        run_checks({"train": rows}, only=["encodin"])


def test_rendering_is_plain_and_counts() -> None:
    text = render_findings([FINDING, Finding("x", "note", "m\x1b[31m\u202e", "")])
    assert "error    empty: an empty reply" in text
    assert "where: a.jsonl, line 3; and 6 more" in text
    assert "do:    remove it" in text
    assert "m\\x1b[31m\\u202e" in text
    assert text.endswith("data checks: 1 error, 1 note")
    assert render_findings([]) == "data checks: nothing found"


def test_lines_of_one_file_stand_together() -> None:
    where = (Where("a", 1), Where("a", 2), Where("b", 3))
    assert "where: a, lines 1, 2; b, line 3\n" in render_findings([Finding("x", "note", "m", "", where, 3)]) + "\n"
    assert "where: a.json, rows 31, 32\n" in render_findings([IN_ARRAY])


def test_places_are_named_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = render_findings([Finding("x", "note", "m", "", (Where(str(tmp_path / "data" / "a.jsonl"), 4),), 1)])
    assert "where: data/a.jsonl, line 4" in text


def test_safe_text_can_be_encoded() -> None:
    assert safe("a\ud800b\r\n\x9b2J").encode("ascii") == b"a\\ud800b\\r\\n\\x9b2J"


def test_normal_forms() -> None:
    assert normalized("  Élan—vital, ÉLAN\tvital! ") == normalized("élan—vital élan vital")
    assert normalized("Don't STOP") == b"don t stop"
    assert canonical(" What is 3+5? ") == canonical("what is  3+5")
    assert canonical("3+5") != canonical("3-5")
    assert canonical("??") == b"??"


def test_a_view_is_made_once() -> None:
    row = Conversation(
        (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("user", "later"))
    )
    assert view(row) is view(row)
    assert (view(row).system, view(row).prompt, view(row).reply, view(row).full) == ("s", "u", "a", "u\na\nlater")


def test_signatures_are_those_of_datasketch() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**32, 50, dtype=np.uint32)
    ours = _minhash.Signatures().sign(hashes, np.array([20, 30]))
    for row, part in zip(ours, (hashes[:20], hashes[20:]), strict=True):
        reference = MinHash(num_perm=_minhash.ORDERS, seed=1, scheme="affine32", hashfunc=int)
        reference.update_batch(part.tolist())
        assert row.tolist() == (reference.hashvalues & 0xFF).astype(np.uint8).tolist()


def test_estimated_similarity_is_the_jaccard_index() -> None:
    generator = np.random.default_rng(2)
    for shared in (0, 100, 150, 190):
        pool = generator.choice(2**32, 400 - shared, replace=False).astype(np.uint32)
        both = np.concatenate((pool[:200], pool[200 - shared :][:200]))
        signatures = _minhash.Signatures().sign(both, np.array([200, 200]))
        estimate = _minhash.similarity(signatures, np.array([0]), np.array([1]))[0]
        assert abs(estimate - shared / (400 - shared)) < 0.13  # three standard errors


@pytest.mark.parametrize(
    ("jaccard", "least", "most"), [(1.0, 1.0, 1.0), (0.9, 0.95, 1.0), (0.7, 0.0, 0.1), (0.3, 0.0, 0.0)]
)
def test_pairs_are_found_as_often_as_promised(jaccard: float, least: float, most: float) -> None:
    generator = np.random.default_rng(4)
    shared = round(200 * 2 * jaccard / (1 + jaccard))
    sets = []
    for _ in range(300):
        pool = generator.choice(2**32, 400 - shared, replace=False).astype(np.uint32)
        sets += [pool[:200], pool[200 - shared :][:200]]
    signatures = _minhash.Signatures().sign(np.concatenate(sets), np.full(600, 200))
    group, _ = _minhash.groups(signatures)
    together = group[0::2] == group[1::2]
    assert least <= together.mean() <= most
    best, nearest = _minhash.nearest_earlier(signatures[[*range(0, 600, 2), *range(1, 600, 2)]], np.repeat([0, 1], 300))
    found = (best[300:] >= _minhash.NEAR) & (nearest[300:] == np.arange(300))
    assert least <= found.mean() <= most
    assert best[:300].max() == 0


def test_shingles_begin_at_words_in_any_script() -> None:
    counts = _minhash.shingles([b"one two three", "日本語".encode(), b"", b"x"])[1]
    assert counts.tolist() == [3, 3, 0, 1]
    alone = [_minhash.shingles([text])[0].tolist() for text in (b"one two three", b"x")]
    assert _minhash.shingles([b"one two three", b"x"])[0].tolist() == alone[0] + alone[1]


def test_groups_are_named_after_their_first_text() -> None:
    generator = np.random.default_rng(3)
    signatures = generator.integers(0, 256, (500, 128), dtype=np.uint8)
    signatures[[7, 90, 400]] = signatures[3]
    signatures[400, :12] += 1
    group, likeness = _minhash.groups(signatures)
    assert np.flatnonzero(group != np.arange(500)).tolist() == [7, 90, 400]
    assert set(group[[7, 90, 400]]) == {3}
    assert likeness[7] == 1.0
    assert 0.85 < likeness[400] < 0.95


def test_texts_are_numbered_in_the_order_they_came_in() -> None:
    signatures = _minhash.Signatures()
    texts = [b"" if n % 3 == 0 else f"word{n} other{n * 7} third{n * 13} fourth{n}".encode() for n in range(3000)]
    for text in texts:
        signatures.add(text)
    signed, numbers = signatures.close()
    assert numbers.tolist() == [n for n in range(3000) if n % 3]
    assert signed.shape == (2000, 128)


def test_a_long_text_in_pieces_has_the_same_shingles_and_signature() -> None:
    generator = np.random.default_rng(5)
    words = [bytes(generator.integers(97, 123, size, dtype=np.uint8)) for size in generator.integers(1, 14, 4000)]
    for text in (b" ".join(words), "日本語テキスト".encode() * 900, b"x" * 3000, b"", b"a b"):
        whole = _minhash.shingles([text])[0].tolist()
        for size in (1, 97, 1000):
            assert [value for piece in _minhash.pieces(text, size) for value in piece.tolist()] == whole
    long = b" ".join(words * 80)  # of 2.5 MB: three pieces
    signatures = _minhash.Signatures()
    for text in (b"a b c d e", long, b"short", b"a b c d e"):
        signatures.add(text)
    signed, numbers = signatures.close()
    assert numbers.tolist() == [0, 1, 3]
    assert signed[1].tolist() == signatures.sign(*_minhash.shingles([long]))[0].tolist()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process its peak memory")
def test_long_rows_are_checked_in_constant_memory(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from luthier.data.checks.base import run_checks\n"
        "from luthier.examples import Document\n"
        "text = ' '.join(f'word{n * 7919 % 99991}' for n in range(int(sys.argv[1])))\n"
        "rows = (Document(f'{n} {text} {n}') for n in range(40))\n"
        "run_checks({'train': rows, 'test': [Document('x')]}, only=['leakage', 'near_duplicates', 'secrets'])\n"
        # not ru_maxrss, which a process inherits from the one that started it
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )

    def peak_kib(words: int) -> int:
        done = subprocess.run([sys.executable, "-c", program, str(words)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    short, long = peak_kib(20), peak_kib(50_000)  # 40 rows of 160 bytes and of 470 KB: together 19 MB
    assert long - short < 150 * 1024


def test_blocks_are_joined_in_order_and_texts_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word{n} other{n * 7} third{n * 13} fourth{n}".encode() for n in range(1100)]
    keep = np.arange(1100) % 5 != 0

    def sign(select: np.ndarray | None) -> tuple[list[int], list[bytes]]:
        signatures = _minhash.Signatures()
        for text in texts:
            signatures.add(text)
        signed, numbers = signatures.close(select)
        return numbers.tolist(), [row.tobytes() for row in signed]

    numbers, whole = sign(None)
    monkeypatch.setattr(_minhash, "_BLOCK", 97)
    assert sign(None) == (numbers, whole)
    assert sign(keep) == (np.flatnonzero(keep).tolist(), [whole[n] for n in np.flatnonzero(keep)])
