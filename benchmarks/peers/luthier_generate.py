"""Luthier's own generator on prompts that are given as tokens. Prints an outcome."""

from benchmarks.peers._outcome import Once, read_job
from luthier.models.catalog import resolve
from luthier.models.generate import generate
from luthier.models.load import load
from luthier.models.memory import tokens_in_flight

job = read_job()
prompts = job["prompts"]
loaded = load(resolve(job["model"]))
generate(loaded, prompts[:2], max_new_tokens=2, stop_ids=frozenset())
with Once(job["started"]) as once:
    found = generate(
        loaded,
        prompts,
        max_new_tokens=job["new_tokens"],
        stop_ids=frozenset(),
        batch_tokens=tokens_in_flight(loaded.model),
    )
same = sum(a.ids[0] == b for a, b in zip(found, job["first_tokens"], strict=True)) / len(found)
written = sum(len(answer.ids) for answer in found)
once.tell(written + sum(map(len, prompts)), written, same)
