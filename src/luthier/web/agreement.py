"""What raters say together: the order in which answers are shown, who is preferred, and how far raters agree."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Literal, TypeAlias

Choice: TypeAlias = Literal["first", "second", "tie", "skip"]
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "skip")


def is_swapped(pair_id: str, key_id: str) -> bool:
    """Whether a rater sees the second answer of a pair first: always the same, and at even odds over pairs."""
    return sha256(f"{pair_id}\0{key_id}".encode()).digest()[0] % 2 == 1


def preferred(choices: Iterable[Choice]) -> Choice | None:
    """What most raters of a pair say; a tie where neither answer has more, None where all skipped it."""
    counts: Counter[Choice] = Counter(choice for choice in choices if choice != "skip")
    if not counts:
        return None
    if counts["first"] == counts["second"]:
        return "tie"
    winner: Choice = "first" if counts["first"] > counts["second"] else "second"
    return winner if counts[winner] > counts["tie"] else "tie"


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Agreement beyond chance of any number of raters, each of whom may have left out units; nominal values.

    1: they always agree; 0: as chance would have it; None: no two of them said anything of the same unit, or there is
    but one value, of which chance leaves nothing to tell.

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), formula (1) with coincidences.
    """
    together: defaultdict[tuple[str, str], float] = defaultdict(float)
    for values in units:
        counts, size = Counter(values), len(values)
        if size < 2:
            continue
        for a in counts:
            for b in counts:
                together[a, b] += counts[a] * (counts[b] - (a == b)) / (size - 1)
    totals: defaultdict[str, float] = defaultdict(float)
    for (a, _), count in together.items():
        totals[a] += count
    n = sum(totals.values())
    expected = n * n - sum(count * count for count in totals.values())
    if not expected:
        return None
    observed = sum(count for (a, b), count in together.items() if a != b)
    return 1 - (n - 1) * observed / expected
