"""Rows go to train, validation and test by a hash of the group they belong to, so that no group stands on two sides.

Rows are one group if they carry the same `group`, if their prompts are equal once case, spacing and punctuation are
folded, or if their prompts are near duplicates (Jaccard similarity of character 5-grams at least 0.8; candidates by
MinHash, Broder 1997, each then verified exactly). The side of a group is sha256(seed, key of its first row): no random
generator, so the same file always splits alike, and rows appended to it leave the others where they are, unless a new
row joins two groups that stood apart.

A prompt here is what varies: the user's turns (a system prompt is shared by all rows), without the 5-grams that more
than half of the rows have in common. Where nearly all rows ask the same and differ in the rest of the prompt, the
whole prompt counts. Left out: similarity of meaning.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.errors import DataError
from luthier.examples import Document, Example, Where

NEAR = 0.8
"""Jaccard similarity from which two prompts are near duplicates."""
SHINGLE = 5
"""Characters of a shingle: one word changed in a sentence of some 90 characters is still near."""
BANDS, BAND_ROWS = 16, 8
"""MinHash bands: pairs at 0.8 become candidates with probability 0.95, at 0.9 with 0.9999."""
MAX_CANDIDATES = 200
"""Candidates verified for one prompt; bounds the time on data made from one pattern."""
BOILERPLATE_SAMPLE, BOILERPLATE_MIN = 2000, 20
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
    prompts = folded_prompts(examples)
    keys = _group_keys(examples, prompts)
    sides, notes = _sides(dict.fromkeys(keys), shares, seed, examples[0].where.path)
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


def folded_prompts(examples: Sequence[Example]) -> list[str]:
    """The folded varying part of each prompt: user turns, a text, or the whole prompt if all users ask alike."""
    asked = [fold(_asked(example)) for example in examples]
    whole = [fold(_whole(example)) for example in examples]
    # a constant question ("Summarize.") about a text that stands in the system message
    return whole if len(set(asked)) * 10 <= len(set(whole)) else asked


def _asked(example: Example) -> str:
    if isinstance(example, Document):
        return example.text
    return "\n".join(m.content for m in example.prompt if m.role == "user") or _whole(example)


def _whole(example: Example) -> str:
    return example.text if isinstance(example, Document) else "\n".join(m.content for m in example.prompt)


# Groups


class _Union:
    """Disjoint sets; the representative of a set is its earliest member."""

    def __init__(self) -> None:
        self.parents: list[int] = []

    def add(self) -> int:
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def find(self, item: int) -> int:
        while self.parents[item] != item:
            self.parents[item] = self.parents[self.parents[item]]
            item = self.parents[item]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parents[max(a, b)] = min(a, b)


def _group_keys(examples: Sequence[Example], prompts: Sequence[str]) -> list[str]:
    """For each row the key of its group: the `group` or the prompt of the group's first row in the file."""
    union = _Union()
    first_of_prompt: dict[str, int] = {}
    first_of_group: dict[str, int] = {}
    for example, prompt in zip(examples, prompts, strict=True):
        row = union.add()
        union.join(row, first_of_prompt.setdefault(prompt, row))
        if example.group:
            union.join(row, first_of_group.setdefault(example.group, row))
    rows = list(first_of_prompt.values())
    for a, b in near_duplicates(list(first_of_prompt), lambda a, b: union.find(rows[a]) == union.find(rows[b])):
        union.join(rows[a], rows[b])
    return [_key(examples[first], prompts[first]) for first in map(union.find, range(len(examples)))]


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
    """Shingles that more than half of the first prompts have: a question's fixed wording, a block of instructions."""
    sample = texts[:BOILERPLATE_SAMPLE]
    if len(sample) < BOILERPLATE_MIN:
        return np.empty(0, np.uint32)
    hashes, counts = np.unique(np.concatenate([_shingles(text) for text in sample]), return_counts=True)
    return hashes[counts * 2 > len(sample)]


def near_duplicates(texts: Sequence[str], joined: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of different folded texts whose Jaccard similarity is at least 0.8.

    `joined(a, b)` tells whether two are known to belong together already; such pairs are left out. Memory: some 200
    bytes a text.
    """
    if len(texts) < 2:
        return
    common = _boilerplate(texts)

    @functools.lru_cache(maxsize=4096)  # of a million long texts not all can be kept
    def own(number: int) -> Shingles:
        return np.setdiff1d(_shingles(texts[number]), common, assume_unique=True)

    for number, candidates in _candidates(_signatures(own, len(texts))):
        for other in candidates:
            if not joined(number, other) and len(own(number)) and _jaccard(own(number), own(other)) >= NEAR:
                yield number, other


def _signatures(own: Callable[[int], Shingles], count: int) -> npt.NDArray[np.uint64]:
    """(texts, bands) a 64-bit hash of each band of each text's MinHash."""
    from datasketch import MinHash  # half a second to import

    empty = MinHash(num_perm=BANDS * BAND_ROWS, hashfunc=int)
    mixers = np.random.default_rng(0).integers(1, 2**63, BAND_ROWS, dtype=np.uint64) | np.uint64(1)
    signatures = np.empty((count, BANDS), np.uint64)
    for number in range(count):
        minhash = empty.copy()
        minhash.update_batch(own(number).tolist())
        bands = np.asarray(minhash.hashvalues, dtype=np.uint64).reshape(BANDS, BAND_ROWS)
        signatures[number] = (bands * mixers).sum(axis=1, dtype=np.uint64)  # wraps around: a multilinear hash
    return signatures


def _candidates(signatures: npt.NDArray[np.uint64]) -> Iterator[tuple[int, list[int]]]:
    """For each text that agrees with earlier ones in a whole band: its number and theirs, at most 200, in order."""
    runs: dict[int, list[Shingles]] = {}
    for band in signatures.T:
        order = np.argsort(band, kind="stable").astype(np.uint32)  # stable: within a run, numbers rise
        begins = np.concatenate([[True], band[order[1:]] != band[order[:-1]]])
        starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        for at in np.flatnonzero(~begins):
            start = starts[at]
            runs.setdefault(int(order[at]), []).append(order[start : min(at, start + MAX_CANDIDATES)])
    for number in sorted(runs):
        yield number, np.unique(np.concatenate(runs[number]))[:MAX_CANDIDATES].tolist()


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
    prompts = folded_prompts([example for name in names for example in parts[name]])
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
