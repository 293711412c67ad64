"""Sends what was not answered yet to an endpoint, several requests at once, within a limit, and keeps what comes."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from luthier.errors import EvaluationError
from luthier.evaluation.systems._endpoint import Endpoint, Stopped
from luthier.evaluation.systems._responses import Purse, Responses, Usage
from luthier.evaluation.systems._wire import first_logprobs, usage_of
from luthier.examples import Conversation, Message


@dataclass(frozen=True)
class Request:
    """One question to an endpoint."""

    key: str
    row: Conversation
    prompt: tuple[Message, ...]
    content: bytes
    most: Usage
    """What it can cost at most."""


class Asker:
    """Sends requests, several at once.

    Args:
        endpoint: who is asked; closed by whoever opened it.
        kept: where answers, and what attempts without one may have cost, are put as soon as they are known.
        purse: what may be spent.
    """

    def __init__(self, endpoint: Endpoint, kept: Responses, purse: Purse) -> None:
        self._endpoint, self._kept, self._purse = endpoint, kept, purse
        self._counting = threading.Lock()
        self.attempts = 0
        """Requests that were sent, those that failed included."""

    def ask_all(self, requests: Sequence[Request], at_once: int, on_progress: Callable[[int, int], None]) -> None:
        """Get every answer; the first error that no further attempt mends ends it.

        Raises:
            EvaluationError: the endpoint refuses or goes on failing, or the limit would be passed; with the row.
            StorageError: an answer cannot be kept.
        """
        with ThreadPoolExecutor(at_once, "remote") as pool:
            futures = [pool.submit(self._ask, request) for request in requests]
            try:
                for done, future in enumerate(as_completed(futures)):
                    on_progress(done, len(requests))
                    future.result()
            except Stopped:
                self._stop(futures)
                raise _first_error(futures) from None
            except BaseException:
                self._stop(futures)
                raise

    def _stop(self, futures: Sequence[Future[None]]) -> None:
        """What is under way ends and is kept; what waits is given up."""
        self._endpoint.stopping.set()
        for future in futures:
            future.cancel()

    def _ask(self, request: Request) -> None:
        if self._endpoint.stopping.is_set():
            raise Stopped
        try:
            self.ask(request)
        except EvaluationError as error:
            self._endpoint.stopping.set()
            raise EvaluationError(f"row {request.row.id} ({request.row.where}): {error}") from None

    def ask(self, request: Request) -> None:
        """Get one answer.

        Raises:
            EvaluationError: the endpoint refuses or goes on failing, or the limit would be passed.
            StorageError: an answer cannot be kept.
            Stopped: the endpoint's `stopping` was set while it waited.
        """
        with self._purse.paying(request.most) as payment:

            def on_failure(charged: bool) -> None:
                self._count()
                payment.settle(request.most if charged else None)
                if charged:
                    most = [request.most.prompt, request.most.completion]
                    self._kept.add({"key": request.key, "message": None, "charged": most})

            started = time.perf_counter()
            values = self._endpoint.ask(request.content, on_failure, payment.reserve)
            self._count()
            usage = usage_of(values)
            charged = usage or request.most
            payment.settle(charged)
            choice = values["choices"][0]
            logprobs = first_logprobs(choice.get("logprobs"))
            self._kept.add(
                {
                    "key": request.key,
                    "message": {name: choice["message"].get(name) for name in ("content", "tool_calls", "refusal")},
                    "finish_reason": choice.get("finish_reason"),
                    "model": str(values.get("model", "")),
                    "usage": usage is not None,
                    "charged": [charged.prompt, charged.completion],
                    "seconds": time.perf_counter() - started,
                    **({"logprobs": logprobs} if logprobs else {}),
                }
            )

    def _count(self) -> None:
        with self._counting:
            self.attempts += 1


def _first_error(futures: Sequence[Future[None]]) -> BaseException:
    """Why the others were stopped."""
    found = (future.exception() for future in futures if not future.cancelled())
    return next(error for error in found if error is not None and not isinstance(error, Stopped))
