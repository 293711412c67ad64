"""A stand-in for the interpreter of an environment with vLLM: started by `engine.vllm` as that is, and answers by rule.

Its replies follow from the prompt, the seed and the bytes of the adapter that is loaded; its log-probabilities mean
nothing. What it was asked stands in a file. `--trouble NAME` lets something go wrong. The standard library alone.
"""

import hashlib
import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

SCRIPT = """#!/bin/sh
exec {python} {file} "$@"
"""


def interpreter(folder: Path) -> Path:
    """What stands in for a python."""
    path = folder / "python"
    path.write_text(SCRIPT.format(python=sys.executable, file=__file__), encoding="utf-8")
    path.chmod(0o755)
    return path


class _Server(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 256
    daemon_threads = True


class _Engine(BaseHTTPRequestHandler):
    trouble = ""
    told = Path()
    adapters: dict[str, str] = {}

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, file=sys.stderr, flush=True)

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.told.open("a", encoding="utf-8") as told:  # a line is one write
            told.write(json.dumps([self.path, body]) + "\n")
        if self.path == "/v1/load_lora_adapter":
            weights = (Path(body["lora_path"]) / "adapter_model.safetensors").read_bytes()
            self.adapters[body["lora_name"]] = hashlib.sha256(weights).hexdigest()
            self._answer(400 if self.trouble == "load" else 200, {"error": "expected target modules in ['q_proj']"})
        elif self.path == "/v1/unload_lora_adapter":
            self._answer(200 if self.adapters.pop(body["lora_name"], None) else 404, {})
        elif self.trouble == "death":
            os._exit(9)
        else:
            if self.trouble == "slow":
                time.sleep(3)
            self._answer(500 if self.trouble == "failure" else 200, {"choices": [self._choice(body)]})

    def _choice(self, body: Any) -> dict[str, Any]:
        decides = [body["prompt"], body["seed"], body["temperature"], self.adapters[body["model"]]]
        ids = list(hashlib.sha256(repr(decides).encode()).digest()[: body["max_tokens"]])
        end = next((i for i, one in enumerate(ids) if one in body["stop_token_ids"]), None)
        ids = ids if end is None else ids[: end + 1]
        choice: dict[str, Any] = {
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": [-0.5] * len(ids)},
            "finish_reason": "length" if end is None else "stop",
        }
        wrong: dict[str, Any] = {
            "prompt": {"prompt_token_ids": [*body["prompt"], 0]},
            "count": {"logprobs": {"token_logprobs": [-0.5] * (len(ids) + 1)}},
            "infinite": {"logprobs": {"token_logprobs": [float("nan")] * len(ids)}},
            "early": {"token_ids": ids[:1], "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": "stop"},
            "old": {"token_ids": None},
        }
        return {**choice, **wrong.get(self.trouble, {})}

    def _answer(self, status: int, values: Any) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main(arguments: list[str]) -> None:
    if arguments[0] == "-c":  # whether vLLM is there
        sys.exit(0)
    given = dict(pairwise(arguments))
    _Engine.trouble, _Engine.told = given.get("--trouble", ""), Path(given["--told"])
    if _Engine.trouble == "start":
        sys.exit("no room for the cache")
    with _Server(given["--uds"], _Engine) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
