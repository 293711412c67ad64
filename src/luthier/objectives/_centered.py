"""The point between good and bad rewards that BCO (arXiv:2404.04656, theorem 4) moves to zero.

    center = (mean reward of good replies + mean reward of bad ones) / 2, over all steps before this one

Earlier steps alone decide it, so it costs nothing and how a step is cut up cannot change it; it is part of every
checkpoint. The first step's is 0, as are its rewards.
"""

from collections.abc import Iterable, Iterator, Mapping

from luthier.models.forest import Batch
from luthier.objectives.base import Mean, Memory, with_value

CENTER = "center"
GOOD, BAD = "chosen_reward", "rejected_reward"


def center(memory: Memory) -> float:
    """From what was remembered; 0 until both kinds were seen."""
    means = [Mean(memory.get(f"{name}_total", 0.0), memory.get(f"{name}_count", 0.0)) for name in (GOOD, BAD)]
    return sum(mean.value() for mean in means) / 2 if all(mean.count for mean in means) else 0.0


def with_center(batches: Iterable[Batch], memory: Memory) -> Iterator[Batch]:
    """The batches with the center as the value `CENTER` of each row."""
    return (with_value(batch, CENTER, center(memory)) for batch in batches)


def centered(memory: Memory, metrics: Mapping[str, Mean]) -> Memory:
    """What was remembered, and the rewards of one more step."""
    added = dict(memory)
    for name in (GOOD, BAD):
        mean = metrics.get(name, Mean(0.0, 0.0))
        for part, value in (("total", mean.total), ("count", mean.count)):
            added[f"{name}_{part}"] = memory.get(f"{name}_{part}", 0.0) + value
    return added
