"""One batch: prompts are computed in blocks, then all rows take a token at a time, joining and leaving freely.

Its rows may be of different models, as long as these are adapters of one base (`models/mixed.py`).

A request waits in its lane until there is room for all its completions at their longest, so that memory is bounded
before anything is computed. Everything here runs in the worker's thread.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.models.decode import Slots
from luthier.models.mixed import NO_ADAPTER
from luthier.serve.api_error import deadline_passed
from luthier.serve.constraint import GRAMMARS
from luthier.serve.limits import Limits
from luthier.serve.models import ServedModel
from luthier.serve.prefill import Prefill, PrefixStore, Row
from luthier.serve.sampling import Sampler
from luthier.serve.text import Detokenizer, ReplyText, StopText, TokenText
from luthier.serve.work import Delta, Done, Event, Failed, StopReason, TokenScore, Work


class NonFiniteLogits(RuntimeError):
    """The model answered with NaN or infinity."""


@dataclass(eq=False)
class Request:
    """One piece of work on its way through the worker. `cancelled` may be set by any thread."""

    work: Work
    served: ServedModel
    deliver: Callable[[Event], None]
    deadline: float
    cancelled: bool = False
    prefill: Prefill | None = None

    def cancel(self) -> None:
        """Give the request up; nothing is delivered any more."""
        self.cancelled = True

    def send(self, event: Event) -> None:
        """Deliver an event unless the client is gone."""
        if not self.cancelled:
            self.deliver(event)

    @property
    def longest(self) -> int:
        """Tokens that a row of it may come to hold."""
        return len(self.served.before) + len(self.work.ids) + self.work.max_new_tokens


@dataclass(eq=False)
class Sequence:
    """One completion that is being generated."""

    request: Request
    index: int
    sampler: Sampler
    text: Detokenizer
    stop: StopText
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    """What a lane knows of one model."""

    place: int
    """Of its rows in the mixture."""
    reply: ReplyText
    names: TokenText


class Lane:
    """The requests of the models that share one mixture."""

    def __init__(self, first: ServedModel, limits: Limits) -> None:
        """`first` is any of them; `admit` takes it in."""
        self.limits = limits
        self.waiting: deque[Request] = deque()
        self._mixture, self._device = first.mixture, first.loaded.device
        self._members: dict[ServedModel, _Member] = {}
        self._leaving: set[ServedModel] = set()
        self._prefixes = PrefixStore(limits.block, limits.prefix_tokens)
        self.reset()

    def reset(self) -> None:
        """Forget all rows; for a start, and after a failure that may have left the cache half written."""
        self._slots = Slots(self._mixture.model, self._device)
        self._rows: list[Sequence] = []

    def admit(self, served: ServedModel) -> None:
        """Take in a model of the lane's mixture."""
        tokenizer = served.loaded.tokenizer
        self._members[served] = _Member(served.place(), ReplyText(tokenizer, served.template), TokenText(tokenizer))

    def dismiss(self, served: ServedModel) -> None:
        """Let go of a model as soon as none of its requests is here."""
        self._leaving.add(served)
        self.let_go()

    def let_go(self) -> None:
        """Free what belongs to models that were dismissed and have no request any more."""
        if not self._leaving:
            return
        for served in self._leaving - {request.served for request in self.requests()}:
            self._leaving.discard(served)
            place = self._members.pop(served).place
            if place != NO_ADAPTER:
                self._mixture.take_out(place)
            self._prefixes.forget(served)

    @property
    def empty(self) -> bool:
        """Whether no model is left in it."""
        return not self._members

    @property
    def whole(self) -> bool:
        """Whether every row has its slot; not so when a failure came while a request joined."""
        return len(self._slots) == len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._rows or self.waiting)

    def requests(self) -> list[Request]:
        """All requests in the lane."""
        return list(dict.fromkeys([*(row.request for row in self._rows), *self.waiting]))

    def running_requests(self) -> list[Request]:
        """The requests that have rows in the batch."""
        return list(dict.fromkeys(row.request for row in self._rows))

    def drop_lost(self) -> None:
        """Let go of requests whose client is gone or whose time is up."""
        now = time.monotonic()
        for request in self.requests():
            if not request.cancelled and now >= request.deadline:
                request.send(Failed(deadline_passed(request.work.deadline_seconds)))
                request.cancel()
        self.waiting = deque(r for r in self.waiting if not r.cancelled)
        self._remove([i for i, row in enumerate(self._rows) if row.request.cancelled])

    def discard(self, request: Request) -> None:
        """Take a waiting request out."""
        self.waiting = deque(r for r in self.waiting if r is not request)

    def next_prefill(self) -> Request | None:
        """The request at the head of the lane if there is room for it."""
        if not self.waiting:
            return None
        request = self.waiting[0]
        rows = len(self._rows) + request.work.n
        longest = max([request.longest, *(row.request.longest for row in self._rows)])
        fits = rows <= self.limits.rows and rows * longest <= self.limits.cache_tokens
        return request if fits or not self._rows else None

    def prefill(self, request: Request) -> None:
        """Compute one more block of a waiting request's prompt; after the last one it joins the batch."""
        prefill = request.prefill or Prefill(request.served, request.work.ids, self.limits.block, self._prefixes)
        request.prefill = prefill
        logits_V = prefill.advance()
        if logits_V is None:
            return
        request.prefill = None
        self.discard(request)
        self._join(request, prefill.row(), _finite(logits_V))

    def step(self) -> None:
        """One more token for every row."""
        if not self._rows:
            return
        last_B = torch.tensor([row.ids[-1] for row in self._rows], device=self._device)
        self._mixture.assign([self._members[row.request.served].place for row in self._rows], self._device)
        logits_BV = _finite(self._slots.step(last_B))
        over = [i for i, row in enumerate(self._rows) if not self._take(row, logits_BV[i])]
        self._remove(over)

    def _join(self, request: Request, row: Row, logits_V: Tensor) -> None:
        work, reply = request.work, self._members[request.served].reply
        rows = [
            Sequence(request, i, self._sampler(request, i), Detokenizer(reply), StopText(work.stop))
            for i in range(work.n)
        ]
        rows = [one for one in rows if self._take(one, logits_V)]
        if rows:
            self._slots.insert(row, len(rows))
            self._rows.extend(rows)

    def _sampler(self, request: Request, index: int) -> Sampler:
        held = request.work.held
        constraint = None if held is None else GRAMMARS.constraint(request.served, held)
        return Sampler(request.work.sampling, index, constraint)

    def _take(self, row: Sequence, logits_V: Tensor) -> bool:
        """Choose a row's next token and send what it completes; False if the row is over."""
        work = row.request.work
        token = row.sampler.choose(logits_V)
        row.ids.append(token)
        if token in row.request.served.stop_ids:
            self._finish(row, "stop", len(row.ids) - 1)
            return False
        if work.sampling.top_logprobs is not None:
            row.scores.append(row.sampler.score(logits_V, token, self._members[row.request.served].names))
        text = row.stop.add(row.text.add(token))
        if row.stop.found:
            self._finish(row, "stop", len(row.ids), text)
            return False
        if len(row.ids) == work.max_new_tokens:
            self._finish(row, "length", len(row.ids), text)
            return False
        if text:
            self._send(row, text)
        return True

    def _send(self, row: Sequence, text: str) -> None:
        scores, row.scores = tuple(row.scores), []
        if text or scores:
            row.request.send(Delta(row.index, text, scores))

    def _finish(self, row: Sequence, reason: StopReason, kept: int, text: str = "") -> None:
        """Send what is left of a row, and its end; `kept` tokens of it are the reply."""
        if not row.stop.found:
            text += row.stop.add(row.text.flush())
        cut = row.stop.found  # an unfinished character at the very end cannot complete a stop text, but its flush may
        self._send(row, text if cut else text + row.stop.flush())
        done = Done(row.index, "stop" if cut else reason, tuple(row.ids[:kept]), len(row.ids), cut)
        row.request.send(done)

    def _remove(self, over: list[int]) -> None:
        if not over:
            return
        if len(over) == len(self._rows):
            self.reset()  # slots never shrink; an empty batch is the moment to give their memory back
            return
        self._rows = [self._rows[i] for i in self._slots.drop(over)]


def _finite(logits: Tensor) -> Tensor:
    """The logits in float32 on the CPU, where tokens are chosen.

    Raises:
        NonFiniteLogits: one of them is NaN or infinite.
    """
    # the maximum is NaN or infinite if any logit is NaN or +inf, or if all are -inf
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise NonFiniteLogits("the model's logits are NaN or infinite")
    return logits.float().cpu()
