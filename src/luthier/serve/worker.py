"""One thread owns the model. Requests reach it through a queue, and their tokens leave it through callbacks.

Between any two tokens it takes in new requests, makes at most one other call (a group of options to score, a model to
add), lets go of cancelled and late ones, computes one block of one waiting prompt of each batch, and then one token for
every running row. So nothing is computed in two threads at once, a long prompt holds nobody up for longer than a block,
and a request that fails takes at most its own batch with it. Models come and go between two tokens, too; one that is
removed first finishes what it was asked.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TypeVar

import torch

from luthier.models.mixed import Mixture
from luthier.models.scorer import require_forest
from luthier.serve.api_error import ApiError, internal, model_not_found, too_many
from luthier.serve.failures import FAILURES, place_of
from luthier.serve.lane import Lane, Request
from luthier.serve.limits import Limits
from luthier.serve.models import ServedModel
from luthier.serve.work import Event, Failed, Work

log = logging.getLogger("luthier.serve")
T = TypeVar("T")


class Worker:
    """Runs the lanes of all served models in a thread of its own."""

    def __init__(self, models: Iterable[ServedModel], limits: Limits, capacity: int) -> None:
        self.capacity = capacity
        self._limits = limits
        self._models: dict[str, ServedModel] = {}
        self._lanes: dict[Mixture, Lane] = {}
        self._inbox: queue.SimpleQueue[Request | Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0
        self._closing = False
        for served in models:
            _require_batches(served)
            self._admit(served)
        self._thread = threading.Thread(target=self._run, name="luthier-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current token; requests that are still there fail. Returns when the thread is over."""
        with self._lock:
            self._closing = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def healthy(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and not self._closing

    def submit(self, work: Work, deliver: Callable[[Event], None]) -> Request:
        """Queue a piece of work; `deliver` is called from the worker's thread, once for each event.

        Raises:
            ApiError: 404 for a model that is not served, 429 if the queue is full, 503 if the worker is closing.
        """
        with self._lock:  # what is put in before the end, or before its model goes, is found there then
            served = self._models.get(work.model)
            if served is None:
                raise model_not_found(work.model, list(self._models))
            request = Request(work, served, deliver, time.monotonic() + work.deadline_seconds)
            if not self.healthy:
                raise _closing()
            if self._open >= self.capacity:
                raise too_many()
            self._open += 1
            self._inbox.put(request)
        return request

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What can be asked for, by name."""
        return self._models

    def add(self, served: ServedModel) -> "Future[None]":
        """Serve one more model; done when requests for it are answered.

        Raises:
            ModelError: its layers cannot be batched.
            ApiError: 503 if the worker is closing. The future raises 409 if there is a model of this name.
        """
        _require_batches(served)
        return self.compute(lambda: self._admit(served))

    def remove(self, name: str) -> "Future[None]":
        """Take no request for a model any more, and let it go when those that it has are answered.

        Raises:
            ApiError: 404 if there is none, 503 if the worker is closing.
        """
        with self._lock:
            served = self._models.get(name)
            if served is None:
                raise model_not_found(name, list(self._models))
            self._models = {other: model for other, model in self._models.items() if other != name}
        lane = self._lanes[served.mixture]
        return self.compute(lambda: lane.dismiss(served))

    def compute(self, call: Callable[[], T]) -> "Future[T]":
        """Call something in the worker's thread, between two tokens; nobody else computes while it does.

        Raises:
            ApiError: 503 if the worker is closing.
        """
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():  # nobody waits for it any more
                return
            try:
                result = call()
            except FAILURES as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if not self.healthy:
                raise _closing()
            self._inbox.put(do)
        return future

    def _admit(self, served: ServedModel) -> None:
        if served.name in self._models:
            raise ApiError(f"There is a model called {served.name!r} already.", status=409, code="model_exists")
        lane = self._lanes.get(served.mixture) or Lane(served, self._limits)
        lane.admit(served)
        self._lanes[served.mixture] = lane
        with self._lock:  # another model may be removed by another thread just now
            self._models = {**self._models, served.name: served}

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._take_in()
                    for lane in self._lanes.values():
                        self._turn(lane)
                    self._lanes = {mixture: lane for mixture, lane in self._lanes.items() if not lane.empty}
        finally:  # also when something that is not in FAILURES ends the thread: nobody may wait for ever
            with self._lock:
                self._closing = True
                self._inbox.put(None)
            self._take_in()
            for lane in self._lanes.values():
                for request in lane.requests():
                    request.send(Failed(_closing()))

    def _take_in(self) -> None:
        """Move new requests to their lanes, up to the first call, which is made; wait if nothing else is to do."""
        wait = not any(lane.busy for lane in self._lanes.values())
        while True:
            try:
                request = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if isinstance(request, Request):
                self._lanes[request.served.mixture].waiting.append(request)
            elif request is not None:
                request()
                if not self._closing:  # one a turn: who waits for it may have the next one here already
                    return

    def _turn(self, lane: Lane) -> None:
        """One block of a prompt and one token for all rows of one lane."""
        before = set(lane.requests())
        lane.drop_lost()
        head = lane.next_prefill()
        if head is not None:
            try:
                lane.prefill(head)
            except FAILURES as error:
                lane.discard(head)
                # a failure while it joined the batch leaves slots without rows: then no row can be trusted
                self._fail(lane, [head] if lane.whole else [head, *lane.running_requests()], error)
        try:
            lane.step()
        except FAILURES as error:
            self._fail(lane, lane.running_requests(), error)
        lane.let_go()
        with self._lock:
            self._open -= len(before - set(lane.requests()))

    def _fail(self, lane: Lane, requests: list[Request], error: BaseException) -> None:
        # its message may quote what a client sent, so the log has the kind of failure and its place only
        kind = type(error).__name__
        names = ",".join(sorted({request.served.name for request in requests}))
        log.error("model=%s requests=%d failed: %s in %s", names, len(requests), kind, place_of(error))
        if not lane.whole or not set(requests).isdisjoint(lane.running_requests()):
            lane.reset()
        for request in requests:
            request.send(Failed(internal()))
            request.cancel()


def _require_batches(served: ServedModel) -> None:
    """Check that rows of this model can be batched: the same layers that can be trained on forests can be.

    Raises:
        ModelError: they cannot.
    """
    require_forest(served.loaded.model)


def _closing() -> ApiError:
    return ApiError("The server is shutting down.", status=503)
