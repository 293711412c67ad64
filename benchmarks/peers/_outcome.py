"""How every contender reads its job and says what it took. Nothing is imported that a peer may not have."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_job() -> dict[str, Any]:
    """The job named on the command line."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


def read_lines(path: str) -> list[Any]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def tell_steps(
    seconds: Sequence[float], losses: Sequence[float], counts: Sequence[tuple[int, int]], first_step: float
) -> None:
    """Print the outcome of a training; `counts` are tokens and trained-on tokens of each step."""
    outcome = {
        "step_seconds": list(seconds),
        "losses": list(losses),
        "tokens": [tokens for tokens, _ in counts],
        "trained": [trained for _, trained in counts],
        "first_step": first_step,
    }
    print(f"\n{json.dumps(outcome)}", flush=True)


class Once:
    """The clock of work that is one piece: everything before `with` is set-up."""

    def __init__(self, started: float) -> None:
        self.ready = time.time() - started

    def __enter__(self) -> "Once":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        self.seconds = time.perf_counter() - self._start

    def tell(self, tokens: int, written: int, checked: float) -> None:
        """Print the outcome: tokens in all, those written or scored, and the number that must agree."""
        tell_steps([self.ready, self.seconds], [checked], [(0, 0), (tokens, written)], self.ready)
