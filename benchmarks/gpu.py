"""Every path that only a GPU takes, checked against the CPU and timed. One command on a machine with CUDA: `make gpu`.

Checks, each with its tolerance: attention over a forest against rows one by one (values and gradients; bfloat16 by
flash attention level by level, float32 and short windows by FlexAttention), tokens that must not see one another,
compiled layers, the fused optimizer against the plain one, training by LoRA, by all weights and on pairs against the
same training on the CPU, a resumed run against an undisturbed one, and greedy answers. Then speeds and the peak of
memory of the default model, and of a model of 1.5 billion random weights by each way to compute its layers. Exits with
1 if a check fails and with 2 where there is no GPU; `--device cpu` runs the same on the CPU, which checks the script.

    python -m benchmarks.gpu [--device cuda] [--model NAME] [--only CHECK]
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks._gpu import (
    Report,
    forget_peak,
    large_model,
    learn,
    peak_of,
    random_rows,
    rows,
    scored,
    seconds_of,
    tiny,
)
from benchmarks._gpu_quantized import quantized
from benchmarks._workloads import PAIRS, SUPERVISED, Workload, rows_of, write_lines
from benchmarks.peers.luthier_train import run_of
from luthier.adapters.lora import LoRA
from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.models import attention as attention_module
from luthier.models.catalog import resolve
from luthier.models.forest import build_batch
from luthier.models.generate import generate
from luthier.models.kernels import levels as levels_module
from luthier.models.kernels.compiled import compile_layers
from luthier.models.load import LoadedModel, load, wait_for
from luthier.recipe import ModelSettings

SHORT = replace(SUPERVISED[0], steps=6)
FEW = (replace(SHORT, steps=3), replace(SUPERVISED[3], steps=3), replace(PAIRS, steps=3))


def attention(report: Report, device: torch.device) -> None:
    """The forest on the device against the same rows one by one on the CPU."""
    for window in (None, 64):
        for precision, limit in ((torch.float32, 2e-3), (torch.bfloat16, 6e-2)):
            wanted, direction = [], torch.zeros(0)
            for row in rows():
                values, gradient = scored(tiny(window), [row], torch.device("cpu"))
                wanted.append(values)
                direction = gradient if not len(direction) else direction + gradient
            found, gradient = scored(tiny(window).to(device, precision), rows(), device)
            name = f"forest, window {window}, {str(precision).removeprefix('torch.')}"
            report.check(f"{name}: log-probabilities", float((found - torch.cat(wanted)).abs().max()), limit)
            turned = 1 - float(torch.nn.functional.cosine_similarity(gradient, direction, dim=0))
            report.check(f"{name}: turn of the gradient", turned, limit / 10)
    given = rows()
    other = replace(given[5], ids=given[5].ids[:150] + tuple(reversed(given[5].ids[150:])))
    count = sum(row.trained_tokens for row in given[:5])
    for precision in (torch.float32, torch.bfloat16):
        a, b = (scored(tiny(None).to(device, precision), [*given[:5], last], device)[0] for last in (given[5], other))
        name = f"leak from a changed row into the others, {str(precision).removeprefix('torch.')}"
        report.check(name, float((a - b)[:count].abs().max()), 0.0)


def compiled(report: Report, device: torch.device) -> None:
    """Compiled layers against the same layers as they are."""
    model = tiny(None).to(device, torch.bfloat16).train()
    plain = [scored(model, given, device) for given in (rows(), rows(shared=0))]
    compile_layers(model)
    for name, given, (values, gradient) in zip(
        ("shared prefix", "no prefix"), (rows(), rows(shared=0)), plain, strict=True
    ):
        found, direction = scored(model, given, device)
        report.check(f"compiled layers, {name}: log-probabilities", float((found - values).abs().max()), 6e-2)
        turned = 1 - float(torch.nn.functional.cosine_similarity(direction, gradient, dim=0))
        report.check(f"compiled layers, {name}: turn of the gradient", turned, 6e-3)


def optimizer(report: Report, device: torch.device) -> None:
    """torch's fused AdamW against the plain one."""

    def moved(fused: bool) -> Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(300, 70, device=device))
        adamw = torch.optim.AdamW([weight], lr=1e-3, fused=fused)
        for step in range(5):
            weight.grad = torch.sin(weight.detach() + step)
            adamw.step()
        return weight.detach().cpu()

    # five steps of 1e-3; weights of up to 4 are rounded to 5e-7, in another order
    report.check("fused AdamW against plain", float((moved(True) - moved(False)).abs().max()), 5e-6)


def training(report: Report, work: Workload, device: torch.device | str, folder: Path, **settings: Any) -> Run:
    """A training of the workload at step 0."""
    run = run_of(
        {
            "folder": str(folder),
            "model": str(resolve(report.model).folder),
            "rows": str(write_lines(folder / "rows.jsonl", rows_of(work))),
            "objective": "dpo" if work.kind == "pairs" else "sft",
            "full": work.full,
            "steps": work.steps,
            "rows_per_step": work.rows_per_step,
            "learning_rate": 1e-5 if work.full else 5e-4 if work.kind == "rows" else 1e-4,
            "settings": {"model.device": str(device), **settings},
        }
    )
    return replace(run, checkpoints=folder / "checkpoints")


def losses(run: Run) -> Iterator[float]:
    for step in train(run):
        yield step.metrics["loss"]


def trainings(report: Report, device: torch.device) -> None:
    """Each kind of training against the CPU in the same precision, step by step."""
    for work in FEW:
        for precision, limit in (("float32", 2e-2), ("bfloat16", 6e-2)):
            with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
                wanted = list(losses(training(report, work, "cpu", Path(a), **{"model.precision": precision})))
                found = list(losses(training(report, work, device, Path(b), **{"model.precision": precision})))
            worst = max(abs(x - y) for x, y in zip(found, wanted, strict=True))
            report.check(f"{work.what}, {precision}: loss of a step against the CPU's", worst, limit)


def resumed(report: Report, device: torch.device) -> None:
    """Six steps against three, a checkpoint, and three in a new run; other bits are reported, not refused."""

    def final(stop: bool) -> Tensor:
        with tempfile.TemporaryDirectory() as place:
            settings = {"training.save_every": 3}
            run = replace(
                training(report, SHORT, device, Path(place), **settings), checkpoints=Path(place) / "checkpoints"
            )
            for step in train(run):
                if stop and step.number == 3:
                    fresh = training(report, SHORT, device, Path(place), **settings)
                    run = replace(fresh, checkpoints=run.checkpoints)
                    found = checkpoint.latest(run.checkpoints)
                    assert found is not None
                    checkpoint.restore(run, found.folder)
                    for _ in train(run):
                        pass
                    break
            return torch.cat([p.detach().flatten().cpu() for p in run.injected.trainable.values()])

    whole = final(False)
    report.say(f"note   an undisturbed run again: {'same bits' if torch.equal(whole, final(False)) else 'other bits'}")
    report.check("resumed run against an undisturbed one", float((whole - final(True)).abs().max()), 1e-3)


def answers(report: Report, device: torch.device) -> None:
    """First tokens of greedy answers against the CPU in float32."""

    def first(loaded: LoadedModel) -> list[int]:
        prompts = [loaded.tokenizer(f"The capital of {place} is")["input_ids"] for place in PLACES]
        return [a.ids[0] for a in generate(loaded, prompts, max_new_tokens=8, stop_ids=frozenset())]

    wanted = first(load(resolve(report.model), "float32", "cpu"))
    for precision, limit in (("float32", 0.0), ("bfloat16", 0.15)):
        found = first(load(resolve(report.model), precision, str(device)))
        other = sum(a != b for a, b in zip(found, wanted, strict=True)) / len(wanted)
        report.check(f"answers, {precision}: share of other first tokens", other, limit)


PLACES = ("France", "Italy", "Spain", "Japan", "Egypt", "Peru", "Kenya", "Norway", "Chile", "Cuba", "India", "Greece")


def speeds(report: Report, device: torch.device) -> None:
    """Tokens a second of training and of answering."""
    for work in (*SUPERVISED, PAIRS):
        with tempfile.TemporaryDirectory() as place:
            forget_peak(device)
            steps = list(train(training(report, work, device, Path(place))))
        tokens, seconds = (sum(f(s) for s in steps[1:]) for f in (lambda s: s.metrics["tokens"], lambda s: s.seconds))
        report.say(
            f"speed  {work.what}: {tokens / seconds:,.0f} tokens/s, first step {steps[0].seconds:.1f} s, "
            f"{peak_of(device):.2f} GiB"
        )
    loaded = load(resolve(report.model), device=str(device))
    prompts = [loaded.tokenizer(f"Tell me about {place}. " * 20)["input_ids"] for place in PLACES * 8]
    generate(loaded, prompts[:2], max_new_tokens=4, stop_ids=frozenset())
    start = time.perf_counter()
    generate(loaded, prompts, max_new_tokens=64, stop_ids=frozenset())
    wait_for(device)
    written = len(prompts) * 64
    report.say(f"speed  {len(prompts)} answers of 64 tokens: {written / (time.perf_counter() - start):,.0f} tokens/s")


def large(report: Report, device: torch.device) -> None:
    """Speed of LoRA on a model of Qwen2.5-1.5B's shape, by each way to compute its layers."""
    model = large_model(device)
    trained = list(LoRA(rank=16).inject(model, 0).trainable.values())
    weights = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    shapes = {
        "32 rows of 60 to 512": (32, 60, 512, 0),
        "the same behind 430": (32, 60, 512, 430),
        "4 of 2,048": (4, 2048, 2048, 0),
    }
    generator = random.Random(0)
    batches = {
        name: [build_batch(random_rows(generator, model.config.vocab_size, *shape)).to(device) for _ in range(6)]
        for name, shape in shapes.items()
    }
    square = (
        torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) if device.type == "cuda" else torch.ones(64, 64)
    )
    rate = 2 * len(square) ** 3 / seconds_of(lambda: square @ square, device)

    def measure(what: str) -> None:
        for name, given in batches.items():
            forget_peak(device)
            times = [seconds_of(partial(learn, model, batch, trained), device, 1) for batch in given]
            tokens, logical = (
                sum(f(b) for b in given[3:]) for f in (lambda b: len(b.forest.ids_N), lambda b: b.logical_tokens)
            )
            taken = sum(times[3:])
            report.say(
                f"speed  1.5 B, {what}, {name}: {logical / taken:,.0f} tokens/s ({tokens / taken:,.0f} computed), "
                f"{4 * weights * tokens / taken / rate:.0%} of the matrix rate, first {times[0]:.1f} s, "
                f"{peak_of(device):.1f} GiB"
            )

    with mock.patch.object(attention_module, "serves", lambda *_: False):
        measure("FlexAttention")
    measure("flash by levels")
    with mock.patch.object(levels_module, "_SameBitsEachTime", nullcontext):
        measure("flash by levels, sums in any order")
    compile_layers(model)
    measure("flash by levels, compiled layers")


CHECKS: tuple[Callable[[Report, torch.device], None], ...] = (
    attention,
    compiled,
    optimizer,
    trainings,
    resumed,
    answers,
    speeds,
    large,
    quantized,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--model", default=ModelSettings().name, help="a name of the catalogue, a folder or a .gguf file"
    )
    parser.add_argument("--only", choices=[check.__name__ for check in CHECKS])
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here, so nothing was checked")
        return 2
    report = Report(asked.model)
    if device.type == "cuda":
        report.say(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for check in CHECKS:
        if asked.only in (None, check.__name__):
            start = time.perf_counter()
            check(report, device)
            report.say(f"       {check.__name__} took {time.perf_counter() - start:.0f} s")
    report.say(f"{report.failed} checks failed" if report.failed else "every check held")
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
