"""What a tracker is: a place that shows runs, told of each step as the run's `metrics.jsonl` has it.

A tracker is opened again whenever a run goes on, and says itself which steps it holds: what is told twice is left out
by that, whatever was killed when.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from luthier.config import Settings
from luthier.errors import TrackingError

Line: TypeAlias = Mapping[str, float]
"""A step: `step` and its metrics."""
Plain: TypeAlias = str | int | float | bool
Status: TypeAlias = Literal["finished", "stopped", "failed"]
"""How a training left its tracker; a stopped one was told to stop, and goes on with the same command."""


class Ended(Exception):
    """A training was ended as planned before its last step: it is told as finished."""


@dataclass(frozen=True)
class Subject:
    """The run that is tracked."""

    title: str
    """What it is called where its tracker's settings give no name."""
    folder: Path
    """The run's folder; a tracker that writes files has one of its own in it."""


class Session(ABC):
    """A run that is open at a tracker. Every method raises TrackingError where the tracker does not take what it is
    told; the session is then given up, and the run opened again."""

    id: str
    """By which the tracker knows the run again."""
    place: str
    """Where to look at it."""

    @abstractmethod
    def last_step(self) -> int:
        """The last step that the tracker holds, 0 if none: asked once, before anything is told."""

    @abstractmethod
    def describe(self, settings: Mapping[str, Plain]) -> None:
        """Tell the settings of the run; once in its life, or again where that was cut off."""

    @abstractmethod
    def tell(self, lines: Sequence[Line]) -> None:
        """Tell steps, each later than all before."""

    def confirmed(self, told: int) -> int:
        """Of the steps up to `told`, the last that the tracker surely has, should the session end in an error."""
        return told

    @abstractmethod
    def conclude(self, step: int, figures: Mapping[str, float], words: Mapping[str, str]) -> None:
        """Tell what came of the run, after `step`; later figures of the same name replace earlier ones."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """End the session when all that was told has arrived."""

    @abstractmethod
    def drop(self) -> None:
        """Let go of what the session holds on this machine, after an error."""


class Tracker(Settings, ABC):
    """One file each; the file name is `type`, and so is the name of the table in `[tracking]` if it has none."""

    @abstractmethod
    def require(self) -> None:
        """Find what is missing on this machine, without asking anybody.

        Raises:
            TrackingError: a package, an address or a key; the message says how to give it.
        """

    @abstractmethod
    def reach(self) -> None:
        """Ask the server whether it would take a run.

        Raises:
            TrackingError: it does not answer, or refuses.
        """

    @abstractmethod
    def open(self, subject: Subject, run_id: str | None) -> Session:
        """Begin a run at the tracker, or go on with the one of this id.

        Raises:
            TrackingError: it does not answer, refuses, or knows no such run any more.
        """


def first_line(error: Exception) -> str:
    """What an error of a tracker's library says, in one line; some say nothing but their name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def require_package(name: str, extra: str) -> None:
    """Make sure that a tracker's own package is there, without importing it.

    Raises:
        TrackingError: it is not; the message has the command.
    """
    if importlib.util.find_spec(name) is None:
        raise TrackingError(f"the package {name} is not installed; `pip install 'luthier[{extra}]'` brings it")
