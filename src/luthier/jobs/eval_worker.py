"""Runs of evals at work: a task of the server takes the oldest run of each project, asks models, grades, and records.

Everything true stands in the database. A server that stops, or is killed, leaves runs `in_progress`; the next one goes
on with their items that have no result. What was at work when it stopped is thrown away and done again.

Grades are made in threads, as Python graders wait for a process of their own; models are asked on the server's loop.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from anyio import CapacityLimiter, from_thread, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from luthier.evaluation.graders.base import Host, ModelReply, Sample, SamplingParams
from luthier.examples import Message
from luthier.jobs.database import Row
from luthier.jobs.eval_grading import (
    LIMITS,
    Criterion,
    NoMessages,
    chat_body,
    criterion_of,
    given_sample,
    grade,
    messages_for,
    sample_body,
    usage_of,
)
from luthier.jobs.eval_store import EvalStore, Result
from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.grader_asking import grader_body, grader_reply
from luthier.jobs.objects import EvalError
from luthier.serve.api_error import ApiError
from luthier.serve.failures import place_of

log = logging.getLogger("luthier.jobs")
Resolve: TypeAlias = Callable[[str, str], Served]
"""What a project's name of a model means; an ApiError 404 if nothing."""
TICK_SECONDS = 0.3
RUNS_AT_ONCE = 16
ITEMS_AT_ONCE = 16
"""Of all runs together."""
ITEMS_OF_RUN = 4
"""Of one run, so that one whose model takes long to load leaves room for others."""
GRADES_AT_ONCE = 4
PATIENCE = (1.0, 2.0, 4.0, 8.0)
"""Seconds between tries while a model is busy or cannot be loaded."""


class RunFailed(Exception):
    """No further item can be done."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = {"code": error.code or "error", "message": error.message}


@dataclass
class _Plan:
    """A run at work."""

    row: Row
    criteria: Sequence[Criterion]
    waiting: deque[int]

    @property
    def source(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.row["data_source"]
        return found


@dataclass
class _Use:
    """Models that were asked for one item."""

    counted: list[dict[str, Any]] = field(default_factory=list)

    def add(self, model: str, answer: Mapping[str, Any]) -> None:
        """Count an answer."""
        self.counted.append({"model_name": model, **usage_of(answer.get("usage") or {})})


class EvalWorker:
    """Drives all runs, within the server's event loop.

    Args:
        store: of evals.
        gateway: answers for models.
        resolve: finds them.
    """

    def __init__(self, store: EvalStore, gateway: Gateway, resolve: Resolve) -> None:
        self._store, self._gateway, self._resolve = store, gateway, resolve
        self._task: asyncio.Task[None] | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(ITEMS_AT_ONCE)
        self._grades: CapacityLimiter | None = None

    def start(self) -> None:
        """Take up what was left, and go round."""
        self._grades = CapacityLimiter(GRADES_AT_ONCE)
        self._task = asyncio.create_task(self._go_round())

    async def stop(self) -> None:
        """Let go of what is at work; nothing of it is recorded."""
        tasks = [*self._runs.values(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _go_round(self) -> None:
        while True:
            try:
                rows = await run_in_threadpool(self._store.next_runs)
            except (SQLAlchemyError, OSError) as error:  # the next round tries again
                log.error("evals: %s in %s", type(error).__name__, place_of(error))
                rows = []
            self._runs = {run_id: task for run_id, task in self._runs.items() if not task.done()}
            for row in rows:
                if row["id"] not in self._runs and len(self._runs) < RUNS_AT_ONCE:
                    self._runs[row["id"]] = asyncio.create_task(self._run(row))
            await asyncio.sleep(TICK_SECONDS)

    async def _run(self, row: Row) -> None:
        """Bring a run as far as it goes; what the database refuses is tried again in the next round."""
        try:
            await self._to_its_end(row)
        except ApiError:  # it was canceled or removed meanwhile
            return
        except (SQLAlchemyError, OSError) as error:
            log.error("evals: %s in %s", type(error).__name__, place_of(error))
        except Exception:
            # a mistake of ours, which asyncio logs: the run must not be taken up for ever, nor hold up its project
            with suppress(ApiError, SQLAlchemyError):
                told = {
                    "code": "internal_error",
                    "message": "The run cannot be finished; the server's log has more.",
                }
                await run_in_threadpool(self._store.move, row["id"], "failed", told)
            raise

    async def _to_its_end(self, row: Row) -> None:
        if row["status"] == "queued":
            row = await run_in_threadpool(self._store.move, row["id"], "in_progress")
        plan = await run_in_threadpool(self._planned, row)
        failure: RunFailed | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(ITEMS_OF_RUN):
                    group.create_task(self._work(plan))
        except ExceptionGroup as group_of:
            failures = [one for one in group_of.exceptions if isinstance(one, RunFailed)]
            if len(failures) < len(group_of.exceptions):
                raise next(one for one in group_of.exceptions if not isinstance(one, RunFailed)) from None
            failure = failures[0]
        if failure is not None:
            await run_in_threadpool(self._store.move, row["id"], "failed", failure.error)
        elif not await run_in_threadpool(self._store.waiting, row["id"]):
            await run_in_threadpool(self._store.move, row["id"], "completed")

    def _planned(self, row: Row) -> _Plan:
        kept = self._store.get(row["project_id"], row["eval_id"])["testing_criteria"]
        return _Plan(row, [criterion_of(values) for values in kept], deque(self._store.waiting(row["id"])))

    async def _work(self, plan: _Plan) -> None:
        while plan.waiting:
            async with self._slots:
                if plan.waiting:
                    await self._item(plan, plan.waiting.popleft())

    async def _item(self, plan: _Plan, number: int) -> None:
        run_id = plan.row["id"]
        row = await run_in_threadpool(self._store.to_grade, run_id, number)
        result = None if row is None else await self._result(plan, row)
        if result is None or not await run_in_threadpool(self._store.record, run_id, number, result):
            plan.waiting.clear()  # canceled or removed

    async def _result(self, plan: _Plan, row: Row) -> Result:
        use, source = _Use(), plan.source
        if source["type"] == "jsonl" or not source.get("model"):
            sample = given_sample(row["given"])
            body = sample_body(sample)
        else:
            try:
                messages = messages_for(source["input_messages"], row["item"])
            except NoMessages as problem:
                told: EvalError = {"code": "invalid_item", "message": str(problem)}
                return Result("error", [], sample_body(Sample(""), (), source, error=told))
            try:
                answer = await self._ask(plan.row["project_id"], chat_body(source, messages))
            except ApiError as error:
                if error.status in (404, 503):  # the model is gone, and so it is for all other items
                    raise RunFailed(error) from None
                told = {"code": error.code or "error", "message": error.message}
                return Result("error", [], sample_body(Sample(""), messages, source, error=told))
            use.add(source["model"], answer)
            message = answer["choices"][0]["message"]
            sample = Sample.of(message.get("content") or "", message.get("tool_calls") or ())
            body = sample_body(sample, messages, source, answer)
        host = Host(ask_model=self._asked_by_grader(plan.row["project_id"], use), limits=LIMITS)
        status, results = await to_thread.run_sync(
            grade, plan.criteria, sample, row["item"], host, limiter=self._grades, abandon_on_cancel=True
        )
        return Result(status, results, body, use.counted)

    async def _ask(self, project: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A model's answer, after some patience.

        Raises:
            ApiError: there is none.
        """
        for seconds in (*PATIENCE, None):
            try:
                model = await run_in_threadpool(self._resolve, project, body["model"])
                return await self._gateway.ask("/chat/completions", dict(body), model)
            except ApiError as error:
                if seconds is None or error.status not in (429, 503):
                    raise
            await asyncio.sleep(seconds)
        raise AssertionError("the last try raises")

    def _asked_by_grader(self, project: str, use: _Use) -> Callable[..., ModelReply]:
        def ask(model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
            answer = from_thread.run(self._ask, project, grader_body(model, messages, sampling))
            use.add(model, answer)
            return grader_reply(answer)

        return ask
