"""/v1/fine_tuning/alpha/graders: look at a grader, and let it grade one answer."""

from collections.abc import Sequence
from typing import Annotated

from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import Depends, FastAPI
from pydantic import Field, JsonValue
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import (
    GradeObject,
    Grader,
    Host,
    ModelReply,
    Sample,
    SamplingParams,
    response_body,
    validate,
)
from luthier.examples import Message
from luthier.jobs.gateway import Gateway
from luthier.jobs.grader_asking import grader_body, grader_reply
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Answer, Json
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.http.grader_schema import GraderValues
from luthier.jobs.http.inference import served_as
from luthier.jobs.http.schema import Body
from luthier.jobs.job_store import JobStore
from luthier.jobs.objects import ValidGrader
from luthier.serve.api_error import ApiError

AT_ONCE = 4
"""Graders that run at a time; others wait."""


class ValidateGrader(Body):
    """POST /v1/fine_tuning/alpha/graders/validate"""

    grader: GraderValues


class RunGrader(ValidateGrader):
    """POST /v1/fine_tuning/alpha/graders/run"""

    model_sample: Annotated[str, Field(max_length=1_000_000)]
    """The answer; its JSON is there for templates if the whole text is JSON."""
    item: dict[str, JsonValue] | None = None
    """The row that it answers."""


class GraderRoutes:
    """The handlers."""

    def __init__(self, jobs: JobStore, names: Names, gateway: Gateway) -> None:
        self._jobs, self._names, self._gateway = jobs, names, gateway
        self._at_once = CapacityLimiter(AT_ONCE)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        base = "/v1/fine_tuning/alpha/graders"
        app.add_api_route(base + "/validate", self.validate, methods=["POST"], response_model=None)
        app.add_api_route(base + "/run", self.run, methods=["POST"], response_model=None)

    def validate(
        self, request: Request, asked: Annotated[ValidateGrader, Depends(Json(ValidateGrader))]
    ) -> Answer[ValidGrader]:
        """POST /v1/fine_tuning/alpha/graders/validate"""
        self._built(asked, caller_of(request).project_id)
        return Answer({"grader": asked.grader})

    async def run(self, request: Request, asked: Annotated[RunGrader, Depends(Json(RunGrader))]) -> Answer[GradeObject]:
        """POST /v1/fine_tuning/alpha/graders/run"""
        # in threads of their own: graders that take long, or ask a model, keep none from those who serve others
        found = await to_thread.run_sync(self._run, asked, caller_of(request).project_id, limiter=self._at_once)
        return Answer(found)

    def _run(self, asked: RunGrader, project: str) -> GradeObject:
        grader, host = self._built(asked, project)
        return response_body(grader.grade(Sample.of(asked.model_sample), asked.item or {}, host))

    def _built(self, asked: ValidateGrader, project: str) -> tuple[Grader, Host]:
        def ask(model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
            return from_thread.run(self._ask, project, model, messages, sampling)

        host = Host(ask_model=ask)
        try:
            return validate(asked.grader, host), host
        except EvaluationError as error:
            raise ApiError(str(error), param="grader", code="invalid_grader") from None

    async def _ask(self, project: str, name: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """A model of the project's answer to a grader."""
        model = await run_in_threadpool(served_as, self._jobs, self._names, project, name)
        body = grader_body(name, messages, sampling)
        return grader_reply(await self._gateway.ask("/chat/completions", body, model))
