"""llama.cpp (by xllamacpp) on the GGUF file that the weights come from; rows share slots. Prints an outcome."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp

from benchmarks.peers._outcome import Once, read_job

job = read_job()
prompts, limit, slots = job["prompts"], job["new_tokens"], job["slots"]
settings = xllamacpp.CommonParams()
settings.model.path = job["gguf"]
settings.n_parallel = slots
settings.n_ctx = slots * (max(map(len, prompts)) + limit + 8)
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job["threads"]
settings.verbosity = -1
server = xllamacpp.Server(settings)


def answer(prompt: list[int]) -> tuple[str, int]:
    """The text of an answer and how many tokens it has."""
    asked = {"prompt": prompt, "n_predict": limit, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
    found: Any = server.handle_completions(asked)
    return found["choices"][0]["text"], found["usage"]["completion_tokens"]


answer(prompts[0])
with Once(job["started"]) as once, ThreadPoolExecutor(slots) as pool:
    found = list(pool.map(answer, prompts))
pairs = zip(found, job["first_texts"], strict=True)
same = sum(text.lstrip().startswith(first) for (text, _), first in pairs) / len(found)
written = sum(count for _, count in found)
once.tell(written + sum(map(len, prompts)), written, same)
