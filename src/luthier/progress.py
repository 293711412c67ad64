"""How a long run tells where it is. Stages speak to this; the command line prints it, a server can store it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a stage may say."""

    def say(self, text: str) -> None:
        """A line that stays."""

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """A part of the run; `name` is its key in a plan of seconds, `title` is shown."""
        yield

    def update(self, done: float, total: float, note: str = "") -> None:
        """How much of the present stage is done."""

    def resume(self, done: float, total: float) -> None:
        """How much of the present stage was done by an earlier process."""


class Silent:
    """Says nothing; for tests and for callers that only want the result."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Nothing."""
        yield

    def update(self, done: float, total: float, note: str = "") -> None:
        """Nothing."""

    def resume(self, done: float, total: float) -> None:
        """Nothing."""


class Within:
    """A part of a longer run that has stages of the same names: `what` stands before each title."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what

    def say(self, text: str) -> None:
        """As it is."""
        self._progress.say(text)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """A stage with a name and a title of its own."""
        with self._progress.stage(f"{self._what}: {name}", f"{self._what}: {title}"):
            yield

    def update(self, done: float, total: float, note: str = "") -> None:
        """As it is."""
        self._progress.update(done, total, note)

    def resume(self, done: float, total: float) -> None:
        """As it is."""
        self._progress.resume(done, total)


DOUBT_SECONDS = 300.0
"""How much must have been seen before the plan is believed to be off: a short stage says little about a long one."""


class Terminal:
    """One moving line on a terminal, a line every few seconds elsewhere, with the time to finish of the whole run.

    `plan` is a guess of the seconds of each stage. What is left is the present stage's own pace, or its plan where that
    is longer since it has several parts, plus the plan of the stages to come; plans are scaled by how the finished
    stages, and a present one that is over its time, compared with theirs.
    """

    def __init__(
        self,
        plan: dict[str, float] | None = None,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = dict(plan or {})
        self.seconds: dict[str, float] = {}
        self._out, self._clock = out or sys.stderr, clock
        self._live = self._out.isatty()
        self._name, self._title = "", ""
        self._share = 0.0
        self._from = 0.0, 0.0  # share done and time from which on the pace of this stage's present part is counted
        self._planned = 0.0  # seconds of this stage, without what an earlier process did of it
        self._started = self._shown = 0.0

    def say(self, text: str) -> None:
        """Print a line above the moving one."""
        self._clear()
        print(text, file=self._out, flush=True)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Time a stage and show it."""
        self._name, self._title, self._started, self._shown = name, title, self._clock(), float("-inf")
        self.resume(0, 1)
        self._show("")
        try:
            yield
        finally:
            self.seconds[name] = self._clock() - self._started
            self._clear()
        self.say(f"  {title}: {duration(self.seconds[name])}")

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show the share done and the time to finish, at most ten times a second (every 10 s off a terminal)."""
        share = min(done / total, 1.0) if total else 0.0
        if share < self._share:  # the next of several parts of this stage began
            self._from = 0.0, self._clock()
        self._share = share
        self._show(note)

    def resume(self, done: float, total: float) -> None:
        """This much of the present stage was done before; it says nothing about the pace."""
        self._share = min(done / total, 1.0) if total else 0.0
        self._from = self._share, self._clock()
        self._planned = self.plan.get(self._name, 0.0) * (1 - self._share)

    def _show(self, note: str) -> None:
        now = self._clock()
        if now - self._shown < (0.1 if self._live else 10.0):
            return
        self._shown = now
        left = self._left(now)
        text = f"  {self._title} {self._share:4.0%}" + (f"  {note}" if note else "")
        text += f"  about {duration(left)} left" if left else ""
        if self._live:
            self._out.write("\r\x1b[2K" + text[:160])
            self._out.flush()
        elif self._share:
            print(text, file=self._out, flush=True)

    def _left(self, now: float) -> float:
        done, elapsed = [name for name in self.seconds if self.plan.get(name)], now - self._started
        spent, guessed = sum(self.seconds[n] for n in done), sum(self.plan[n] for n in done)
        if elapsed > self._planned > 0:  # it takes this long at least
            spent, guessed = spent + elapsed, guessed + self._planned
        pace = (spent + DOUBT_SECONDS) / (guessed + DOUBT_SECONDS)
        here = max(self._planned * pace - elapsed, 0.0)
        begun, since = self._from
        if self._share - begun > 0.02:
            here = max(here, (now - since) * (1 - self._share) / (self._share - begun))
        coming = sum(s for name, s in self.plan.items() if name not in self.seconds and name != self._name)
        return here + coming * pace

    def _clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[2K")
            self._out.flush()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
