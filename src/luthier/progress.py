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


class Terminal:
    """One moving line on a terminal, a line every few seconds elsewhere, with the time to finish of the whole run.

    `plan` is a guess of the seconds of each stage. What is left is the present stage's own pace, plus the plan of the
    stages to come, scaled by how the finished ones compared with their plan.
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
        self._started = self._shown = 0.0

    def say(self, text: str) -> None:
        """Print a line above the moving one."""
        self._clear()
        print(text, file=self._out, flush=True)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Time a stage and show it."""
        self._name, self._title, self._started, self._shown = name, title, self._clock(), float("-inf")
        self.update(0, 1)
        try:
            yield
        finally:
            self.seconds[name] = self._clock() - self._started
            self._clear()
        self.say(f"  {title}: {duration(self.seconds[name])}")

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show the share done and the time to finish, at most ten times a second (every 10 s off a terminal)."""
        now = self._clock()
        if now - self._shown < (0.1 if self._live else 10.0):
            return
        self._shown = now
        share = min(done / total, 1.0) if total else 0.0
        left = self._left(share, now - self._started)
        text = (
            f"  {self._title} {share:4.0%}"
            + (f"  {note}" if note else "")
            + (f"  about {duration(left)} left" if left else "")
        )
        if self._live:
            self._out.write("\r\x1b[2K" + text[:160])
            self._out.flush()
        elif share:
            print(text, file=self._out, flush=True)

    def _left(self, share: float, elapsed: float) -> float:
        planned = self.plan.get(self._name, 0.0)
        here = elapsed * (1 - share) / share if share > 0.02 else max(planned - elapsed, 0.0)
        done = [name for name in self.seconds if self.plan.get(name)]
        spent, guessed = sum(self.seconds[n] for n in done), sum(self.plan[n] for n in done)
        pace = spent / guessed if guessed > 5 else 1.0
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
