"""What the HTTP side knows of the models: their names, their prompts, a bounded queue, and completions as they come."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any

from luthier.errors import ServeError, TemplateError
from luthier.examples import Message
from luthier.serve.api_error import ApiError, too_many
from luthier.serve.lane import Limits
from luthier.serve.models import ServedModel
from luthier.serve.work import Completion, Delta, Done, Event, Failed, Whole, Work
from luthier.serve.worker import Worker

MAX_PROMPTS = 16
"""Prompts that one request to /v1/completions may carry."""


class Backend:
    """Models in this process, computed by one worker thread."""

    def __init__(self, models: Sequence[ServedModel], limits: Limits | None = None, queue: int = 64) -> None:
        names = [served.name for served in models]
        if len(set(names)) != len(names):
            raise ServeError(f"two models have the same name: {', '.join(names)}; rename the run's folder")
        self._models = {served.name: served for served in models}
        limits = limits or Limits()
        self._capacity = queue
        # every HTTP request holds one seat, but a list of prompts is one piece of work each
        self._worker = Worker(self._models, limits, capacity=queue * MAX_PROMPTS)
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="luthier-render")
        self.seats_taken = 0

    def start(self) -> None:
        """Begin to work."""
        self._worker.start()

    def stop(self) -> None:
        """End the worker; requests still in it fail."""
        self._worker.stop()
        self._renderer.shutdown(cancel_futures=True)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What can be asked for, by name."""
        return self._models

    @property
    def healthy(self) -> bool:
        """Whether the worker lives."""
        return self._worker.healthy

    @contextmanager
    def seat(self) -> Iterator[None]:
        """A place in the queue; held from before a prompt is rendered until the last token is sent.

        Raises:
            ApiError: 429 if none is left.
        """
        if self.seats_taken >= self._capacity:
            raise too_many()
        self.seats_taken += 1
        try:
            yield
        finally:
            self.seats_taken -= 1

    async def prompt_ids(
        self, model: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """The prompt of a chat, rendered off the event loop.

        Raises:
            ApiError: 400 if the template cannot render these messages.
        """
        template = self._models[model].template
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._renderer, template.prompt_ids, messages, tools)
        except TemplateError as error:
            raise ApiError(
                f"The messages cannot be rendered: {error}", param="messages", code="template_error"
            ) from None

    async def text_ids(self, model: str, text: str) -> list[int]:
        """The prompt of a plain text: a training document without its end.

        Raises:
            ApiError: 400 if the text cannot be encoded.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._renderer, self._models[model].template.text_ids, text)
        except TemplateError as error:
            raise ApiError(f"The prompt cannot be encoded: {error}", param="prompt", code="template_error") from None

    async def stream(self, work: Work) -> AsyncGenerator[Event, None]:
        """Events as they come; closing the iterator cancels the work.

        Raises:
            ApiError: the work was refused or failed.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        request = self._worker.submit(work, deliver)
        left = work.n
        try:
            while left:
                event = await events.get()
                if isinstance(event, Failed):
                    raise event.error
                left -= isinstance(event, Done)
                yield event
        finally:
            request.cancel()

    async def complete(self, work: Work) -> list[Completion]:
        """All `n` completions, in order.

        Raises:
            ApiError: as `stream`.
        """
        wholes = [Whole() for _ in range(work.n)]
        done: dict[int, Completion] = {}
        async with aclosing(self.stream(work)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    wholes[event.index].add(event)
                elif isinstance(event, Done):
                    done[event.index] = wholes[event.index].finish(event)
        return [done[i] for i in range(work.n)]
