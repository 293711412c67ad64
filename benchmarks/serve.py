"""Requests of many adapters in one server, beside the same requests of one adapter and of the base.

Rounds are taken in turn (one, many, base, one, many, base, ...), and rates are of new tokens, reading the prompts
included. Adapters are LoRAs of rank 16 on all linear layers of the default model, random, each held apart from the
others. Every request has a prompt of its own behind a system prompt that all share, and writes so many tokens.

    python -m benchmarks.serve [--adapters 50] [--requests 128] [--new-tokens 60] [--rounds 3] [--family lora]

Exits with 1 if many adapters reach less than 0.7 of one adapter's rate.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import psutil
import torch
from torch import nn

from luthier import registry
from luthier.adapters.base import Adapter, Injected
from luthier.data.templates import build_template
from luthier.examples import Message
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.recipe import ADAPTERS, ModelSettings
from luthier.serve.backend import Backend
from luthier.serve.limits import Limits
from luthier.serve.models import ServedModel, SharedBase
from luthier.serve.work import Sampling, Work

LEAST = 0.7
SYSTEM = "You answer in one JSON object with the parts of the address that you are given, and in nothing else. " * 2


def random_adapter(family: str, seed: int) -> Callable[[nn.Module], Injected]:
    """Puts a fresh adapter with other numbers into a model."""

    def inject(model: nn.Module) -> Injected:
        kind = registry.load_class(ADAPTERS, family, Adapter)  # type: ignore[type-abstract]
        injected = kind().inject(model, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in injected.trainable.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.001)
        return injected

    return inject


async def round_of(backend: Backend, models: Sequence[str], prompts: Sequence[list[int]], tokens: int) -> float:
    """New tokens a second when all requests are there at once."""
    base = backend.models["base"]
    assert isinstance(base, ServedModel)
    stops = dict.fromkeys(base.stop_ids, -1000.0)
    works = [
        Work(models[i % len(models)], tuple(ids), tokens, Sampling(temperature=0, logit_bias=stops))
        for i, ids in enumerate(prompts)
    ]
    started = time.perf_counter()
    done = await asyncio.gather(*(backend.complete(work) for work in works))
    seconds = time.perf_counter() - started
    assert all(completion.done.generated_tokens == tokens for (completion,) in done)
    return len(works) * tokens / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--family", default="lora", help="of adapter, with its defaults")
    asked = parser.parse_args()
    process = psutil.Process()
    shared = SharedBase(load(resolve(ModelSettings().name)))
    template = build_template(shared.loaded)
    base = shared.base(template)
    held = [process.memory_info().rss]
    adapters: list[ServedModel] = []
    started = time.perf_counter()
    for seed in range(asked.adapters):
        adapters.append(shared.adapted(f"adapter-{seed}", template, random_adapter(asked.family, seed)))
    backend = Backend([base, *adapters], Limits(), queue=asked.requests)
    held.append(process.memory_info().rss)
    each, seconds = (held[1] - held[0]) / asked.adapters / 2**20, (time.perf_counter() - started) / asked.adapters
    print(
        f"{asked.adapters} adapters ({asked.family}) taken in, {seconds:.2f} s and {each:.1f} MiB each; "
        f"{len(backend.models)} models in {held[1] / 2**30:.2f} GiB"
    )
    texts = [f"{n} N Main St Apt {n % 7}, Springfield IL {62000 + n}" for n in range(asked.requests)]
    prompts = [template.prompt_ids((Message("system", SYSTEM), Message("user", text))) for text in texts]
    print(
        f"{asked.requests} requests at once, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, "
        f"{asked.new_tokens} new tokens each, {Limits().rows} rows together"
    )
    mixes = {"one adapter": ["adapter-0"], "many adapters": [a.name for a in adapters], "base": ["base"]}
    rates: dict[str, list[float]] = {mix: [] for mix in mixes}
    backend.start()
    try:
        for names in mixes.values():  # what is read for the first time is read now
            asyncio.run(round_of(backend, names, prompts, 2))
        for number in range(asked.rounds):
            for mix, names in mixes.items():
                rates[mix].append(asyncio.run(round_of(backend, names, prompts, asked.new_tokens)))
            print(f"    round {number + 1}: " + ", ".join(f"{mix} {found[-1]:.0f}" for mix, found in rates.items()))
    finally:
        backend.stop()
    print("| requests of | new tokens a second | of one adapter's |\n|---|---|---|")
    one = statistics.median(rates["one adapter"])
    for mix, found in rates.items():
        middle = statistics.median(found)
        print(f"| {mix} | {middle:.0f} ({min(found):.0f} to {max(found):.0f}) | {middle / one:.2f} |")
    return int(statistics.median(rates["many adapters"]) < LEAST * one)


if __name__ == "__main__":
    sys.exit(main())
