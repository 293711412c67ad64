"""/v1/evals: what is to be graded and how, runs over data, and what came of every item."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, FastAPI
from starlette.requests import Request

from luthier.errors import EvaluationError
from luthier.evaluation.graders._template import parse_template
from luthier.evaluation.graders.base import Host, ModelReply
from luthier.jobs.database import Row
from luthier.jobs.eval_grading import LIMITS, chat_body, read_criterion, reads_sample
from luthier.jobs.eval_items import items_of, looking, require_fit, require_samples
from luthier.jobs.eval_store import EvalStore, NewRun
from luthier.jobs.file_store import FileStore
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Answer, Created, Json, Queried
from luthier.jobs.http.eval_schema import (
    Completions,
    CreateEval,
    CreateRun,
    Custom,
    EvalsQuery,
    ItemsQuery,
    Jsonl,
    Responses,
    RunsQuery,
    StoredSource,
    Template,
    UpdateEval,
)
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.http.inference import served_as
from luthier.jobs.item_check import check_schema
from luthier.jobs.job_store import JobStore
from luthier.jobs.objects import (
    DeletedEval,
    DeletedRun,
    EvalError,
    EvalObject,
    ItemObject,
    ListObject,
    RunObject,
    RunSummary,
)
from luthier.jobs.pages import list_body
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.chat import parse_chat

HOST = Host(ask_model=lambda *_: ModelReply(""), limits=LIMITS)
"""What criteria may need: a model to ask. Which one it is, is looked at when a run is made."""
NOT_KEPT = "this server keeps no {}; bring the items as 'file_content' or 'file_id'"
SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {"output_text": {"type": "string"}, "output_json": {}, "output_tools": {"type": "array"}},
}
Asking: TypeAlias = Completions | Responses


class EvalRoutes:
    """The handlers."""

    def __init__(self, evals: EvalStore, jobs: JobStore, files: FileStore, names: Names) -> None:
        self._evals, self._jobs, self._files, self._names = evals, jobs, files, names

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        one, runs = "/v1/evals/{eval_id}", "/v1/evals/{eval_id}/runs"
        run, items = runs + "/{run_id}", runs + "/{run_id}/output_items"
        app.add_api_route("/v1/evals", self.create, methods=["POST"], response_model=None)
        app.add_api_route("/v1/evals", self.listed, methods=["GET"], response_model=None)
        app.add_api_route(one, self.get, methods=["GET"], response_model=None)
        app.add_api_route(one, self.update, methods=["POST"], response_model=None)
        app.add_api_route(one, self.delete, methods=["DELETE"], response_model=None)
        app.add_api_route(runs, self.create_run, methods=["POST"], response_model=None)
        app.add_api_route(runs, self.runs, methods=["GET"], response_model=None)
        app.add_api_route(run, self.run, methods=["GET"], response_model=None)
        app.add_api_route(run + "/cancel", self.cancel, methods=["POST"], response_model=None)
        app.add_api_route(run, self.delete_run, methods=["DELETE"], response_model=None)
        app.add_api_route(items, self.items, methods=["GET"], response_model=None)
        app.add_api_route(items + "/{item_id}", self.item, methods=["GET"], response_model=None)

    def create(self, request: Request, asked: Annotated[CreateEval, Depends(Json(CreateEval))]) -> Created[EvalObject]:
        """POST /v1/evals"""
        config = asked.data_source_config
        if not isinstance(config, Custom):
            kept = "logs" if config.type == "logs" else "stored completions"
            raise unsupported("data_source_config.type", NOT_KEPT.format(kept) + ", with the type 'custom'")
        try:
            check_schema(config.item_schema)
        except EvaluationError as error:
            raise ApiError(f"item_schema: {error}", param="data_source_config.item_schema") from None
        criteria = []
        for number, values in enumerate(asked.testing_criteria):
            try:
                criteria.append(read_criterion(values, HOST))
            except EvaluationError as error:
                at = f"testing_criteria[{number}]"
                raise ApiError(f"{at}: {error}", param=at, code="invalid_grader") from None
        row = self._evals.create(
            caller_of(request).project_id,
            asked.name or "",
            {"item_schema": config.item_schema, "include_sample_schema": bool(config.include_sample_schema)},
            criteria,
            asked.metadata,
        )
        note_object(request, row["id"])
        return Created(eval_body(row))

    def listed(
        self, request: Request, query: Annotated[EvalsQuery, Depends(Queried(EvalsQuery))]
    ) -> Answer[ListObject[EvalObject]]:
        """GET /v1/evals: the oldest first"""
        project, page = caller_of(request).project_id, query.page(newest_first=False)
        rows, more = self._evals.listed(project, page, query.order_by == "updated_at")
        return Answer(list_body(rows, eval_body, more))

    def get(self, request: Request, eval_id: str) -> Answer[EvalObject]:
        """GET /v1/evals/{eval_id}"""
        return Answer(eval_body(self._evals.get(caller_of(request).project_id, eval_id)))

    def update(
        self, request: Request, eval_id: str, asked: Annotated[UpdateEval, Depends(Json(UpdateEval))]
    ) -> Answer[EvalObject]:
        """POST /v1/evals/{eval_id}: what is not given stays; metadata of null is none"""
        changes = {name: value for name, value in asked.model_dump(exclude_unset=True).items()}
        if changes.get("name", "") is None:
            del changes["name"]
        return Answer(eval_body(self._evals.update(caller_of(request).project_id, eval_id, changes)))

    def delete(self, request: Request, eval_id: str) -> Answer[DeletedEval]:
        """DELETE /v1/evals/{eval_id}: with all its runs"""
        self._evals.delete(caller_of(request).project_id, eval_id)
        return Answer({"object": "eval.deleted", "deleted": True, "eval_id": eval_id})

    def create_run(
        self, request: Request, eval_id: str, asked: Annotated[CreateRun, Depends(Json(CreateRun))]
    ) -> Created[RunObject]:
        """POST /v1/evals/{eval_id}/runs"""
        project = caller_of(request).project_id
        row, source = self._evals.get(project, eval_id), asked.data_source
        values = source.model_dump(exclude_none=True)
        answered = not isinstance(source, Jsonl) and source.model is not None
        if not isinstance(source, Jsonl):
            values |= _read_asking(source)
            if source.model is not None:
                served_as(self._jobs, self._names, project, source.model)
        for criterion in row["testing_criteria"]:
            if "model" in criterion:
                served_as(self._jobs, self._names, project, criterion["model"])
        reading = next((one["name"] for one in row["testing_criteria"] if reads_sample(one)), None)
        with looking():
            items = items_of(self._files, project, values["source"])
            require_fit(row["data_source_config"]["item_schema"], items)
            if not answered and reading is not None:
                require_samples(items, f"the testing criterion {reading!r} reads it")
            if not answered and row["data_source_config"]["include_sample_schema"]:
                require_samples(items, "the eval was made with include_sample_schema")
            new = self._evals.add_run(project, eval_id, NewRun(asked.name or "", values, asked.metadata, items))
        note_object(request, new["id"])
        return Created(self._run_body(new))

    def runs(
        self, request: Request, eval_id: str, query: Annotated[RunsQuery, Depends(Queried(RunsQuery))]
    ) -> Answer[ListObject[RunObject]]:
        """GET /v1/evals/{eval_id}/runs: the oldest first"""
        project, page = caller_of(request).project_id, query.page(newest_first=False)
        rows, more = self._evals.runs(project, eval_id, page, query.status)
        return Answer(list_body(rows, self._run_body, more))

    def run(self, request: Request, eval_id: str, run_id: str) -> Answer[RunObject]:
        """GET /v1/evals/{eval_id}/runs/{run_id}"""
        return Answer(self._run_body(self._evals.run(caller_of(request).project_id, eval_id, run_id)))

    def cancel(self, request: Request, eval_id: str, run_id: str) -> Answer[RunObject]:
        """POST /v1/evals/{eval_id}/runs/{run_id}/cancel: what was graded stays; once more changes nothing"""
        return Answer(self._run_body(self._evals.cancel(caller_of(request).project_id, eval_id, run_id)))

    def delete_run(self, request: Request, eval_id: str, run_id: str) -> Answer[DeletedRun]:
        """DELETE /v1/evals/{eval_id}/runs/{run_id}"""
        self._evals.delete_run(caller_of(request).project_id, eval_id, run_id)
        return Answer({"object": "eval.run.deleted", "deleted": True, "run_id": run_id})

    def items(
        self, request: Request, eval_id: str, run_id: str, query: Annotated[ItemsQuery, Depends(Queried(ItemsQuery))]
    ) -> Answer[ListObject[ItemObject]]:
        """GET /v1/evals/{eval_id}/runs/{run_id}/output_items: in the order of the data"""
        project, page = caller_of(request).project_id, query.page(newest_first=False)
        rows, more = self._evals.items(project, eval_id, run_id, page, query.status)
        return Answer(list_body(rows, lambda row: item_body(row, eval_id), more))

    def item(self, request: Request, eval_id: str, run_id: str, item_id: str) -> Answer[ItemObject]:
        """GET /v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}"""
        row = self._evals.item(caller_of(request).project_id, eval_id, run_id, item_id)
        return Answer(item_body(row, eval_id))

    def _run_body(self, row: Row) -> RunObject:
        return run_body(row, self._evals.summary(row))


def eval_body(row: Row) -> EvalObject:
    """OpenAI's eval object; the schema is that of what templates see."""
    config = row["data_source_config"]
    properties = {"item": config["item_schema"]} | (
        {"sample": SAMPLE_SCHEMA} if config["include_sample_schema"] else {}
    )
    return {
        "id": row["id"],
        "object": "eval",
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "data_source_config": {
            "type": "custom",
            "schema": {"type": "object", "properties": properties, "required": list(properties)},
        },
        "metadata": row["metadata"],
        "name": row["name"],
        "testing_criteria": row["testing_criteria"],
    }


def run_body(row: Row, summary: RunSummary) -> RunObject:
    """OpenAI's run object. An error of empty texts is none: its type knows no null there. There is no report's page."""
    nothing: EvalError = {"code": "", "message": ""}
    return {
        "id": row["id"],
        "object": "eval.run",
        "created_at": row["created_at"],
        "data_source": row["data_source"],
        "error": row["error"] or nothing,
        "eval_id": row["eval_id"],
        "metadata": row["metadata"],
        "model": row["data_source"].get("model") or "",
        "name": row["name"],
        "report_url": "",
        "status": row["status"],
        **summary,
    }


def item_body(row: Row, eval_id: str) -> ItemObject:
    """OpenAI's output item object."""
    return {
        "id": row["id"],
        "object": "eval.run.output_item",
        "created_at": row["created_at"],
        "datasource_item": row["item"],
        "datasource_item_id": row["number"],
        "eval_id": eval_id,
        "results": row["results"],
        "run_id": row["run_id"],
        "sample": row["sample"],
        "status": row["status"],
    }


def _read_asking(source: Asking) -> dict[str, Any]:
    """What a data source asks of a model, in the words of chat completions, with what cannot be done refused.

    Raises:
        ApiError: 400.
    """
    at = "data_source"
    if isinstance(source.source, StoredSource):
        raise unsupported(f"{at}.source.type", NOT_KEPT.format(source.source.type.replace("_", " ")))
    if (source.model is None) != (source.input_messages is None):
        missing = "model" if source.model is None else "input_messages"
        raise ApiError(
            "'model' and 'input_messages' need each other; without both, the items' own samples are graded.",
            param=f"{at}.{missing}",
            code="missing_required_parameter",
        )
    if isinstance(source.input_messages, Template):
        for number, message in enumerate(source.input_messages.template):
            blocks = message.content if isinstance(message.content, list) else [message.content]
            texts = [block if isinstance(block, str) else block.text for block in blocks]
            _require_item_variables(texts, f"{at}.input_messages.template[{number}]")
    elif source.input_messages is not None:
        text = "{{" + source.input_messages.item_reference + "}}"
        _require_item_variables([text], f"{at}.input_messages.item_reference")
    params = source.sampling_params
    if params is None:
        return {}
    if isinstance(source, Responses) and params.tools:
        raise unsupported(f"{at}.sampling_params.tools", "give tools to a data source of the type 'completions'")
    values = {"model": source.model or "none", "sampling_params": params.model_dump(exclude_none=True, by_alias=True)}
    try:  # as the engine will read it for every item
        parse_chat(json.dumps(chat_body(values, [{"role": "user", "content": ""}])).encode())
    except ApiError as error:
        raise ApiError(f"sampling_params: {error.message}", param=f"{at}.sampling_params", code=error.code) from None
    return {"sampling_params": values["sampling_params"]}


def _require_item_variables(texts: Sequence[str], at: str) -> None:
    for text in texts:
        try:
            parts = parse_template(text)
        except ValueError as error:
            raise ApiError(f"{at}: {error}.", param=at, code="invalid_template") from None
        named = [part.text for part in parts if not isinstance(part, str) and part.namespace != "item"]
        if named:
            why = f"'{{{{{named[0]}}}}}' has no value before the model answers; use {{{{item.…}}}}"
            raise ApiError(f"{at}: {why}.", param=at, code="invalid_template")
