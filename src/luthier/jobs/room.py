"""Memory for jobs: what each has claimed, and whether a further one fits beside those that train.

A process that trains tells its claim once its model is loaded and its passes are counted (`luthier.engine.fit`), and
before its first step. Whoever claims more than is left ends at once and waits in the queue; who claims more than the
machine has is refused. Claims are predicted peaks with their margin, so what jobs hold meanwhile does not count: two
that begin together do not both take what is free for one.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from luthier import system_memory
from luthier.data.write import atomic_text
from luthier.jobs.job_folder import BESIDE, CLAIM

CPU = "cpu"
STARTING_BYTES = 2**29
"""What a process holds before it knows its claim, without its model."""


@dataclass(frozen=True)
class Claim:
    """What a job holds at most."""

    device: str
    """As torch names it."""
    needed: int
    """Bytes, the margin of the prediction included."""
    total: int
    """Bytes of the device."""
    is_least: bool = False
    """Whether only the files of the model were counted, as there was no room to load it."""

    def write(self, folder: Path) -> None:
        """Keep it in the job's folder."""
        with atomic_text(folder / CLAIM) as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, folder: Path) -> "Claim | None":
        """That of a job's folder; None: it is not known yet."""
        path = folder / CLAIM
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True)
class Beside:
    """The other jobs that train, as a process is told of them when it starts."""

    held: int = 0
    """Bytes of the machine's memory that they hold now."""
    claimed: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device."""
    most: int = sys.maxsize
    """Bytes of the machine's memory that all jobs together may take, by the operator's wish."""

    @classmethod
    def of(cls, processes: Iterable[int], claims: Iterable[Claim], most: int) -> "Beside":
        """Jobs by the numbers of their processes, and their claims."""
        claimed: dict[str, int] = {}
        for claim in claims:
            claimed[claim.device] = claimed.get(claim.device, 0) + claim.needed
        return cls(sum(map(_held, processes)), claimed, most)

    def write(self, folder: Path) -> None:
        """Leave it in a job's folder for its process."""
        with atomic_text(folder / BESIDE) as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, folder: Path) -> "Beside":
        """What was left there; nobody, if nothing was."""
        path = folder / BESIDE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()

    def total(self, claim: Claim) -> int:
        """Bytes of a claim's device, if nobody else held any."""
        return min(system_memory.total_bytes(), self.most) if claim.device == CPU else claim.total

    def left(self, claim: Claim | None) -> int:
        """Bytes that nobody claims, on the device of a claim; None: of the machine's memory."""
        if claim is None or claim.device == CPU:
            return min(system_memory.free_bytes() + self.held, self.most) - self.claimed.get(CPU, 0)
        return claim.total - self.claimed.get(claim.device, 0)  # what else is held there, only its process can tell

    def takes(self, claim: Claim | None) -> bool:
        """Whether there is room for a job; for one without a claim yet, whether it may be started to find out."""
        if claim is None:
            return not self.claimed or self.left(None) >= STARTING_BYTES
        return self.left(claim) >= claim.needed


def too_large(claim: Claim, total: int) -> str:
    """Why a job never fits."""
    return (
        f"training needs {gib(claim.needed)} of memory ({claim.device}), and jobs can have {gib(total)}: take a "
        "smaller model or shorter rows"
    )


def gib(size: float) -> str:
    """For people."""
    return f"{size / 2**30:.1f} GiB"


def _held(process: int) -> int:
    try:
        return system_memory.own_bytes(process)
    except psutil.Error:  # it ended a moment ago
        return 0
