"""Which of many texts are nearly the same, from one byte for each of 128 random orders of their shingles.

A shingle is the twelve bytes from the start of a word on. Two texts have the same smallest shingle in a random order
with probability J, their Jaccard similarity (Broder 1997); of each smallest hash only the lowest byte is kept (b-bit
minwise hashing, Li and Koenig, arXiv:0910.3349), and J = (share of equal bytes - 1/256) / (1 - 1/256). Eight bytes make
a band; texts that agree in a whole band are candidates, found by sorting. With 16 bands a pair of J = 0.8 is found with
probability 0.947, one of 0.9 with 0.9999.

Shingles that stand in a tenth of the first texts are the template that all rows share (an instruction, JSON keys) and
are left out, so only the varying part of a row is compared. The random orders are those of the datasketch library.

At most 8 MiB of texts wait to be signed, and a long text is signed in pieces whose smallest hashes are put together,
so memory grows by 136 bytes a text, whatever its length.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from luthier.data.prompts import COMMON_ROWS, least_common

ORDERS = 128
BAND_BYTES = 8
BANDS = ORDERS // BAND_BYTES
NEAR = 0.8
MIN_SHINGLES = 4
_LEARN_FROM, _BATCH, _BLOCK = 1024, 256, 65536
_LEARN_BYTES, _WAITING_BYTES, _PIECE_BYTES = 1 << 16, 1 << 23, 1 << 20
_WINDOW = 12
_PAD = b"\0" * 16
_TABLE_BITS = 16
_VERIFY_AT_ONCE = 32768

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
I64: TypeAlias = NDArray[np.int64]
_WORD_START = np.array([0, *([1] * 127), *([0] * 64), *([1] * 64)], dtype=bool)
_WORD_START[32] = False
_LEAD_BYTE = np.arange(256) >= 0xC0
_BLANK = np.zeros(256, dtype=bool)
_BLANK[[0, 32]] = True


def shingles(texts: list[bytes]) -> tuple[U32, I64]:
    """The hashed shingles of normalized texts, one text after the other, and how many each text has.

    A word begins after a blank; in scripts without blanks every character that takes several bytes begins one.
    """
    data = b"".join([text + _PAD for text in texts])
    starts = _starts(data)
    ends = np.cumsum([len(text) + len(_PAD) for text in texts])
    counts = np.diff(np.searchsorted(starts, ends), prepend=0)
    return _hashes(data, starts), counts.astype(np.int64)


def pieces(text: bytes, size: int = _PIECE_BYTES) -> Iterator[U32]:
    """The hashed shingles of one long text, those that begin in `size` bytes at a time."""
    for begin in range(0, len(text), size):
        from_ = max(begin - 1, 0)  # with the byte before, which tells whether a word starts here
        data = text[from_ : begin + size + _WINDOW] + _PAD
        starts = _starts(data)
        yield _hashes(data, starts[(starts >= begin - from_) & (starts < begin - from_ + size)])


def _starts(data: bytes) -> I64:
    """Where the shingles of padded texts begin."""
    codes = np.frombuffer(data, dtype=np.uint8)
    after_blank = np.concatenate(([True], _BLANK[codes[:-1]]))
    return np.flatnonzero((after_blank & _WORD_START[codes]) | _LEAD_BYTE[codes])


def _hashes(data: bytes, starts: I64) -> U32:
    """A hash of the twelve bytes from each start on."""
    windows: NDArray[np.uint64] = np.ndarray(shape=(len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    head, tail = windows[starts], windows[starts + 8] & np.uint64(0xFFFFFFFF)
    mixed = head * np.uint64(0x9E3779B97F4A7C15) + tail * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(mixed >> np.uint64(32), dtype=np.uint32)


def mix(values: U32) -> U32:
    """The finalizer of MurmurHash3 (Appleby, public domain): datasketch applies it before its permutations."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


class Signatures:
    """Signs texts as they come: 128 bytes a text, in blocks; texts are numbered from 0 in the order of `add`."""

    def __init__(self) -> None:
        factors, offsets = MinHash(num_perm=ORDERS, seed=1, scheme="affine32").permutations
        self._factors: U32 = factors.astype(np.uint32)
        self._offsets: U32 = offsets.astype(np.uint32)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._common: NDArray[np.bool_] | None = None
        self._blocks: list[U8] = []
        self._rows = array("q")
        self._added = 0

    def add(self, text: bytes) -> None:
        """Take the next text, as `normalized` gives it."""
        self._waiting.append(text)
        self._waiting_bytes += len(text)
        enough = _LEARN_FROM if self._common is None else _BATCH
        if len(self._waiting) >= enough or self._waiting_bytes >= _WAITING_BYTES:
            self._sign_waiting()

    def close(self, keep: NDArray[np.bool_] | None = None) -> tuple[U8, I64]:
        """Signatures (M, 128) of the texts that have enough of their own to be compared, and their numbers (M,).

        `keep` (one truth value for each text added) leaves texts out. The object is empty afterwards.
        """
        self._sign_waiting()
        numbers = np.array(self._rows, dtype=np.int64)
        kept = np.ones(len(numbers), dtype=bool) if keep is None else keep[numbers]
        total = np.empty((int(kept.sum()), ORDERS), dtype=np.uint8)
        end = len(total)
        for start in range((len(self._blocks) - 1) * _BLOCK, -1, -_BLOCK):  # from the back: memory is given up at once
            mask = kept[start : start + _BLOCK]
            block = self._blocks.pop()[: len(mask)][mask]
            total[end - len(block) : end] = block
            end -= len(block)
        return total, numbers[kept]

    def _store(self, signatures: U8, numbers: I64) -> None:
        """Append to blocks of 8 MiB, which the system takes back as soon as they are dropped."""
        while len(signatures):
            filled = len(self._rows) % _BLOCK
            if filled == 0:
                self._blocks.append(np.empty((_BLOCK, ORDERS), dtype=np.uint8))
            taken = min(_BLOCK - filled, len(signatures))
            self._blocks[-1][filled : filled + taken] = signatures[:taken]
            self._rows.extend(numbers[:taken].tolist())
            signatures, numbers = signatures[taken:], numbers[taken:]

    def _sign_waiting(self) -> None:
        if self._common is None:
            self._common = common_shingles(list(dict.fromkeys(text[:_LEARN_BYTES] for text in self._waiting)))
        batch: list[bytes] = []
        size = 0
        for text in self._waiting:
            size += len(text)
            if len(batch) == _BATCH or size > _PIECE_BYTES:
                self._sign(batch, self._common)
                batch, size = [], len(text)
            if len(text) > _LEARN_BYTES:
                self._sign(batch, self._common)
                self._sign_long(text, self._common)
                batch, size = [], 0
            else:
                batch.append(text)
        self._sign(batch, self._common)
        self._waiting, self._waiting_bytes = [], 0

    def _sign_long(self, text: bytes, common: NDArray[np.bool_]) -> None:
        found, smallest = 0, np.full((ORDERS, 1), 0xFFFFFFFF, dtype=np.uint32)
        for hashes in pieces(text):
            own = hashes[~common[hashes & np.uint32((1 << _TABLE_BITS) - 1)]]
            found += len(own)
            if len(own):
                smallest = np.minimum(smallest, self._smallest(own, np.array([len(own)])))
        if found >= MIN_SHINGLES:
            self._store(_lowest_bytes(smallest), np.array([self._added]))
        self._added += 1

    def _sign(self, texts: list[bytes], common: NDArray[np.bool_]) -> None:
        if not texts:
            return
        hashes, counts = shingles(texts)
        own = ~common[hashes & np.uint32((1 << _TABLE_BITS) - 1)]
        owner = np.repeat(np.arange(len(texts)), counts)
        enough = np.bincount(owner[own], minlength=len(texts)) >= MIN_SHINGLES
        own &= enough[owner]
        signed = np.flatnonzero(enough)
        first = self._added
        self._added += len(texts)
        if not signed.size:
            return
        self._store(self.sign(hashes[own], np.bincount(owner[own], minlength=len(texts))[signed]), signed + first)

    def sign(self, hashes: U32, counts: I64) -> U8:
        """Signatures (R, 128) of R texts from their shingles, text after text; every count is at least 1."""
        return _lowest_bytes(self._smallest(hashes, counts))

    def _smallest(self, hashes: U32, counts: I64) -> U32:
        """(128, R) the smallest hash of each text in each order."""
        premixed = mix(hashes)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        smallest = np.empty((ORDERS, len(counts)), dtype=np.uint32)
        for order in range(ORDERS):
            ordered = premixed * self._factors[order] + self._offsets[order]
            smallest[order] = np.minimum.reduceat(ordered, starts)
        return smallest


def _lowest_bytes(smallest: U32) -> U8:
    """(R, 128) of (128, R)."""
    return np.ascontiguousarray(smallest.astype(np.uint8).T)


def common_shingles(texts: Sequence[bytes]) -> NDArray[np.bool_]:
    """Table of 65,536 truth values: does a shingle whose hash ends in these 16 bits belong to the shared template?"""
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    if len(texts) >= COMMON_ROWS:
        hashes, counts = shingles(list(texts))
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
        once = np.unique((hashes.astype(np.uint64) << np.uint64(20)) | owner)
        values, in_texts = np.unique(once >> np.uint64(20), return_counts=True)
        common = values[in_texts >= least_common(len(texts))]
        table[common & np.uint64((1 << _TABLE_BITS) - 1)] = True
    return table


def similarity(signatures: U8, left: I64, right: I64) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs of signed texts; standard error at most 0.045."""
    equal = np.empty(len(left))
    for start in range(0, len(left), _VERIFY_AT_ONCE):
        part = slice(start, start + _VERIFY_AT_ONCE)
        equal[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1)
    return (equal - 1 / 256) / (1 - 1 / 256)


def bands(signatures: U8) -> Iterator[tuple[I64, NDArray[np.bool_]]]:
    """For each band: the texts ordered by their bytes in it, and True where a new value begins."""
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * BAND_BYTES : (band + 1) * BAND_BYTES])
        values = part.view(np.uint64)[:, 0]
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        yield order, np.concatenate(([True], ordered[1:] != ordered[:-1]))


def groups(signatures: U8) -> tuple[I64, dict[int, float]]:
    """Texts in groups of near-duplicates: each is alike (`NEAR`) to another of its group.

    Returns:
        The group of each text (M,), named after its first text; and for each text that joined a group by a pair found
        with an earlier text, the highest similarity of such a pair.
    """
    count = len(signatures)
    group: I64 = np.arange(count)
    likeness: dict[int, float] = {}
    if count < 2:
        return group, likeness
    for order, begins in bands(signatures):
        first = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
        joins = np.flatnonzero(~begins)
        left = np.concatenate((order[joins - 1], order[first[joins]]))
        right = np.concatenate((order[joins], order[joins]))
        apart = group[left] != group[right]
        left, right = left[apart], right[apart]
        if not left.size:
            continue
        alike = similarity(signatures, left, right)
        close = alike >= NEAR
        for text, value in zip(right[close].tolist(), alike[close].tolist(), strict=True):
            likeness[text] = max(value, likeness.get(text, 0.0))
        group = _joined(group, left[close], right[close])
    return group, likeness


def _joined(group: I64, left: I64, right: I64) -> I64:
    """Groups after the pairs (left, right) are put together; a group is named after its first text."""
    count = len(group)
    everyone: I64 = np.arange(count)
    ends = (np.concatenate((everyone, left)), np.concatenate((group, right)))
    graph = coo_matrix((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    firsts = np.full(count, count, dtype=np.int64)
    np.minimum.at(firsts, labels, everyone)
    return np.asarray(firsts[labels], dtype=np.int64)


def nearest_earlier(signatures: U8, stage: I64) -> tuple[NDArray[np.float64], I64]:
    """For each text of a later stage the most similar text of an earlier stage that shares a band with it.

    Args:
        stage: of each text (M,), never falling: 0 for training rows, 1 for the next split, and so on.

    Returns:
        The similarity (M,), 0 where none shares a band; and the number of the earlier text (M,), -1 for none.
    """
    count = len(signatures)
    best, nearest = np.zeros(count), np.full(count, -1, dtype=np.int64)
    if count < 2:
        return best, nearest
    for order, begins in bands(signatures):
        bucket_start = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
        stages = stage[order]
        new_stage = begins | np.concatenate(([True], stages[1:] != stages[:-1]))
        stage_start = np.maximum.accumulate(np.where(new_stage, np.arange(count), 0))
        later = np.flatnonzero(stage_start > bucket_start)
        for earlier in (bucket_start[later], stage_start[later] - 1):
            left, right = order[later], order[earlier]
            alike = similarity(signatures, left, right)
            better = alike > best[left]
            best[left[better]], nearest[left[better]] = alike[better], right[better]
    return best, nearest
