"""What the HTTP side knows of the models: their names, their prompts, a bounded queue, and completions as they come."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

from luthier.data.source import micro_batches
from luthier.errors import EvaluationError, LuthierError, ServeError, TemplateError
from luthier.evaluation.calibration import Threshold
from luthier.evaluation.rewards import Judgement
from luthier.evaluation.said import Said
from luthier.examples import Conversation, Message, Row
from luthier.serve.api_error import ApiError, deadline_passed, model_not_found, too_many
from luthier.serve.choices import GROUP_TOKENS, Choices, Reading, grouped, score
from luthier.serve.classification import ClassifyRequest
from luthier.serve.decision import DecisionRequest
from luthier.serve.embedding import EmbeddingModel
from luthier.serve.limits import Limits
from luthier.serve.models import ServedModel
from luthier.serve.rerank import RerankModel
from luthier.serve.served import Computes, Served
from luthier.serve.work import MAX_PROMPTS, Completion, Delta, Done, Event, Failed, Whole, Work
from luthier.serve.worker import Worker

log = logging.getLogger("luthier.serve")
MAX_MODELS = 512


class Registry:
    """Adapters that may be added by their names while the server runs; this one has none."""

    def names(self) -> Collection[str]:
        """What is registered now."""
        return ()

    def open(self, name: str) -> ServedModel:
        """One of them, ready to be served; called in a thread of its own.

        Raises:
            LuthierError: it cannot be served.
        """
        raise NotImplementedError(name)


class Backend:
    """Models in this process, computed by one worker thread."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        limits: Limits | None = None,
        queue: int = 64,
        registry: "Registry | None" = None,
        embedders: Sequence[EmbeddingModel] = (),
        worker: Computes | None = None,
        rerankers: Sequence[RerankModel] = (),
    ) -> None:
        """`worker`: what computes instead of our own engine, and has the models."""
        names = [
            *(served.name for served in models),
            *(worker.models if worker else ()),
            *(embedder.name for embedder in embedders),
            *(reranker.name for reranker in rerankers),
        ]
        if len(set(names)) != len(names):
            raise ServeError(f"two models have the same name: {', '.join(names)}; rename the run's folder")
        self.embedders = {embedder.name: embedder for embedder in embedders}
        self.rerankers = {reranker.name: reranker for reranker in rerankers}
        self._capacity = queue
        self._registry = registry or Registry()
        # every HTTP request holds one seat, but a list of prompts is one piece of work each
        self._worker: Computes = worker or Worker(models, limits or Limits(), capacity=queue * MAX_PROMPTS)
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="luthier-render")
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="luthier-open")
        self.seats_taken = 0

    def start(self) -> None:
        """Begin to work."""
        self._worker.start()

    def stop(self) -> None:
        """End the worker; requests still in it fail."""
        self._worker.stop()
        self._renderer.shutdown(cancel_futures=True)
        self._opener.shutdown(cancel_futures=True)
        for embedder in self.embedders.values():
            embedder.stop()
        for reranker in self.rerankers.values():
            reranker.stop()

    @property
    def models(self) -> Mapping[str, Served]:
        """What can be asked for, by name."""
        return self._worker.models

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of what reads and does not write."""
        return (*self.embedders, *self.rerankers)

    def registered(self) -> list[str]:
        """Names that `add` takes."""
        return sorted(self._registry.names())

    async def add(self, name: str) -> ServedModel:
        """Serve a registered adapter, too; it is opened off the event loop and while others are computed.

        Raises:
            ApiError: 404 if it is not registered, 409 if it is served already or too many are, 422 if it cannot be
                opened.
        """
        self._require_registered(name)
        if name in (*self.models, *self.encoders):
            raise ApiError(f"{name!r} is served already.", status=409, code="model_exists")
        if len(self.models) >= MAX_MODELS:
            raise ApiError(f"{MAX_MODELS} models are served already; remove one first.", status=409, code="too_many")
        loop = asyncio.get_running_loop()
        try:
            served = await loop.run_in_executor(self._opener, self._registry.open, name)
            await asyncio.wrap_future(self._worker.add(served))
        except ApiError:
            raise
        except (LuthierError, OSError) as error:  # its message names files, which the operator alone may read
            log.error("adapter %s cannot be served: %s", name, error)
            raise ApiError(
                f"{name!r} cannot be served beside the others; the server's log says why.", status=422, code="unusable"
            ) from None
        return served

    async def remove(self, name: str) -> None:
        """Stop to serve a registered adapter; what it was asked before is answered.

        Raises:
            ApiError: 404 if it is not registered or not served.
        """
        self._require_registered(name)
        await asyncio.wrap_future(self._worker.remove(name))

    def _require_registered(self, name: str) -> None:
        if name not in self._registry.names():
            shown = name if len(name) <= 100 else name[:100] + "..."
            raise ApiError(
                f"No adapter {shown!r} is registered.", status=404, param="name", code="adapter_not_registered"
            )

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
        template = self._served(model).template
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
            return await loop.run_in_executor(self._renderer, self._served(model).template.text_ids, text)
        except TemplateError as error:
            raise ApiError(f"The prompt cannot be encoded: {error}", param="prompt", code="template_error") from None

    async def choices(self, model: str, asked: DecisionRequest) -> list[Choices]:
        """The replies of each question as tokens, made off the event loop.

        Raises:
            ApiError: 400 if the template cannot render these messages, or renders two replies alike, or one
                with its prompt does not fit in the context.
        """
        served = self._scored(model)
        loop = asyncio.get_running_loop()
        found = []
        try:
            for question in asked.questions:
                reading = Reading(served, asked.asked(question))
                for text in question.replies:  # chats are rendered between two, and who gives up ends it there
                    await loop.run_in_executor(self._renderer, reading.add, text)
                found.append(reading.choices())
        except TemplateError as error:
            raise ApiError(f"The input cannot be rendered: {error}", param="input", code="template_error") from None
        return found

    async def score(self, model: str, asked: Sequence[Choices]) -> list[list[float]]:
        """Log-probability of each reply of each question; between two groups others are computed.

        Raises:
            ApiError: 503 if the worker is closing.
        """
        served, found = self._scored(model), []
        for group in grouped(asked):
            found += await asyncio.wrap_future(self._worker.compute(partial(score, served, group)))
        return found

    async def judge(self, model: str, conversation: Conversation) -> tuple[Judgement, int]:
        """What a reward model says of a chat's last message, and the tokens read for it.

        Raises:
            ApiError: 400 if the template cannot render these messages, or they do not fit in the context; 503 if the
                worker is closing.
        """
        judge = self._scored(model).judge
        assert judge is not None  # `require` has refused others
        loop = asyncio.get_running_loop()
        try:
            row = await loop.run_in_executor(self._renderer, judge.row, conversation)
        except TemplateError as error:
            raise ApiError(
                f"The messages cannot be rendered: {error}", param="messages", code="template_error"
            ) from None
        except EvaluationError as error:
            raise ApiError(f"The reply cannot be scored: {error}", param="messages", code="invalid_value") from None
        (judged,) = await asyncio.wrap_future(self._worker.compute(partial(judge.read, [row])))
        return judged, len(row.ids)

    async def classify(self, model: str, asked: ClassifyRequest) -> tuple[list[Said], int, Threshold | None]:
        """What a head says of each text, the tokens read for them, and from which confidence on it is right often
        enough, where that was asked.

        Raises:
            ApiError: 400 if the template cannot render a text, or it does not fit in the context; 503 if the worker is
                closing.
        """
        reader = self._scored(model).classifier
        assert reader is not None  # `require` has refused others
        param = "messages" if asked.messages else "input"
        conversations = asked.conversations(reader.system or "")
        loop = asyncio.get_running_loop()
        rows: list[Row] = []
        found: list[Said] = []
        try:
            for conversation in conversations:
                rows.append(await loop.run_in_executor(self._renderer, reader.row, conversation))
        except TemplateError as error:
            raise ApiError(f"The text cannot be rendered: {error}", param=param, code="template_error") from None
        except EvaluationError as error:
            raise ApiError(f"The text cannot be read: {error}", param=param, code="invalid_value") from None
        for group in micro_batches([(row,) for row in rows], GROUP_TOKENS):
            part = conversations[len(found) : len(found) + len(group)]
            found += await asyncio.wrap_future(self._worker.compute(partial(reader.read, group, part)))
        threshold = None
        if asked.precision is not None:  # over many validation rows it takes a moment
            threshold = await asyncio.to_thread(reader.reading.threshold, asked.precision)
        return found, sum(len(row.ids) for row in rows), threshold

    def _scored(self, name: str) -> ServedModel:
        served = self._served(name)
        assert isinstance(served, ServedModel)  # `require` has refused others
        return served

    def _served(self, name: str) -> Served:
        served = self.models.get(name)
        if served is None:  # it was removed since the request was read
            raise model_not_found(name, list(self.models))
        return served

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

        until = loop.time() + work.deadline_seconds  # what computes sees its own only between two steps
        request = self._worker.submit(work, deliver)
        left = work.n
        try:
            while left:
                try:
                    async with asyncio.timeout_at(until):
                        event = await events.get()
                except TimeoutError:
                    raise deadline_passed(work.deadline_seconds) from None
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
