"""The few HTTP calls of a Qdrant server that Luthier makes, answered from qdrant-client's local mode on the loopback.

It is no Qdrant: it shows that what is sent over HTTP is sent as the published interface has it, that keys are sent, and
what refusals look like. Of a real server's index it shows nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from qdrant_client import QdrantClient, models


def application(client: QdrantClient, key: str | None, asked: list[str]) -> FastAPI:
    app = FastAPI()

    def told(result: Any) -> dict[str, Any]:
        return {"result": result, "status": "ok", "time": 0.0}

    @app.middleware("http")
    async def require_key(request: Request, call_next: Any) -> Response:
        asked.append(f"{request.method} {request.url.path}")
        if key is not None and request.headers.get("api-key") != key:
            return JSONResponse({"status": {"error": "Must provide an API key"}}, status_code=401)
        answer: Response = await call_next(request)
        return answer

    @app.get("/collections/{name}/exists")
    def exists(name: str) -> dict[str, Any]:
        return told({"exists": client.collection_exists(name)})

    @app.put("/collections/{name}")
    def create(name: str, body: dict[str, Any]) -> dict[str, Any]:
        return told(client.create_collection(name, vectors_config=models.VectorParams(**body["vectors"])))

    @app.post("/collections/{name}/points/count")
    def count(name: str, body: dict[str, Any]) -> dict[str, Any]:
        return told({"count": client.count(name, exact=body["exact"]).count})

    @app.put("/collections/{name}/points")
    def upsert(name: str, body: dict[str, Any], wait: bool) -> dict[str, Any]:
        assert wait, "a point that is not stored yet is not found"
        client.upsert(name, points=models.Batch(**body["batch"]))
        return told({"operation_id": 0, "status": "completed"})

    @app.post("/collections/{name}/points/query/batch")
    def query(name: str, body: dict[str, Any]) -> dict[str, Any]:
        requests = [models.QueryRequest(**one) for one in body["searches"]]
        found = client.query_batch_points(name, requests=requests)
        return told([one.model_dump() for one in found])

    return app


@contextmanager
def served(key: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that ends with the block, and what it was asked."""
    asked: list[str] = []
    app = application(QdrantClient(":memory:"), key, asked)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    (socket,) = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}", asked
    finally:
        server.should_exit = True
        thread.join()
