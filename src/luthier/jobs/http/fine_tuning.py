"""/v1/fine_tuning: jobs, their events and checkpoints, and who else may use what they made."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.requests import Request

from luthier.errors import EvaluationError, RecipeError, TrackingError
from luthier.jobs.database import Row
from luthier.jobs.file_store import FileStore
from luthier.jobs.http.audited import note_object
from luthier.jobs.http.caller import admins_project, caller_of
from luthier.jobs.http.declared import Answer, Json, Queried
from luthier.jobs.http.schema import (
    CheckpointsQuery,
    CreateJob,
    Grant,
    GrantsQuery,
    JobObject,
    JobsQuery,
    PageQuery,
    ShownHyperparameters,
)
from luthier.jobs.job_store import Asked, JobStore, Status, Told
from luthier.jobs.model_names import is_tuned
from luthier.jobs.objects import (
    CheckpointObject,
    DeletedPermission,
    EventObject,
    ListObject,
    PermissionObject,
)
from luthier.jobs.pages import list_body
from luthier.jobs.translate import require_graded, require_tracking
from luthier.serve.api_error import ApiError, unsupported

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
        key = {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": MOST_KEY},
        }
        told: dict[str, Any] = {
            "responses": {
                409: {"description": "The key was used for another request"},
                429: {"description": "Too many jobs wait"},
            },
            "openapi_extra": {"parameters": [key]},
        }
        app.add_api_route(job, self.create, methods=["POST"], response_model=None, **told)
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

    def create(self, request: Request, body: Annotated[CreateJob, Depends(Json(CreateJob))]) -> Answer[JobObject]:
        """POST /v1/fine_tuning/jobs; with an `Idempotency-Key` the same request makes one job."""
        project = caller_of(request).project_id
        base = self._base_of(project, body.model)
        _require_supported(body)
        for param, file_id in (("training_file", body.training_file), ("validation_file", body.validation_file)):
            if file_id is not None:
                self._require_rows(project, param, file_id)
        values = body.model_dump(exclude_none=True)
        try:
            require_graded(values)
        except EvaluationError as error:
            raise ApiError(str(error), param="method.reinforcement.grader", code="invalid_grader") from None
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
        return Answer(job_body(row))

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

    def listed(
        self, request: Request, query: Annotated[JobsQuery, Depends(Queried(JobsQuery))]
    ) -> Answer[ListObject[JobObject]]:
        """GET /v1/fine_tuning/jobs, by `metadata[key]=value` or `metadata=null`"""
        project, wanted = caller_of(request).project_id, query.metadata
        rows, more = self._jobs.listed(project, query.page(), wanted or {}, without=wanted is None)
        return Answer(list_body(rows, job_body, more))

    def get(self, request: Request, job_id: str) -> Answer[JobObject]:
        """GET /v1/fine_tuning/jobs/{job_id}"""
        return Answer(job_body(self._jobs.get(caller_of(request).project_id, job_id)))

    def cancel(self, request: Request, job_id: str) -> Answer[JobObject]:
        """POST /v1/fine_tuning/jobs/{job_id}/cancel: what was trained is dropped; once more changes nothing"""
        return self._move(request, job_id, "cancelled", "The job was cancelled")

    def pause(self, request: Request, job_id: str) -> Answer[JobObject]:
        """POST /v1/fine_tuning/jobs/{job_id}/pause: the step is finished and saved"""
        return self._move(request, job_id, "paused", "The job was paused")

    def resume(self, request: Request, job_id: str) -> Answer[JobObject]:
        """POST /v1/fine_tuning/jobs/{job_id}/resume: back into the queue, to go on from its checkpoint"""
        row = self._jobs.get(caller_of(request).project_id, job_id)
        to: Status = "queued" if row["picked"] else "validating_files"
        return self._move(request, job_id, to, "The job was resumed", ("paused",))

    def _move(
        self, request: Request, job_id: str, to: Status, message: str, allowed: tuple[Status, ...] = ()
    ) -> Answer[JobObject]:
        row = self._jobs.get(caller_of(request).project_id, job_id)
        if row["status"] != to:
            told = [Told(f"{to} {row['attempts']} {secrets.token_hex(4)}", message)]
            row = self._jobs.move(row["id"], to, told, allowed)
        return Answer(job_body(row))

    def events(
        self, request: Request, job_id: str, query: Annotated[PageQuery, Depends(Queried(PageQuery))]
    ) -> Answer[ListObject[EventObject]]:
        """GET /v1/fine_tuning/jobs/{job_id}/events: the newest first"""
        rows, more = self._jobs.events(caller_of(request).project_id, job_id, query.page())
        return Answer(list_body(rows, event_body, more))

    def checkpoints(
        self, request: Request, job_id: str, query: Annotated[CheckpointsQuery, Depends(Queried(CheckpointsQuery))]
    ) -> Answer[ListObject[CheckpointObject]]:
        """GET /v1/fine_tuning/jobs/{job_id}/checkpoints: the newest first"""
        rows, more = self._jobs.checkpoints(caller_of(request).project_id, job_id, query.page())
        return Answer(list_body(rows, checkpoint_body, more))

    def grant(
        self,
        name: str,
        project: Annotated[str, Depends(admins_project)],
        asked: Annotated[Grant, Depends(Json(Grant))],
    ) -> Answer[ListObject[PermissionObject]]:
        """POST /v1/fine_tuning/checkpoints/{name}/permissions"""
        rows = self._jobs.grant(project, name, asked.project_ids)
        return Answer(list_body(rows, permission_body, False))

    def grants(
        self,
        name: str,
        project: Annotated[str, Depends(admins_project)],
        query: Annotated[GrantsQuery, Depends(Queried(GrantsQuery))],
    ) -> Answer[ListObject[PermissionObject]]:
        """GET /v1/fine_tuning/checkpoints/{name}/permissions"""
        rows, more = self._jobs.grants(project, name, query.page(), query.project_id)
        return Answer(list_body(rows, permission_body, more))

    def revoke(
        self, name: str, permission_id: str, project: Annotated[str, Depends(admins_project)]
    ) -> Answer[DeletedPermission]:
        """DELETE /v1/fine_tuning/checkpoints/{name}/permissions/{permission_id}"""
        self._jobs.revoke(project, name, permission_id)
        return Answer({"id": permission_id, "object": "checkpoint.permission", "deleted": True})


def job_body(row: Row) -> JobObject:
    """OpenAI's job object; hyperparameters tell what was picked, once that is known.

    A paused job is `queued` with `paused` true: OpenAI's typed clients know no status of that name.
    """
    asked, picked = row["asked"], row["picked"]
    method: Any = dict(asked.get("method") or {"type": "supervised"})
    own = dict(method.get(method["type"]) or {})
    auto = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
    hyperparameters = picked or {**auto, **(own.get("hyperparameters") or asked.get("hyperparameters") or {})}
    method[method["type"]] = {**own, "hyperparameters": hyperparameters}
    shown: ShownHyperparameters = {}
    if method["type"] == "supervised":
        shown = {
            "batch_size": hyperparameters["batch_size"],
            "learning_rate_multiplier": hyperparameters["learning_rate_multiplier"],
            "n_epochs": hyperparameters["n_epochs"],
        }
    return {
        "id": row["id"],
        "object": "fine_tuning.job",
        "created_at": row["created_at"],
        "error": row["error"],
        "estimated_finish": row["estimated_finish"],
        "fine_tuned_model": row["fine_tuned_model"],
        "finished_at": row["finished_at"],
        "hyperparameters": shown,
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


def event_body(row: Row) -> EventObject:
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


def checkpoint_body(row: Row) -> CheckpointObject:
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


def permission_body(row: Row) -> PermissionObject:
    """OpenAI's permission object."""
    return {
        "id": row["id"],
        "object": "checkpoint.permission",
        "created_at": row["created_at"],
        "project_id": row["project_id"],
    }


def _require_supported(body: CreateJob) -> None:
    """Refuse what would be accepted and change nothing.

    Raises:
        ApiError: 400: the method's own settings are missing, or ask for what is not there.
    """
    if body.method is None or body.method.type != "reinforcement":
        return
    asked = body.method.reinforcement
    if asked is None:
        raise ApiError("'method.reinforcement' is missing: it names the grader.", param="method.reinforcement")
    if asked.response_format is not None:
        raise unsupported("method.reinforcement.response_format", "replies are graded as they are written")
    effort = asked.hyperparameters.reasoning_effort if asked.hyperparameters else None
    if effort not in (None, "default"):
        raise unsupported("method.reinforcement.hyperparameters.reasoning_effort", "models here have one way to answer")
