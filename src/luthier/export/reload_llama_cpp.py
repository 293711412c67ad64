"""Opens a GGUF export with llama.cpp (the wheel `xllamacpp`) and answers the gate's questions.

    python -m luthier.export.reload_llama_cpp JOB.json ANSWERS.json

Nothing of Luthier is imported here. The prompt is rendered by llama.cpp's own Jinja from the template in the file, and
cut into tokens by its own tokenizer. The ends of a turn are those that the file declares: llama.cpp also guesses some
from how tokens are spelled, which other programs do not.
"""

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xllamacpp
from gguf import GGUFReader

SLOTS = 8
SPARE_TOKENS = 16
STOPS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def main(job_path: str, answers_path: str) -> None:
    """Answer every question of the job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    limit = job["max_new_tokens"]
    slots = min(SLOTS, len(job["questions"]))
    settings = xllamacpp.CommonParams()
    settings.model.path = job["artifact"]
    settings.n_parallel = slots
    settings.n_ctx = slots * (job["longest_prompt"] + limit + SPARE_TOKENS)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job["threads"]
    settings.verbosity = -1
    server = _Server(xllamacpp.Server(settings))
    with ThreadPoolExecutor(slots) as pool:
        answers = list(pool.map(lambda question: server.answer(question, limit), job["questions"]))
    fields = GGUFReader(job["artifact"]).fields
    stops = sorted({int(fields[name].contents()) for name in STOPS if name in fields})
    found = {"program": f"llama.cpp (xllamacpp {version('xllamacpp')})", "stop_ids": stops, "answers": answers}
    Path(answers_path).write_text(json.dumps(found), encoding="utf-8")


class _Server:
    """llama.cpp's own HTTP server, on the loopback address."""

    def __init__(self, server: Any) -> None:
        self._server = server  # it lives as long as this object
        self._url = server.listening_address
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer(self, question: dict[str, Any], limit: int) -> dict[str, Any]:
        """Rendered prompt, its ids, the greedy answer and the log-probability of each of its tokens."""
        asked = {"messages": [_as_openai(message) for message in question["messages"]]}
        prompt = self._post("/apply-template", asked | ({"tools": question["tools"]} if question["tools"] else {}))
        text = prompt["prompt"]
        ids = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        greedy = {"temperature": 0, "n_probs": 1, "return_tokens": True}
        found = self._post("/completion", {"prompt": ids, "n_predict": limit, **greedy})
        return {
            "prompt": text,
            "prompt_ids": ids,
            "ids": found["tokens"],
            "logprobs": aligned(found["tokens"], found["completion_probabilities"]),
            "finished": found["stop_type"] == "eos",
            "text": found["content"],
        }

    def _post(self, path: str, values: dict[str, Any]) -> Any:
        body = json.dumps(values).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        with self._opener.open(request) as reply:
            return json.load(reply)


def aligned(ids: list[int], told: list[dict[str, Any]]) -> list[float | None]:
    """The log-probability of each token, None where it is not known.

    llama.cpp tells none for a token that ends within a character, and not which it left out: `told` is a part of `ids`
    in their order. A place is certain where the earliest and the latest way to fit that part in agree.
    """
    names = [token["id"] for token in told]
    first = _fit(ids, names)
    last = [len(ids) - 1 - place for place in reversed(_fit(ids[::-1], names[::-1]))]
    logprobs: list[float | None] = [None] * len(ids)
    for token, early, late in zip(told, first, last, strict=True):
        if early == late:
            logprobs[early] = token["logprob"]
    return logprobs


def _fit(ids: list[int], part: list[int]) -> list[int]:
    """The earliest place of each element of `part` in `ids`, in order."""
    places, at = [], 0
    for name in part:
        at = ids.index(name, at) + 1
        places.append(at - 1)
    return places


def _as_openai(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments of tool calls as text, which is how the API of llama.cpp takes them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [json.dumps(call["function"]["arguments"], ensure_ascii=False) for call in calls]
    changed = [
        {**call, "function": {**call["function"], "arguments": text}} for call, text in zip(calls, texts, strict=True)
    ]
    return {**message, "tool_calls": changed}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
