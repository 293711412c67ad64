"""TensorBoard: event files in the run's own folder; `tensorboard --logdir runs` shows all runs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import TrackingError
from luthier.trackers.base import Line, Plain, Session, Status, Subject, Tracker, require_package

FOLDER = "tensorboard"
"""Of a run; another of the same folder, of a second table or begun anew, has a number after it."""


class TensorBoard(Tracker):
    """Files alone: there is no server to be told of a run, and nothing leaves the machine."""

    def require(self) -> None:
        """The package `tensorboard`."""
        require_package("tensorboard", "tensorboard")

    def reach(self) -> None:
        """Nobody has to answer."""

    def open(self, subject: Subject, run_id: str | None) -> "Events":
        """A further event file beside those of earlier processes; a new run has a folder of its own."""
        self.require()
        return Events(subject.folder / run_id if run_id else _new_folder(subject.folder))


class Events(Session):
    """Writes one event for each step, with all its metrics: a step is in the file as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.id, self.place = folder.name, str(folder)
        self._folder = folder
        self._held = _last_step(folder)
        with _told():
            self._writer = EventFileWriter(str(folder))

    def last_step(self) -> int:
        """Read from the files themselves, when this one was not there yet."""
        return self._held

    def describe(self, settings: Mapping[str, Plain]) -> None:
        """As hyperparameters."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        self._write(0, hparams_pb(dict(settings), trial_id=self.id))

    def tell(self, lines: Sequence[Line]) -> None:
        """As scalars."""
        for line in lines:
            self._add(int(line["step"]), _scalars({name: value for name, value in line.items() if name != "step"}))
        with _told():
            self._writer.flush()

    def conclude(self, step: int, figures: Mapping[str, float], words: Mapping[str, str]) -> None:
        """As scalars after the last step, and texts."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(step, _scalars(figures), *(text_pb(name, text) for name, text in words.items()))

    def close(self, status: Status) -> None:
        """Close the file; how the run ended has no place in it."""
        with _told():
            self._writer.close()

    def drop(self) -> None:
        """Close the file."""
        self.close("failed")

    def _write(self, step: int, *summaries: Any) -> None:
        for summary in summaries:
            self._add(step, summary)
        with _told():
            self._writer.flush()

    def _add(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with _told():
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _new_folder(home: Path) -> Path:
    """The first of `tensorboard`, `tensorboard-2` ... that nobody has made, not even another thread meanwhile."""
    folder, number = home / FOLDER, 1
    with _told():
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = home / f"{FOLDER}-{number}"


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _last_step(folder: Path) -> int:
    """The highest step of a folder's newest file that has one; a file that was cut off is read to its last whole event.

    Raises:
        TrackingError: a file cannot be read.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with _told():
            last = max((int(event.step) for event in LegacyEventFileLoader(str(path)).Load()), default=0)
        if last:
            return last
    return 0


@contextmanager
def _told() -> Iterator[None]:
    """Trouble with a file as TrackingError; a full disk is told by the thread that writes, at the next call."""
    try:
        yield
    except OSError as error:
        raise TrackingError(f"TensorBoard's event file cannot be written or read: {error}") from error
