"""Which candidate wins, from what each gained and what each forgot.

Gain is what the primary metric is better than the base by on the validation rows; forgetting is the largest share that
a measure of general ability lost, as `decision.most_forgetting` counts it. With that limit, the most gain below it
wins. Without one, gains that differ by less than `decision.smallest_gain` are worth the same, so the winner is
the one that forgets least among those within it of the best: forgetting is bought back where it costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One measured candidate."""

    name: str
    gain: float
    forgetting: float
    """A share; negative where nothing was lost."""


@dataclass(frozen=True)
class Choice:
    """The winner, and why in a sentence."""

    name: str
    reason: str


def frontier(points: Sequence[Point]) -> list[str]:
    """Names of those that no other one beats: more gain at no more forgetting, or less forgetting at no less gain."""

    def beaten(point: Point) -> bool:
        return any(
            other.gain >= point.gain
            and other.forgetting <= point.forgetting
            and (other.gain, other.forgetting) != (point.gain, point.forgetting)
            for other in points
        )

    return [point.name for point in points if not beaten(point)]


def choose(points: Sequence[Point], limit: float | None, same_gain: float) -> Choice:
    """The winner among at least one point.

    Args:
        points: in the order in which equals are preferred.
        limit: the most forgetting that is allowed; None: no limit was given.
        same_gain: gains that differ by no more are worth the same, where there is no limit.
    """
    if limit is not None:
        allowed = [point for point in points if point.forgetting <= limit]
        if allowed:
            best = max(allowed, key=lambda p: (p.gain, -p.forgetting))
            return Choice(
                best.name,
                f"of {len(allowed)} that forget no more than {limit:.1%} (decision.most_forgetting) it gains the most",
            )
        least = min(points, key=lambda p: p.forgetting)
        return Choice(
            least.name, f"none forgets as little as {limit:.1%} (decision.most_forgetting); it is the nearest to that"
        )
    best = max(points, key=lambda p: p.gain)
    near = [point for point in points if point.gain >= best.gain - same_gain]
    least = min(near, key=lambda p: p.forgetting)
    same = f"decision.most_forgetting sets no limit; of {len(near)} whose gain is within {same_gain:.3g} of the best"
    return Choice(least.name, f"{same} (decision.smallest_gain) it forgets the least")
