"""Trackers follow a training: a thread for each reads `metrics.jsonl` while it grows, and tells what is new.

The training waits for none of them. A tracker that stops answering is asked again, less and less often; what it missed
is still in the file and is told when it answers, at the end, or when the same command is given again. Which run of the
tracker is meant stands in `tracking.json`; how far it is, the tracker itself knows.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.config import part
from luthier.data.checks._patterns import secrets
from luthier.errors import LuthierError, StorageError, TrackingError
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import TRACKING, RunFolder
from luthier.trackers.base import Ended, Line, Plain, Session, Status, Subject, Tracker, first_line

LOG = "metrics.jsonl"
LOOK_SECONDS, LONGEST_PAUSE = 1.0, 60.0
"""Between two looks at the file, and between two tries while a tracker does not answer."""
END_SECONDS = 60.0
"""How long the end of a training waits for a tracker."""
LINES_AT_ONCE = 50
HIDDEN = "(hidden: it looks like a secret)"


def trackers_of(recipe: Recipe) -> dict[str, Tracker]:
    """The trackers of the recipe by name.

    Raises:
        RecipeError: a plug-in put something else there.
    """
    return {
        name: part(settings, Tracker, f"tracking.{name}")  # type: ignore[type-abstract]
        for name, settings in recipe.tracking.items()
    }


def require_trackers(recipe: Recipe) -> None:
    """Make sure that nothing is missing on this machine; nobody is asked.

    Raises:
        TrackingError: a package, an address or a key.
    """
    for name, tracker in trackers_of(recipe).items():
        with _named(name):
            tracker.require()


def require_answers(recipe: Recipe, folder: RunFolder) -> None:
    """Make sure that every tracker would take this run, unless it already has it: a run that goes on waits for nobody.

    They are asked when a command begins; what it then trains, for hours perhaps, no tracker stops.

    Raises:
        TrackingError: one is missing something, does not answer, or refuses.
    """
    require_trackers(recipe)
    for name, tracker in trackers_of(recipe).items():
        if not (folder.read(TRACKING) or {}).get(name, {}).get("described"):
            with _named(name):
                tracker.reach()


class Tracking:
    """The trackers of a training that is under way."""

    def __init__(self, followers: "list[_Follower]") -> None:
        self._followers = followers

    def conclude(self, figures: Mapping[str, float | None], words: Mapping[str, str]) -> None:
        """What came of it, told when all steps are."""
        for follower in self._followers:
            follower.figures |= {name: value for name, value in figures.items() if value is not None}
            follower.words |= words


@contextmanager
def tracked(recipe: Recipe, folder: RunFolder, progress: Progress, patience: float = END_SECONDS) -> Iterator[Tracking]:
    """Let the recipe's trackers follow what is written to the run's log while this is open; `patience` in seconds."""
    kept = _Kept(folder)
    with ExitStack() as stack:
        followers = [
            stack.enter_context(_following(_Follower(name, tracker, recipe, kept, progress, patience)))
            for name, tracker in trackers_of(recipe).items()
        ]
        yield Tracking(followers)


@contextmanager
def _following(follower: "_Follower") -> "Iterator[_Follower]":
    follower.thread.start()
    status: Status = "failed"
    try:
        yield follower
        status = "finished"
    except Ended:
        status = "finished"
        raise
    except KeyboardInterrupt:
        status = "stopped"
        raise
    finally:
        follower.end(status)


class _Kept:
    """`tracking.json`: an entry for each tracker, written by all of their threads."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self._lock = folder, threading.Lock()
        self._entries: dict[str, dict[str, Any]] = folder.read(TRACKING) or {}

    def entry(self, name: str) -> Mapping[str, Any]:
        """What is known of a tracker's run."""
        with self._lock:
            return dict(self._entries.get(name, {}))

    def note(self, name: str, unless: threading.Event | None = None, **values: Any) -> None:
        """Add to an entry, and write all; not by a thread that nobody waits for any more."""
        with self._lock:
            if unless is not None and unless.is_set():
                return
            entry = {**self._entries.get(name, {}), **values}
            if entry != self._entries.get(name):
                self._entries[name] = entry
                self.folder.write(TRACKING, self._entries)


@dataclass
class _Log:
    """How far the file was read."""

    path: Path
    told: int
    """The last step that the tracker has, as far as is known before it is asked."""
    offset: int = 0
    """Bytes, up to the line after the last one that it has."""

    def next(self) -> tuple[list[Line], int]:
        """Some whole lines that it has not, and the offset after them."""
        if not self.path.is_file():
            return [], self.offset
        offset, lines = self.offset, list[Line]()
        with self.path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                if not raw.endswith(b"\n") or len(lines) == LINES_AT_ONCE:
                    break
                offset += len(raw)
                line = json.loads(raw)
                if line["step"] > self.told:
                    lines.append(line)
        return lines, offset


@dataclass
class _Follower:
    """Tells one tracker."""

    name: str
    tracker: Tracker
    recipe: Recipe
    kept: _Kept
    progress: Progress
    patience: float
    figures: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder = self.kept.folder
        self._subject = Subject(folder.title, folder.path.resolve())
        self._log = _Log(folder / LOG, self.kept.entry(self.name).get("told", 0))
        self._session: Session | None = None
        self._trouble: str | None = None
        self._status: Status | None = None
        self._ending = threading.Event()
        self._left = threading.Event()
        """Set when nobody waits for the thread any more, and another may follow the same run."""
        self._complete = False
        self.thread = threading.Thread(target=self._run, name=f"tracking {self.name}", daemon=True)

    def end(self, status: Status) -> None:
        """Tell the rest, and say what could not be told."""
        self._status = status
        self._ending.set()
        self.thread.join(self.patience)
        self._left.set()
        told = self._log.told
        untold = self._untold(told)
        with suppress(StorageError):  # it would take the place of the training's own error, or end one that is done
            self.kept.note(self.name, told=told, untold=untold)
        if untold or not self._complete:
            what = f"{untold:,} steps were lost to it" if untold else "it may not have the end of the run"
            why = self._trouble or ("it takes too long" if self.thread.is_alive() else "its thread has ended")
            self.progress.say(
                f"  tracking.{self.name}: {what}: {why}. {self._log.path} has all of them, and the same command tells "
                "what is missing"
            )

    def _run(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            pause = LOOK_SECONDS if self._try() else min(max(2 * pause, LOOK_SECONDS), LONGEST_PAUSE)
        self._complete = self._try(self._status)

    def _try(self, status: Status | None = None) -> bool:
        """Tell what is new, and with a status all else; False where the tracker did not take it."""
        try:
            with _foreign():
                session = self._session or self._open()
                told = self._tell(session)
                if status is not None:
                    if self.figures or self.words:
                        self._go_on()
                        session.conclude(self._log.told, self.figures, self.words)
                    self._go_on()
                    session.close(status)
        except LuthierError as error:
            self._give_up(error)
            return False
        if self._trouble is not None:
            self.progress.say(f"  tracking.{self.name}: it answers again, and was told {told:,} steps")
            self._trouble = None
        return True

    def _go_on(self) -> None:
        """Asked before each call of a session: what comes late would be told twice.

        Raises:
            TrackingError: nobody waits any more.
        """
        if self._left.is_set():
            raise TrackingError("it takes too long")

    def _open(self) -> Session:
        self._go_on()
        entry = self.kept.entry(self.name)
        self._session = session = self.tracker.open(self._subject, entry.get("id"))
        self.kept.note(self.name, self._left, id=session.id, place=session.place)
        if not entry.get("described"):
            self._go_on()
            session.describe(described(self.recipe, self.kept.folder))
            self.kept.note(self.name, self._left, described=True)
        self._go_on()
        self._log.told, self._log.offset = session.last_step(), 0
        if self._trouble is None and not self._ending.is_set():
            self.progress.say(f"  tracking.{self.name}: {session.place}")
        return session

    def _tell(self, session: Session) -> int:
        told = 0
        while True:
            lines, offset = self._log.next()
            if lines:
                self._go_on()
                session.tell(lines)
                self._log.told = int(lines[-1]["step"])
                told += len(lines)
            if offset == self._log.offset:
                return told
            self._log.offset = offset

    def _give_up(self, error: LuthierError) -> None:
        """Say once that it does not answer; the run is opened anew at the next try."""
        if self._trouble is None and not self._ending.is_set():
            self.progress.say(f"  tracking.{self.name} does not answer, and the training goes on: {error}")
        self._trouble = str(error)
        session, self._session = self._session, None
        if session is None or self._left.is_set():
            return
        with suppress(TrackingError), _foreign():  # the same trouble once more
            self._log.told = session.confirmed(self._log.told)
        with suppress(TrackingError), _foreign():
            session.drop()

    def _untold(self, told: int) -> int:
        if not self._log.path.is_file():
            return 0
        whole = [line for line in self._log.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return sum(json.loads(line)["step"] > told for line in whole)


@contextmanager
def _foreign() -> Iterator[None]:
    """Whatever a tracker's library raises, as TrackingError: foreign code may not end what follows a training."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        raise TrackingError(f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which tracker an error speaks."""
    try:
        yield
    except TrackingError as error:
        raise TrackingError(f"tracking.{name}: {error}") from error


def described(recipe: Recipe, folder: RunFolder) -> dict[str, Plain]:
    """The effective settings by dotted name, and nothing that others should not see.

    Where the trackers are is no setting of the run. Of a path outside of the recipe's folder, only the last part is
    told. What looks like a secret is hidden, though no recipe should hold one.
    """
    home = (folder.read("manifest.json") or {}).get("recipe_folder", "")
    values = {name: value for name, value in recipe.dump().items() if name != "tracking"}
    return {name: _shown(value, home) for name, value in _flat(values)}


def _flat(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        elif value is not None:
            yield f"{at}{key}", value


def _shown(value: Any, home: str) -> Plain:
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        return json.dumps([_shown(item, home) for item in value], ensure_ascii=False)
    if secrets(value):
        return HIDDEN
    if value.startswith("/"):
        return value[len(home) + 1 :] if home and value.startswith(f"{home}/") else Path(value).name
    return value
