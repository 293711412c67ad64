"""Training and writing on this machine, and where the time of one training step goes.

Rows of about 160 tokens, LoRA of rank 16 on all linear layers, 8 rows a step, the default model: every row with a text
of its own, and the same rows behind a system prompt that they share, where a batch computes the prompt once. Then 32
prompts are answered with 32 tokens each. No limit is set: these figures depend on the machine.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._rows import write_recipe
from luthier import assemble
from luthier.data.source import micro_batches
from luthier.data_stage import prepare_data
from luthier.engine.run import Run
from luthier.models.forest import build_batch
from luthier.models.generate import generate
from luthier.models.scorer import forest_mode
from luthier.progress import Silent
from luthier.recipe import load
from luthier.run_folder import RunFolder
from luthier.stages import Opened, open_run

STEPS = 5


def opened_run(folder: Path, words: int, system_words: int) -> tuple[Opened, Run]:
    recipe_file = write_recipe(folder, words, system_words=system_words)
    recipe = load(recipe_file)
    place = RunFolder(folder / "run", listed=False)
    place.open(recipe, recipe_file)
    opened = open_run(recipe, place, prepare_data(recipe, place, Silent()), Silent())
    trainable = assemble.make_trainable(recipe, opened.loaded)
    return opened, assemble.build_run(recipe, opened.loaded, trainable, opened.units, "", place.path)


def step(run: Run, number: int) -> tuple[int, int]:
    """Gradients of one step; returns its tokens, as the rows have them and as they were computed."""
    logical = computed = 0
    for rows in micro_batches(run.source.step(number), run.micro_batch_tokens):
        batch = build_batch(rows).to(run.device)
        with forest_mode(run.model):
            run.objective.loss(run.models, batch).total.backward()
        logical, computed = logical + batch.logical_tokens, computed + len(batch.forest.ids_N)
    run.optimizer.zero_grad(set_to_none=True)
    return logical, computed


def training(name: str, run: Run) -> None:
    step(run, 1)
    started = time.perf_counter()
    counts = [step(run, number) for number in range(2, STEPS + 2)]
    seconds = time.perf_counter() - started
    logical, computed = (sum(part) for part in zip(*counts, strict=True))
    print(f"{name:<24} {logical / seconds:6.0f} tokens/s of the rows, {computed / seconds:6.0f} computed")


def writing(opened: Opened) -> None:
    rows: list[Any] = list(opened.data.train)[:32]
    prompts = [opened.template.prompt_ids(row.prompt) for row in rows]
    started = time.perf_counter()
    generate(opened.loaded, prompts, max_new_tokens=32, stop_ids=frozenset())
    print(
        f"{'writing, 32 at once':<24} {32 * 32 / (time.perf_counter() - started):6.0f} new tokens/s, prompts included"
    )


def operations(run: Run) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(run, 1)
    averages = seen.key_averages()
    whole = sum(event.self_cpu_time_total for event in averages)
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:8]:
        print(f"    {event.self_cpu_time_total / whole:5.1%}  {event.key[:70]}")


def main() -> int:
    print(f"threads: {torch.get_num_threads()}")
    with tempfile.TemporaryDirectory() as place:
        opened, run = opened_run(Path(place), words=90, system_words=0)
        print(f"base weights in {opened.loaded.dtype}")
        training("training, nothing shared", run)
        print("where a step's time goes:")
        operations(run)
    with tempfile.TemporaryDirectory() as place:
        opened, run = opened_run(Path(place), words=30, system_words=80)
        training("training, shared prompt", run)
        writing(opened)
    return 0


if __name__ == "__main__":
    sys.exit(main())
