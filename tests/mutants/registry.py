"""What a mutant is, and the list in which modules of seeds put theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from luthier.preflight.base import Stage, Subject

Seed: TypeAlias = Callable[[], Subject]


@dataclass(frozen=True)
class Mutant:
    """One seeded failure."""

    failure: str
    """Number in the catalog, `gate n` for what a gate of its list promises, or `own`."""
    name: str
    gate: str
    """Which gate must refuse it."""
    stage: Stage
    seed: Callable[[], Subject]


def register_in(mutants: list[Mutant], failure: str, gate: str, stage: Stage = "rows") -> Callable[[Seed], Seed]:
    """Register a function that makes the subject of a run with a failure in it; its name is the mutant's."""

    def register(seed: Seed) -> Seed:
        mutants.append(Mutant(failure, seed.__name__, gate, stage, seed))
        return seed

    return register
