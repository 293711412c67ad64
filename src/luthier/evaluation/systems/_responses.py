"""What an endpoint answered, kept in a file beside the run, and a purse that cannot be overdrawn.

One line of JSON an answer, written as soon as it is there, so that nothing is asked and paid for twice: an evaluation
that was stopped goes on, and a second one costs nothing. A line that a killed process left unfinished is passed over.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import EvaluationError, StorageError

MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def usd(self, prices: "Prices") -> float:
        """What they cost."""
        return (self.prompt * prices.input + self.completion * prices.output) / MILLION


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens."""

    input: float
    output: float


class Responses:
    """Answers by the digest of their request; may be used by several threads."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._kept: dict[str, dict[str, Any]] = {}
        self._paid: dict[str, list[Usage]] = {}
        for values in self._read():
            self._take(values)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The answer to a request, or None if it was never given."""
        return self._kept.get(key)

    @property
    def paid(self) -> tuple[Usage, ...]:
        """Every request that was or may have been charged for: its tokens, or the most they can be if nobody told."""
        return tuple(usage for of_request in self._paid.values() for usage in of_request)

    def paid_for(self, key: str) -> Sequence[Usage]:
        """The same for one request: its answer, and attempts before it."""
        return self._paid.get(key, ())

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep an answer (`key`, `message`, `charged`, ...); with `message` None it is one that did not arrive.

        Raises:
            StorageError: it cannot be written.
        """
        line = json.dumps(values, allow_nan=False).encode() + b"\n"  # ASCII: half a surrogate pair is kept, too
        with self._lock:
            self._take(values)
            if self.path is None:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab+") as file:
                    if file.tell() and self._is_torn(file):
                        file.write(b"\n")
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise StorageError(f"{self.path}: an answer cannot be kept: {error.strerror or error}") from None

    @staticmethod
    def _is_torn(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) != b"\n")

    def _take(self, values: Mapping[str, Any]) -> None:
        self._paid.setdefault(values["key"], []).append(Usage(*values["charged"]))
        if values["message"] is not None:
            self._kept[values["key"]] = dict(values)

    def _read(self) -> Iterator[dict[str, Any]]:
        if self.path is None or not self.path.is_file():
            return
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        for line in lines:
            try:
                values = json.loads(line)
                Usage(*values["charged"])
                values["key"], values["message"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            yield values


class Purse:
    """Lets a request go only if the limit holds however long its answer becomes; may be used by several threads."""

    def __init__(self, prices: Prices | None, limit_usd: float | None, spent_usd: float) -> None:
        self._prices, self._limit = prices, limit_usd
        self._spent = spent_usd
        self._set_aside: list[float] = []
        self._changed = threading.Condition()

    @contextmanager
    def paying(self, most: Usage) -> Iterator["Payment"]:
        """A payment of at most `most`; what it really was is settled in the block, and is nothing otherwise.

        Raises:
            EvaluationError: the limit could be passed, and nothing that is under way can change that.
        """
        payment = Payment(self, most.usd(self._prices) if self._prices else 0.0)
        payment.reserve()
        try:
            yield payment
        finally:
            payment.settle(None)

    def reserve(self, price: float) -> None:
        """Set a price aside, after those under way where the limit is near; raises as `paying`."""
        with self._changed:
            while self._limit is not None and self._spent + sum(self._set_aside) + price > self._limit:
                if not self._set_aside:
                    raise EvaluationError(
                        f"spend_limit_usd = {self._limit:g}: {self._spent:.6g} USD are spent, and the next request "
                        f"could cost up to {price:.6g} USD; what was answered is kept, so a higher limit goes on from "
                        "here"
                    )
                self._changed.wait()
            self._set_aside.append(price)

    def settle(self, price: float, actual: Usage | None) -> None:
        """Put back what was set aside, and take what was charged; None: nothing was."""
        with self._changed:
            self._set_aside.remove(price)
            self._spent += actual.usd(self._prices) if actual is not None and self._prices else 0.0
            self._changed.notify_all()


class Payment:
    """The money of one request, attempt by attempt."""

    def __init__(self, purse: Purse, price: float) -> None:
        self._purse, self._price, self._is_open = purse, price, False

    def reserve(self) -> None:
        """Set it aside before an attempt; raises as `Purse.paying`."""
        self._purse.reserve(self._price)
        self._is_open = True

    def settle(self, actual: Usage | None) -> None:
        """The attempt is over and cost this; None: nothing. Once for each `reserve`."""
        if self._is_open:
            self._is_open = False
            self._purse.settle(self._price, actual)
