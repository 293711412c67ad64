"""Answers the pairs of rankings in the background, a few at a time; a pair is kept as soon as both answers are there.

Nothing says that a ranking is being answered but its pairs without answers: after the server was killed, whoever opens
the ranking lets it go on.
"""

import asyncio
import logging
from functools import partial

from starlette.concurrency import run_in_threadpool

from luthier.jobs.database import Row
from luthier.jobs.gateway import Served
from luthier.jobs.http.app import Service
from luthier.jobs.http.inference import served_as
from luthier.serve.api_error import ApiError
from luthier.serve.failures import place_of
from luthier.web.rankings import Rankings

_logger = logging.getLogger("luthier.web")
AT_ONCE = 4


class Answering:
    """The rankings that are being answered."""

    def __init__(self, service: Service, rankings: Rankings) -> None:
        self._service, self._rankings = service, rankings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}

    def trouble(self, ranking: str) -> str | None:
        """Why a ranking could not be answered further."""
        return self._troubles.get(ranking)

    def go_on(self, ranking: Row, again: bool = False) -> None:
        """Answer what is not answered; within the server's loop. `again`: though it went wrong."""
        name = str(ranking["id"])
        if again:
            self._troubles.pop(name, None)
        if name not in self._tasks and name not in self._troubles:
            task = self._tasks[name] = asyncio.create_task(self._answer(ranking))
            task.add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[name]
        error = None if task.cancelled() else task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ApiError):
            self._troubles[name] = error.message
        elif error is not None:  # its message may quote a prompt
            _logger.error("a ranking is not answered: %s in %s", type(error).__name__, place_of(error))
            self._troubles[name] = "The answers could not be made; the server's log has more."

    async def _answer(self, ranking: Row) -> None:
        pairs = await run_in_threadpool(self._rankings.unanswered, ranking["id"])
        jobs, names = self._service.jobs, self._service.names
        models = [
            await run_in_threadpool(served_as, jobs, names, ranking["project_id"], ranking[side])
            for side in ("first", "second")
        ]
        places = asyncio.Semaphore(AT_ONCE)

        async def answer(pair: Row) -> None:
            async with places:
                first, second = [await self._ask(ranking, pair, model) for model in models]
                await run_in_threadpool(self._rankings.keep_answers, pair["id"], first, second)

        async with asyncio.TaskGroup() as group:
            for pair in pairs:
                group.create_task(answer(pair))

    async def _ask(self, ranking: Row, pair: Row, model: Served) -> str:
        sampling = ranking["sampling"]
        body = {
            "model": model.name,
            "messages": pair["messages"],
            "temperature": sampling["temperature"],
            "max_completion_tokens": sampling["most_tokens"],
            "seed": (sampling["seed"] + pair["number"]) % 2**31,
        }
        found = await self._service.gateway.ask("/chat/completions", body, model)
        return str(found["choices"][0]["message"]["content"] or "")
