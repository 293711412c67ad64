"""Server-sent events: a completion as it is generated, in OpenAI's chunks.

The status line waits for the first event, so that a request that fails before its first token gets a real status; a
failure after that is an error event, which the `openai` client raises. When the client hangs up, its work is cancelled.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from luthier.serve.access_log import note_tokens
from luthier.serve.api_error import ApiError
from luthier.serve.backend import Backend
from luthier.serve.body import hang_up
from luthier.serve.call_stream import CallReader, Piece
from luthier.serve.chat import ChatRequest
from luthier.serve.completion import CompletionRequest
from luthier.serve.ids import new_id
from luthier.serve.replies import (
    Json,
    chat_logprobs,
    completion_logprobs,
    head,
    reply_of,
    tool_calls_json,
    usage,
)
from luthier.serve.served import Served
from luthier.serve.work import Delta, Done, Event, TokenScore, Whole, Work


class EventStream(Response):
    """Sends what `events` yields; closes `held`, the place in the queue, when all is sent or the client is gone.

    The last event has no choices and the token counts: they go to the log, and to the client if `with_usage`.
    """

    def __init__(self, events: AsyncGenerator[Json, None], held: ExitStack, with_usage: bool) -> None:
        self._events, self._held, self._with_usage = events, held, with_usage
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client hangs up."""
        pump = asyncio.ensure_future(self._pump(scope, receive, send))
        watch = asyncio.ensure_future(hang_up(receive))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            pump.cancel()
            watch.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)
            await self._events.aclose()
            self._held.close()

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async for event in self._events:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                note_tokens(scope, event.get("usage"))
                if not event["choices"] and not self._with_usage:
                    continue
                await send({"type": "http.response.body", "body": _frame(event), "more_body": True})
        except ApiError as error:
            if not started:
                await JSONResponse(error.body(), error.status, headers=error.headers)(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": _frame(error.body()), "more_body": False})
            return
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _frame(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def chat_events(backend: Backend, served: Served, asked: ChatRequest, work: Work) -> AsyncGenerator[Json, None]:
    """The chunks of a chat completion."""
    chunks = _ChatChunks(served, asked, work)
    async with aclosing(backend.stream(work)) as events:
        async for event in events:
            for chunk in chunks.of(event):
                yield chunk
    yield {**chunks.base, "choices": [], "usage": usage(len(work.ids), chunks.generated)}


class _ChatChunks:
    """Events of one request as chunks.

    If tools were offered, text is sent as it comes and a call when it is whole: its id and name, then its arguments.
    Where calls are no visible text, or a stop text may yet make text of them, a completion is sent when it is whole.
    """

    def __init__(self, served: Served, asked: ChatRequest, work: Work) -> None:
        self.base = head("chat.completion.chunk", new_id("chatcmpl"), int(time.time()), served)
        self.generated = 0
        self._served, self._usage, self._n = served, asked.common.include_usage, work.n
        calls = served.template.calls
        reads = bool(asked.tools) and calls is not None and calls.is_visible and not work.stop
        self._readers = [CallReader(calls.form) for _ in range(work.n)] if calls is not None and reads else []
        self._held = [Whole() for _ in range(work.n)] if asked.tools and not reads else []
        self._unsent: list[list[TokenScore]] = [[] for _ in range(work.n)]
        self._calls = [0] * work.n
        self._greeted = False

    def of(self, event: Event) -> Iterator[Json]:
        """The chunks that an event makes; the first one brings the role of every choice."""
        if not self._greeted:
            self._greeted = True
            for index in range(self._n):
                yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        if isinstance(event, Delta):
            if self._held:
                self._held[event.index].add(event)
            elif self._readers:
                self._unsent[event.index].extend(event.tokens)
                yield from self._pieces(event.index, self._readers[event.index].add(event.text))
            else:
                yield self._chunk(event.index, {"content": event.text}, tokens=event.tokens)
        elif isinstance(event, Done):
            self.generated += event.generated_tokens
            yield from self._end(event)

    def _end(self, done: Done) -> Iterator[Json]:
        reason: str = done.reason
        if self._held:
            completion = self._held[done.index].finish(done)
            reply, reason = reply_of(completion, self._served, True)
            self._unsent[done.index].extend(completion.tokens)
            text = [reply.content] if reply.content else []
            yield from self._pieces(done.index, [*text, *reply.tool_calls])
        elif self._readers:
            yield from self._pieces(done.index, self._readers[done.index].flush())
            reason = "tool_calls" if self._calls[done.index] and reason == "stop" else reason
        if self._unsent[done.index]:
            yield from self._pieces(done.index, [""])
        yield self._chunk(done.index, {}, reason)

    def _pieces(self, index: int, pieces: Iterable[Piece]) -> Iterator[Json]:
        """Text and calls; the scores of all tokens so far go with the next text."""
        for piece in pieces:
            if isinstance(piece, str):
                tokens, self._unsent[index] = self._unsent[index], []
                yield self._chunk(index, {"content": piece}, tokens=tokens)
                continue
            (call,) = tool_calls_json([piece])
            number, self._calls[index] = self._calls[index], self._calls[index] + 1
            arguments = {"arguments": call["function"]["arguments"]}
            call["function"] = {**call["function"], "arguments": ""}
            yield self._chunk(index, {"tool_calls": [{"index": number, **call}]})
            yield self._chunk(index, {"tool_calls": [{"index": number, "function": arguments}]})

    def _chunk(self, index: int, delta: Json, reason: str | None = None, tokens: Sequence[TokenScore] = ()) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": chat_logprobs(tokens or None), "finish_reason": reason}
        return _with_usage({**self.base, "choices": [choice]}, self._usage)


async def completion_events(
    backend: Backend, served: Served, asked: CompletionRequest, works: Sequence[Work]
) -> AsyncGenerator[Json, None]:
    """The chunks of a plain completion; the choices of the k-th prompt follow those of the one before."""
    base = head("text_completion", new_id("cmpl"), int(time.time()), served)
    scored = asked.common.sampling.top_logprobs is not None
    lengths: dict[int, int] = {}
    generated = 0
    async with aclosing(_merged(backend, works)) as events:
        async for k, event in events:
            if not isinstance(event, Delta | Done):
                continue
            index = k * works[k].n + event.index
            choice: Json = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
            if isinstance(event, Delta):
                offset = lengths.get(index, 0)
                lengths[index] = offset + len(event.text)
                choice |= {
                    "text": event.text,
                    "logprobs": completion_logprobs(event.tokens if scored else None, offset),
                }
            else:
                generated += event.generated_tokens
                choice["finish_reason"] = event.reason
            yield _with_usage({**base, "choices": [choice]}, asked.common.include_usage)
    yield {**base, "choices": [], "usage": usage(sum(len(work.ids) for work in works), generated)}


def _with_usage(chunk: Json, include: bool) -> Json:
    """When usage was asked for, every chunk but the last has `"usage": null`, as in OpenAI's streams."""
    return {**chunk, "usage": None} if include else chunk


async def _merged(backend: Backend, works: Sequence[Work]) -> AsyncGenerator[tuple[int, Event], None]:
    """Events of several pieces of work as they come, each with the number of its work."""
    events: asyncio.Queue[tuple[int, Event | ApiError | None]] = asyncio.Queue()

    async def follow(k: int) -> None:
        try:
            async with aclosing(backend.stream(works[k])) as own:
                async for event in own:
                    events.put_nowait((k, event))
        except ApiError as error:
            events.put_nowait((k, error))
        else:
            events.put_nowait((k, None))

    tasks = [asyncio.ensure_future(follow(k)) for k in range(len(works))]
    try:
        left = len(works)
        while left:
            k, event = await events.get()
            if isinstance(event, ApiError):
                raise event
            if event is None:
                left -= 1
            else:
                yield k, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
