"""A stand-in for a vLLM server: its contract for models, adapters and chats, as its documentation has it; no model."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from luthier.serve.server import Address, listen, url_of

BASE = "/models/the-base"
"""vLLM calls a base by its folder unless it is told otherwise."""
KEY = "the-key-of-vllm"
CONTEXT = 1200
"""Characters of the messages count as tokens."""


@dataclass
class SmallVllm:
    """What it has loaded, and what it was asked."""

    url: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def restart(self) -> None:
        """Forget what was loaded, as a process that is started again does."""
        self.adapters.clear()

    async def models(self, request: Request) -> Response:
        if refusal := _without_key(request):
            return refusal
        cards = [{"id": BASE, "object": "model", "parent": None}]
        cards += [{"id": name, "object": "model", "parent": BASE} for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def load(self, request: Request) -> Response:
        if refusal := _without_key(request):
            return refusal
        asked = await request.json()
        name, path = asked["lora_name"], asked["lora_path"]
        if not name or not path or name == BASE:
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        settings = Path(path) / "adapter_config.json"
        if not settings.is_file() or not (Path(path) / "adapter_model.safetensors").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        if json.loads(settings.read_text())["r"] > 16:
            return _error(500, "LoRA rank 32 is greater than max_lora_rank 16.")
        self.adapters[name] = path
        self.loads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        if refusal := _without_key(request):
            return refusal
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        if refusal := _without_key(request):
            return refusal
        asked = await request.json()
        if asked["model"] not in (BASE, *self.adapters):
            return _error(404, f"The model `{asked['model']}` does not exist.")
        if asked.get("max_tokens", 0) > 2**20:
            return _error(422, "This cannot be processed.")
        prompt = sum(len(message["content"]) for message in asked["messages"])
        if prompt + asked.get("max_tokens", 1) > CONTEXT:
            return _error(400, f"This model's maximum context length is {CONTEXT} tokens.")
        self.asked.append(asked)
        head = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
        words = ["I ", "am ", asked["model"]]
        if asked.get("stream"):
            chunks = [{"index": 0, "delta": {"role": "assistant", "content": word}} for word in words]
            frames = [{**head, "object": "chat.completion.chunk", "choices": [chunk]} for chunk in chunks]
            lines = [f"data: {json.dumps(frame, separators=(',', ':'))}\n\n" for frame in frames]
            return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(words), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage, "system_fingerprint": None}
        return JSONResponse(whole)

    async def complete(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        choice = {"index": 0, "text": " x", "finish_reason": "length", "logprobs": None}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": asked["model"]}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        return JSONResponse({**head, "choices": [choice], "usage": usage, "system_fingerprint": None})


def _without_key(request: Request) -> Response | None:
    known = request.headers.get("authorization") == f"Bearer {KEY}"
    return None if known else JSONResponse({"error": "Unauthorized"}, 401)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": status}}, status)


@contextmanager
def running() -> Iterator[SmallVllm]:
    """The stand-in on a loopback port."""
    small, app = SmallVllm(), FastAPI()
    app.add_api_route("/v1/models", small.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/load_lora_adapter", small.load, methods=["POST"], response_model=None)
    app.add_api_route("/v1/unload_lora_adapter", small.unload, methods=["POST"], response_model=None)
    app.add_api_route("/v1/chat/completions", small.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", small.complete, methods=["POST"], response_model=None)
    bound = listen(Address(port=0))
    small.url = url_of(bound)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield small
    finally:
        server.should_exit = True
        thread.join()
