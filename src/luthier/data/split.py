"""Rows go to train, validation and test by a hash of the group they belong to, so that no group stands on two sides.

Rows are one group if they carry the same `group`, if they ask the same (`data/prompts.py`; in a chat each question
counts), if their prompts are equal once case, spacing and punctuation are folded, if they share a longer user turn
that is no template, or if their prompts are near duplicates (Jaccard similarity of character 5-grams at least 0.8;
candidates by MinHash, Broder 1997, each then verified exactly). The side of a group is sha256(seed, key of its first
row): no random generator, so the same file always splits alike, and rows appended to it leave the others where they
are, unless a new row joins two groups that stood apart.

A prompt here is what varies: the user's turns (a system prompt is shared by all rows), without the 5-grams that a tenth
of the rows have in common. Where nearly all rows ask the same and differ in the rest of the prompt, the whole prompt
counts. Rows that are only alike are not united to more than a quarter of all rows. Left out: similarity of meaning.
"""

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.data.prompts import Asked, asked, least_common, system_counts
from luthier.errors import DataError
from luthier.examples import Document, Example, Where

NEAR = 0.8
"""Jaccard similarity from which two prompts are near duplicates."""
SHINGLE = 5
"""Characters of a shingle: one word changed in a sentence of some 90 characters is still near."""
MIN_SHINGLES = 4
"""A prompt with fewer shingles of its own is not compared."""
FROM_A_BAND, VERIFIED, PROMISING = 64, 50, 0.65
"""Candidates that one band gives to a prompt; those that are verified, the likeliest first; estimated similarity (its
standard error is at most 0.045) below which none is. These bound the time on data made from one pattern."""
BOILERPLATE_SAMPLE = 2000
MOST_OF_ROWS, SMALLEST_FILE = 0.25, 20
"""Share of the rows over which rows that are only alike are not united, in files of at least so many rows: with a
quarter there are always groups for three splits."""
SIGNED_AT_ONCE = 256
HELD_OUT = ("validation", "test")

_NOT_WORDS = re.compile(r"[\W_]+")
Shingles = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Leak:
    """A row whose folded prompt also stands in a split that it must not know: `row` is in `split_of_row`."""

    row: Where
    split_of_row: str
    held_out: Where
    split: str


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of each split in the order of the file, and what had to be said about them.

    `groups` is the number of groups that were divided; `leaks` are rows that repeat a row of a file of its own,
    reported and not removed; `notes` say where a share could not be kept.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    groups: int
    leaks: tuple[Leak, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def split(
    examples: Sequence[Example],
    shares: Mapping[str, float],
    seed: int,
    *,
    taken: Mapping[str, Sequence[Example]] | None = None,
) -> Split:
    """Divide examples into train, validation and test.

    Args:
        examples: the rows to divide.
        shares: share of the groups that goes to `validation` and to `test`; the rest is `train`.
        seed: another seed gives another split.
        taken: rows of splits that have a file of their own. They stay as they are, and rows that repeat them are
            reported as leaks.

    Raises:
        DataError: there are no rows, or fewer groups than splits.
        ValueError: a share is out of range, or a split has both a share and rows of its own.
    """
    given = dict(taken or {})
    _require_shares(shares, given)
    if not examples:
        raise DataError("there are no rows to divide")
    keys, notes = _grouped(examples)
    sides, said = _sides(dict.fromkeys(keys), shares, seed, examples[0].where.path)
    notes += said
    parts: dict[str, Sequence[Example]] = {name: [] for name in ("train", *HELD_OUT)}
    for name in parts:
        parts[name] = (
            given[name] if name in given else [e for e, k in zip(examples, keys, strict=True) if sides[k] == name]
        )
    notes += _uneven(parts, shares, len(examples))
    return Split(
        tuple(parts["train"]),
        tuple(parts["validation"]),
        tuple(parts["test"]),
        len(sides),
        tuple(find_leaks(parts)) if given else (),
        tuple(notes),
    )


def _require_shares(shares: Mapping[str, float], taken: Mapping[str, Sequence[Example]]) -> None:
    for name in (*shares, *taken):
        if name not in HELD_OUT:
            raise ValueError(f"unknown split {name!r}: expected {' or '.join(HELD_OUT)}; train is what is left")
    if both := sorted(shares.keys() & taken.keys()):
        raise ValueError(f"{both[0]} has a share and rows of its own; expected one of them")
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(f"shares {dict(shares)}: expected each above 0 and their sum below 1")


# What a prompt is


def fold(text: str) -> str:
    """Text in one case, without punctuation, one blank between words; a text of nothing but punctuation stays."""
    folded = " ".join(_NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())
    return folded or text.strip()


def folded_prompts(examples: Sequence[Example], asked_by: Sequence[Asked]) -> list[str]:
    """The folded varying part of each prompt: user turns, a text, or the whole prompt if all users ask alike.

    Args:
        asked_by: what each example asks.
    """
    text = _whole if _system_counts(asked_by) else _user_turns
    return [fold(text(example)) for example in examples]


def _system_counts(asked_by: Sequence[Asked]) -> bool:
    return system_counts(len({a.folded for a in asked_by}), len({a.whole for a in asked_by}))


def _user_turns(example: Example) -> str:
    if isinstance(example, Document):
        return example.text
    return "\n".join(m.content for m in example.prompt if m.role == "user") or _whole(example)


def _whole(example: Example) -> str:
    return example.text if isinstance(example, Document) else "\n".join(m.content for m in example.prompt)


# Groups


class _Union:
    """Disjoint sets of rows; the representative of a set is its earliest member.

    `refused` counts the pairs that were not united because their set would have had more than `most` rows.
    """

    def __init__(self, rows: int) -> None:
        self.parents, self.sizes = list(range(rows)), [1] * rows
        self.most = MOST_OF_ROWS * rows if rows >= SMALLEST_FILE else rows
        self.refused = 0

    def find(self, item: int) -> int:
        while self.parents[item] != item:
            self.parents[item] = self.parents[self.parents[item]]
            item = self.parents[item]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parents[max(a, b)] = min(a, b)
            self.sizes[min(a, b)] += self.sizes[max(a, b)]

    def join_alike(self, a: int, b: int) -> None:
        """Join two rows that are only alike, unless too large a part of all rows would then stand together."""
        a, b = self.find(a), self.find(b)
        if a != b and self.sizes[a] + self.sizes[b] > self.most:
            self.refused += 1
        else:
            self.join(a, b)


def group_keys(examples: Sequence[Example]) -> list[str]:
    """For each row the key of its group: rows with equal keys belong together, and a split keeps them on one side."""
    return _grouped(examples)[0]


def _grouped(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """For each row the key of its group (the `group` or the prompt of the group's first row), and notes."""
    asked_by = [asked(example) for example in examples]
    prompts = folded_prompts(examples, asked_by)
    union = _Union(len(examples))
    first_of: dict[tuple[str, str | int], int] = {}
    for row, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        union.join(row, first_of.setdefault(("prompt", prompt), row))
        if example.group:
            union.join(row, first_of.setdefault(("group", example.group), row))
    _join_same(union, asked_by)
    if not _system_counts(asked_by):
        _join_turns(union, asked_by)
    rows = [row for (kind, _), row in first_of.items() if kind == "prompt"]
    distinct = [prompts[row] for row in rows]
    for a, b in near_duplicates(distinct, lambda a, b: union.find(rows[a]) == union.find(rows[b])):
        union.join_alike(rows[a], rows[b])
    keys = [_key(examples[first], prompts[first]) for first in map(union.find, range(len(examples)))]
    if not union.refused:
        return keys, []
    note = (
        f"{union.refused:,} pairs of rows that are alike were not kept together: more than a quarter of all rows would "
        "have been one group"
    )
    return keys, [note]


def _join_same(union: _Union, asked_by: Sequence[Asked]) -> None:
    """Unite each row with those that answer, at their end or before, what it asks at its end."""
    final = {a.final for a in asked_by}
    first: dict[int, int] = {}
    for row, a in enumerate(asked_by):
        for key in (a.final, *a.trained):
            if key in final:
                union.join(row, first.setdefault(key, row))


def _join_turns(union: _Union, asked_by: Sequence[Asked]) -> None:
    """Unite rows that share a longer user turn, unless so many have it that it is a template."""
    turns = {key for a in asked_by for key in a.turns}
    counts = Counter(key for a in asked_by for key in (a.folded, *a.turns) if key in turns)
    first: dict[int, int] = {}
    for row, a in enumerate(asked_by):
        for key in (a.folded, *a.turns):
            if 1 < counts[key] < least_common(len(asked_by)):
                union.join_alike(row, first.setdefault(key, row))


def _key(example: Example, prompt: str) -> str:
    return f"group:{example.group}" if example.group else f"prompt:{prompt}"


def _shingles(text: str) -> Shingles:
    """Sorted 32-bit hashes of all runs of 5 characters; a shorter text is one run."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if len(codes) < SHINGLE:
        codes = np.concatenate([codes, np.zeros(SHINGLE - len(codes), np.uint32)])
    hashes = np.zeros(len(codes) - SHINGLE + 1, np.uint32)
    for column in np.lib.stride_tricks.sliding_window_view(codes, SHINGLE).T:
        hashes = (hashes ^ column) * np.uint32(0x01000193)  # FNV-1a, on whole code points
        hashes ^= hashes >> np.uint32(15)
    return np.unique(hashes)


def _boilerplate(texts: Sequence[str]) -> Shingles:
    """Shingles that many of the first prompts have: a question's fixed wording, a block of instructions."""
    sample = texts[:BOILERPLATE_SAMPLE]
    hashes, counts = np.unique(np.concatenate([_shingles(text) for text in sample]), return_counts=True)
    return hashes[counts >= least_common(len(sample))]


def near_duplicates(texts: Sequence[str], joined: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of different folded texts whose Jaccard similarity is at least 0.8.

    `joined(a, b)` tells whether two are known to belong together already; such pairs are left out. Memory: some 300
    bytes a text.
    """
    if len(texts) < 2:
        return
    common = _boilerplate(texts)

    @functools.lru_cache(maxsize=4096)  # of a million long texts not all can be kept
    def own(number: int) -> Shingles:
        return np.setdiff1d(_shingles(texts[number]), common, assume_unique=True)

    signatures, numbers = _signatures(own, len(texts))
    for at, candidates in _candidates(signatures):
        number = int(numbers[at])
        verified = 0
        for other in numbers[candidates].tolist():
            if joined(number, other):
                continue
            verified += 1
            if _jaccard(own(number), own(other)) >= NEAR:
                yield number, other
            if verified == VERIFIED:
                break


def _signatures(own: Callable[[int], Shingles], count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(M, 128) signatures of the texts that have shingles enough to be compared, and their numbers (M,)."""
    from luthier.data.checks._minhash import Signatures  # half a second to import

    signer = Signatures()
    signed: list[npt.NDArray[np.uint8]] = []
    numbers: list[int] = []
    for start in range(0, count, SIGNED_AT_ONCE):
        sets = {number: own(number) for number in range(start, min(start + SIGNED_AT_ONCE, count))}
        sets = {number: hashes for number, hashes in sets.items() if len(hashes) >= MIN_SHINGLES}
        if sets:
            counts = np.array([len(hashes) for hashes in sets.values()])
            signed.append(signer.sign(np.concatenate(list(sets.values())), counts))
            numbers += sets
    return np.concatenate([np.empty((0, 128), np.uint8), *signed]), np.array(numbers, dtype=np.int64)


def _candidates(signatures: npt.NDArray[np.uint8]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """For each text that agrees with earlier ones in a whole band: its number and theirs, the likeliest first."""
    from luthier.data.checks._minhash import bands, similarity

    runs: dict[int, list[npt.NDArray[np.int64]]] = {}
    half = FROM_A_BAND // 2
    for order, begins in bands(signatures) if len(signatures) > 1 else ():  # within a run, numbers rise
        starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        for at in np.flatnonzero(~begins).tolist():
            start = int(starts[at])
            held = runs.setdefault(int(order[at]), [])
            held.append(order[max(start, at - half) : at])
            held.append(order[start : min(start + half, max(start, at - half))])
    for number in sorted(runs):
        earlier = np.unique(np.concatenate(runs.pop(number)))
        likeness = similarity(signatures, np.full(len(earlier), number), earlier)
        likely = np.argsort(-likeness, kind="stable")[: int((likeness >= PROMISING).sum())]
        yield number, earlier[likely]


def _jaccard(a: Shingles, b: Shingles) -> float:
    if min(len(a), len(b)) < NEAR * max(len(a), len(b)):
        return 0.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


# Sides


def _position(key: str, seed: int) -> float:
    """Where a group lies in [0, 1): a hash of its key and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _sides(
    keys: Mapping[str, None], shares: Mapping[str, float], seed: int, path: str
) -> tuple[dict[str, str], list[str]]:
    """The split of each group: test takes the lowest positions, validation the highest, train what lies between."""
    if len(keys) <= len(shares):
        raise DataError(
            f"the rows form {len(keys)} group{'s' if len(keys) > 1 else ''} (rows with the same `group`, or with equal "
            f"or nearly equal prompts, stay together); expected at least {len(shares) + 1}, one for train and each of "
            f"{', '.join(shares)}. Add rows, or name files with data.validation and data.test",
            path,
        )
    positions = sorted((_position(key, seed), key) for key in keys)
    taken = {"test": 0, "validation": 0}
    if "test" in shares:
        taken["test"] = sum(position < shares["test"] for position, _ in positions)
    if "validation" in shares:
        taken["validation"] = sum(position >= 1 - shares["validation"] for position, _ in positions)
    notes = []
    for name in shares:
        if not taken[name]:
            taken[name] = 1
            notes.append(
                f"{name}: a share of {shares[name]:g} of {len(keys)} groups came out empty; one group was taken"
            )
    while sum(taken.values()) >= len(keys):  # train came out empty
        largest = max(taken, key=lambda name: taken[name])
        taken[largest] -= 1
        notes.append(f"train: no group was left for it; one was taken from {largest}")
    low, high = taken["test"], len(positions) - taken["validation"]
    sides = {
        key: "test" if rank < low else "validation" if rank >= high else "train"
        for rank, (_, key) in enumerate(positions)
    }
    return sides, notes


def _uneven(parts: Mapping[str, Sequence[Example]], shares: Mapping[str, float], rows: int) -> list[str]:
    """A note for each split that is less than half or more than twice what was asked for, as one big group makes it."""
    found = ((name, len(parts[name]) / rows) for name in shares)
    return [
        f"{name}: {got:.1%} of the rows, where {shares[name]:.1%} was asked for, since rows of a group stay together"
        for name, got in found
        if rows >= 100 and not shares[name] / 2 <= got <= shares[name] * 2
    ]


# Leaks


def find_leaks(parts: Mapping[str, Sequence[Example]]) -> list[Leak]:
    """Rows of train that validation or test repeat, and rows of validation that test repeats, by folded prompt.

    Only the first held-out row is named for each; the order is that of the rows.
    """
    names = [name for name in ("train", *HELD_OUT) if parts.get(name)]
    examples = [example for name in names for example in parts[name]]
    prompts = folded_prompts(examples, [asked(example) for example in examples])
    places: dict[str, dict[str, Where]] = {}
    start = 0
    folded: dict[str, list[str]] = {}
    for name in names:
        folded[name] = prompts[start : start + len(parts[name])]
        start += len(parts[name])
        places[name] = {}
        for example, prompt in zip(parts[name], folded[name], strict=True):
            places[name].setdefault(prompt, example.where)
    return [
        Leak(example.where, name, places[later][prompt], later)
        for i, name in enumerate(names)
        for later in names[i + 1 :]
        for example, prompt in zip(parts[name], folded[name], strict=True)
        if prompt in places[later]
    ]
