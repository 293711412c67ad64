"""/v1/fine_tuning: jobs, their events and checkpoints, and who else may use what they made."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.errors import RecipeError, TrackingError
from luthier.jobs.database import Row
from luthier.jobs.file_store import FileStore
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import admin_of, caller_of
from luthier.jobs.http.reading import body_of, page_from, read_as, require_known
from luthier.jobs.http.schema import CreateJob, Grant, MetadataQuery
from luthier.jobs.job_store import Asked, JobStore, Status, Told
from luthier.jobs.model_names import is_tuned
from luthier.jobs.pages import list_body
from luthier.jobs.translate import require_tracking
from luthier.serve.api_error import ApiError, unsupported

PAGED = ("after", "limit")
MOST_KEY = 255


@dataclass(frozen=True)
class Names:
    """Which models a job may be trained from, and which others are served."""

    bases: tuple[str, ...]
    """As a recipe names them."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names, such as OpenAI's, and what they mean here."""
    embedders: Mapping[str, str] = field(default_factory=dict)
    """Encoders by name, as `retrieval.embedder` names them."""
    ggufs: Mapping[str, Path] = field(default_factory=dict)
    """GGUF files by name, which llama.cpp answers for."""

    @property
    def listed(self) -> tuple[str, ...]:
        """All that clients may ask for but what jobs made."""
        return (*self.shown, *self.embedders, *self.ggufs)

    @property
    def shown(self) -> tuple[str, ...]:
        """The bases that clients may ask for; one that is a folder of this machine has a name only as an alias."""
        return (*(name for name in self.bases if "/" not in name and "\\" not in name), *self.aliases)

    def base_of(self, model: str) -> str:
        """The base that a client's name means.

        Raises:
            ApiError: 400: none.
        """
        base = self.aliases.get(model, model)
        if base not in self.bases or model not in self.shown:
            known = ", ".join(self.shown)
            raise ApiError(
                f"{model[:100]!r} cannot be fine-tuned here; known: {known}.", param="model", code="model_not_available"
            )
        return base


class FineTuningRoutes:
    """The handlers."""

    def __init__(self, jobs: JobStore, files: FileStore, names: Names) -> None:
        self._jobs, self._files, self._names = jobs, files, names

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        job, grants = "/v1/fine_tuning/jobs", "/v1/fine_tuning/checkpoints/{name:path}/permissions"
        app.add_api_route(job, self.create, methods=["POST"], response_model=None)
        app.add_api_route(job, self.listed, methods=["GET"], response_model=None)
        app.add_api_route(job + "/{job_id}", self.get, methods=["GET"], response_model=None)
        app.add_api_route(job + "/{job_id}/cancel", self.cancel, methods=["POST"], response_model=None)
        app.add_api_route(job + "/{job_id}/pause", self.pause, methods=["POST"], response_model=None)
        app.add_api_route(job + "/{job_id}/resume", self.resume, methods=["POST"], response_model=None)
        app.add_api_route(job + "/{job_id}/events", self.events, methods=["GET"], response_model=None)
        app.add_api_route(job + "/{job_id}/checkpoints", self.checkpoints, methods=["GET"], response_model=None)
        app.add_api_route(grants, self.grant, methods=["POST"], response_model=None)
        app.add_api_route(grants, self.grants, methods=["GET"], response_model=None)
        app.add_api_route(grants + "/{permission_id}", self.revoke, methods=["DELETE"], response_model=None)

    async def create(self, request: Request) -> Response:
        """POST /v1/fine_tuning/jobs; with an `Idempotency-Key` the same request makes one job."""
        body = await body_of(request, CreateJob)
        return JSONResponse(await run_in_threadpool(self._create, request, body))

    def _create(self, request: Request, body: CreateJob) -> dict[str, Any]:
        project = caller_of(request).project_id
        base = self._base_of(project, body.model)
        if body.method is not None and body.method.type == "reinforcement":
            raise unsupported("method.type", "training on graded answers comes with a later version")
        for param, file_id in (("training_file", body.training_file), ("validation_file", body.validation_file)):
            if file_id is not None:
                self._require_rows(project, param, file_id)
        values = body.model_dump(exclude_none=True)
        try:
            require_tracking(values)
        except (RecipeError, TrackingError) as error:
            raise ApiError(f"This server cannot track the job: {error}", param="integrations") from None
        asked = Asked(
            model=body.model,
            base=base,
            training_file=body.training_file,
            validation_file=body.validation_file,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            body=values,
        )
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= MOST_KEY:
            raise ApiError(f"'Idempotency-Key' has 1 to {MOST_KEY} characters.")
        digest = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        row = self._jobs.create(project, asked, None if key is None else (key, digest))
        note_object(request, row["id"])
        return job_body(row)

    def _base_of(self, project: str, model: str) -> str:
        """The base of a model that the project may train from: one that is served, or what a job made of one.

        Raises:
            ApiError: 400: there is no such model, or its base is not served any more.
        """
        if not is_tuned(model):
            return self._names.base_of(model)
        row = self._jobs.model(project, model)
        if row is None or row["base"] not in self._names.bases:
            why = "no such model" if row is None else "its base is not served here any more"
            raise ApiError(
                f"{model[:300]!r} cannot be fine-tuned further: {why}.", param="model", code="model_not_available"
            )
        return str(row["base"])

    def _require_rows(self, project: str, param: str, file_id: str) -> None:
        try:
            row = self._files.get(project, file_id)
        except ApiError:
            raise ApiError(f"No such file: {file_id[:100]!r}.", param=param, code="invalid_training_file") from None
        if row["purpose"] != "fine-tune":
            raise ApiError(
                f"{file_id!r} has the purpose {row['purpose']!r}; expected 'fine-tune'.",
                param=param,
                code="invalid_training_file",
            )

    def listed(self, request: Request) -> Response:
        """GET /v1/fine_tuning/jobs, by `metadata[key]=value` or `metadata=null`"""
        require_known(request, (*PAGED, "metadata", "metadata[]"))
        query = request.query_params
        wanted = read_as(_metadata(query), MetadataQuery).metadata
        if query.get("metadata", "null") != "null":
            raise ApiError("'metadata' is null, or is given by keys: metadata[key]=value.", param="metadata")
        rows, more = self._jobs.listed(
            caller_of(request).project_id, page_from(request), wanted, without="metadata" in query
        )
        return JSONResponse(list_body(rows, job_body, more))

    def get(self, request: Request, job_id: str) -> Response:
        """GET /v1/fine_tuning/jobs/{job_id}"""
        return JSONResponse(job_body(self._jobs.get(caller_of(request).project_id, job_id)))

    def cancel(self, request: Request, job_id: str) -> Response:
        """POST /v1/fine_tuning/jobs/{job_id}/cancel: what was trained is dropped; once more changes nothing"""
        return self._move(request, job_id, "cancelled", "The job was cancelled")

    def pause(self, request: Request, job_id: str) -> Response:
        """POST /v1/fine_tuning/jobs/{job_id}/pause: the step is finished and saved"""
        return self._move(request, job_id, "paused", "The job was paused")

    def resume(self, request: Request, job_id: str) -> Response:
        """POST /v1/fine_tuning/jobs/{job_id}/resume: back into the queue, to go on from its checkpoint"""
        row = self._jobs.get(caller_of(request).project_id, job_id)
        to: Status = "queued" if row["picked"] else "validating_files"
        return self._move(request, job_id, to, "The job was resumed", ("paused",))

    def _move(
        self, request: Request, job_id: str, to: Status, message: str, allowed: tuple[Status, ...] = ()
    ) -> Response:
        row = self._jobs.get(caller_of(request).project_id, job_id)
        if row["status"] != to:
            told = [Told(f"{to} {row['attempts']} {secrets.token_hex(4)}", message)]
            row = self._jobs.move(row["id"], to, told, allowed)
        return JSONResponse(job_body(row))

    def events(self, request: Request, job_id: str) -> Response:
        """GET /v1/fine_tuning/jobs/{job_id}/events: the newest first"""
        require_known(request, PAGED)
        rows, more = self._jobs.events(caller_of(request).project_id, job_id, page_from(request))
        return JSONResponse(list_body(rows, event_body, more))

    def checkpoints(self, request: Request, job_id: str) -> Response:
        """GET /v1/fine_tuning/jobs/{job_id}/checkpoints: the newest first"""
        require_known(request, PAGED)
        rows, more = self._jobs.checkpoints(caller_of(request).project_id, job_id, page_from(request, usual=10))
        return JSONResponse(list_body(rows, checkpoint_body, more))

    async def grant(self, request: Request, name: str) -> Response:
        """POST /v1/fine_tuning/checkpoints/{name}/permissions"""
        project = admin_of(request).project_id
        asked = await body_of(request, Grant)
        rows = await run_in_threadpool(self._jobs.grant, project, name, asked.project_ids)
        return JSONResponse(list_body(rows, permission_body, False))

    def grants(self, request: Request, name: str) -> Response:
        """GET /v1/fine_tuning/checkpoints/{name}/permissions"""
        require_known(request, (*PAGED, "order", "project_id"))
        project, page = admin_of(request).project_id, page_from(request, usual=10)
        rows, more = self._jobs.grants(project, name, page, request.query_params.get("project_id"))
        return JSONResponse(list_body(rows, permission_body, more))

    def revoke(self, request: Request, name: str, permission_id: str) -> Response:
        """DELETE /v1/fine_tuning/checkpoints/{name}/permissions/{permission_id}"""
        self._jobs.revoke(admin_of(request).project_id, name, permission_id)
        return JSONResponse({"id": permission_id, "object": "checkpoint.permission", "deleted": True})


def _metadata(query: QueryParams) -> dict[str, object]:
    """The entries of `metadata[key]=value`.

    Raises:
        ApiError: 400: a bracket is missing.
    """
    found = {}
    for name, value in query.multi_items():
        if name.startswith("metadata["):
            if len(name) < 11 or not name.endswith("]"):
                raise ApiError("metadata is given by keys: metadata[key]=value.", param="metadata")
            found[name[9:-1]] = value
    return {"metadata": found}


def job_body(row: Row) -> dict[str, Any]:
    """OpenAI's job object; hyperparameters tell what was picked, once that is known.

    A paused job is `queued` with `paused` true: OpenAI's typed clients know no status of that name.
    """
    asked, picked = row["asked"], row["picked"]
    method = dict(asked.get("method") or {"type": "supervised"})
    own = dict(method.get(method["type"]) or {})
    auto = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
    hyperparameters = picked or {**auto, **(own.get("hyperparameters") or asked.get("hyperparameters") or {})}
    method[method["type"]] = {**own, "hyperparameters": hyperparameters}
    shown = {name: hyperparameters.get(name) for name in auto}
    return {
        "id": row["id"],
        "object": "fine_tuning.job",
        "created_at": row["created_at"],
        "error": row["error"],
        "estimated_finish": row["estimated_finish"],
        "fine_tuned_model": row["fine_tuned_model"],
        "finished_at": row["finished_at"],
        "hyperparameters": shown if method["type"] == "supervised" else {},
        "integrations": asked.get("integrations"),
        "metadata": asked.get("metadata"),
        "method": method,
        "model": asked["model"],
        "organization_id": row["project_id"],
        "result_files": row["result_files"],
        "seed": row["seed"],
        "paused": row["status"] == "paused",
        "status": "queued" if row["status"] == "paused" else row["status"],
        "trained_tokens": row["trained_tokens"],
        "training_file": row["training_file"],
        "user_provided_suffix": asked.get("suffix"),
        "validation_file": row["validation_file"],
    }


def event_body(row: Row) -> dict[str, Any]:
    """OpenAI's event object."""
    return {
        "id": row["id"],
        "object": "fine_tuning.job.event",
        "created_at": row["created_at"],
        "level": row["level"],
        "message": row["message"],
        "type": row["type"],
        "data": row["data"],
    }


def checkpoint_body(row: Row) -> dict[str, Any]:
    """OpenAI's checkpoint object."""
    return {
        "id": row["id"],
        "object": "fine_tuning.job.checkpoint",
        "created_at": row["created_at"],
        "fine_tuned_model_checkpoint": row["name"],
        "fine_tuning_job_id": row["job_id"],
        "metrics": row["metrics"],
        "step_number": row["step_number"],
    }


def permission_body(row: Row) -> dict[str, Any]:
    """OpenAI's permission object."""
    return {
        "id": row["id"],
        "object": "checkpoint.permission",
        "created_at": row["created_at"],
        "project_id": row["project_id"],
    }
