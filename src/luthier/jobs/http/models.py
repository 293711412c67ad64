"""/v1/models: the bases that can be trained, what else the operator serves, and what the project's jobs made."""

from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from luthier.jobs.gateway import Gateway, Served
from luthier.jobs.http.caller import caller_of
from luthier.jobs.http.declared import Answer
from luthier.jobs.http.fine_tuning import Names
from luthier.jobs.job_folder import remove_model
from luthier.jobs.job_store import JobStore
from luthier.jobs.objects import DeletedModel, ModelList, ModelObject
from luthier.serve.api_error import model_not_found


class ModelRoutes:
    """The handlers; `folder` is that of all jobs."""

    def __init__(self, jobs: JobStore, names: Names, gateway: Gateway, folder: Path) -> None:
        self._jobs, self._names, self._gateway, self._folder = jobs, names, gateway, folder

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/models", self.listed, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.get, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.delete, methods=["DELETE"], response_model=None)

    def listed(self, request: Request) -> Answer[ModelList]:
        """GET /v1/models"""
        return Answer({"object": "list", "data": self._cards(request)})

    def get(self, request: Request, name: str) -> Answer[ModelObject]:
        """GET /v1/models/{model}"""
        cards = self._cards(request)
        card = next((card for card in cards if card["id"] == name), None)
        if card is None:
            raise model_not_found(name, [card["id"] for card in cards])
        return Answer(card)

    async def delete(self, request: Request, name: str) -> Answer[DeletedModel]:
        """DELETE /v1/models/{model}: one that a job of the project made, and its weights"""
        row, is_last = await run_in_threadpool(self._jobs.delete_model, caller_of(request).project_id, name)
        await self._gateway.forget(Served.of(row))
        await run_in_threadpool(remove_model, self._folder, row["job_id"], row["folder"], is_last)
        return Answer({"id": name, "object": "model", "deleted": True})

    def _cards(self, request: Request) -> list[ModelObject]:
        bases = [_card(name, 0, "luthier") for name in self._names.listed]
        trained = self._jobs.models(caller_of(request).project_id)
        return [*bases, *(_card(row["id"], row["created_at"], row["project_id"]) for row in trained)]


def _card(name: str, created: int, owner: str) -> ModelObject:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
