"""Quantized bases: errors on real weights, speed and memory against LoRA over bfloat16, and a model of a 7B's shape.

    python -m benchmarks.quantize [errors] [train] [7b] [--model NAME] [--rows 8] [--longest 512] [--steps 3]
                                  [--rounds 2]
    python -m benchmarks.quantize survive loftq --model smollm2-135m-instruct

`errors`: each format on normal numbers, beside the constants that bitsandbytes' tests assert for NF4, and on all linear
layers of a model. `train`: the same rows, LoRA (rank 16 on all linear layers) over bfloat16, nf4, int8 and gguf, in
turn, round by round, a fresh process each; the first step is not timed. Speeds are per second of the processor, so that
what else a machine does counts little; take them with one thread. `7b`: random weights in the shape of
Qwen2.5-7B, written in NF4 shard by shard to a temporary folder, then 20 steps. `survive`: what is left of
an update of low rank when the merged weights are quantized, over a base that lies on the codes' grid and over one that
does not, on the model's own matrices. `loftq`: how far a model's log-probabilities are from the unquantized one's with
nf4 alone and with LoftQ, and the error of the weights after one to five rounds of it. Without a word: `errors train`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks._workloads import SUPERVISED, Workload, rows_of, write_lines
from luthier import registry
from luthier.models.catalog import resolve
from luthier.models.memory import peak_memory_bytes
from luthier.models.packed import Stored, empty_model, linear_layers, quantizer, write_packed
from luthier.recipe import QUANTIZERS

FOLDER = Path(__file__).parent.parent
MODEL = "qwen2.5-coder-1.5b-instruct"
SEVEN = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    **{"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}
GIB = 2**30


def errors(model: str) -> None:
    """The error that each format makes, on normal numbers and on the model's own."""
    from transformers import AutoConfig

    normal = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    files = resolve(model)
    layers = linear_layers(empty_model(AutoConfig.from_pretrained(files.folder), torch.float32))
    columns = f"{'format':<8} {'bits':>6} {'N(0,1): mean |error|':>21} {'mean |error / w|':>17}"
    print(f"{columns} {model + ': error / norm':>44}")
    for name in registry.names(QUANTIZERS):
        made = dense(name, normal)
        wrong = (made - normal).abs()
        off, norm = 0.0, 0.0
        stored = Stored(files)
        for layer, linear in layers.items():
            weight = stored.take(f"{layer}.weight", linear.weight.shape).float()
            off += float((dense(name, weight) - weight).square().sum())
            norm += float(weight.square().sum())
        parts = quantizer(name).pack(normal)
        bits = 8 * sum(p.numel() * p.element_size() for p in parts.values()) / normal.numel()
        relative = float((wrong / normal.abs()).mean())
        print(
            f"{name:<8} {bits:>6.3f} {float(wrong.mean()):>21.6f} {relative:>17.6f} {(off / norm) ** 0.5:>44.5f}",
            flush=True,
        )
    print("bitsandbytes asserts for NF4 in blocks of 64: mean |error| 0.072798, mean |error / w| 0.203339")
    print("gguf: Q8_0, which a matrix gets that no file holds; what a file holds is taken as it lies, without an error")


def matrices(model: str, most: int = 14) -> list[Tensor]:
    """Linear layers of a model in float32, spread over its depth."""
    from transformers import AutoConfig

    files = resolve(model)
    layers = linear_layers(empty_model(AutoConfig.from_pretrained(files.folder), torch.float32))
    stored, chosen = Stored(files), list(layers.items())
    step = max(len(chosen) // most, 1) | 1  # odd, so that all kinds of layers come
    return [stored.take(f"{name}.weight", linear.weight.shape).float() for name, linear in chosen[::step]]


def survive(model: str) -> None:
    """The share of an update that is kept, and what comes beside it, by the update's size."""
    sizes = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    print(f"{model}: share kept, and what comes beside (in sizes of the update), mean over layers")
    print(f"{'written in':<12} {'base in':<10}" + "".join(f"{size:>14.1%}" for size in sizes))
    generator = torch.Generator().manual_seed(0)
    weights = matrices(model)
    for format, held in (("nf4", "nf4"), ("nf4", "none"), ("int8", "int8"), ("int8", "none")):
        cells = []
        for size in sizes:
            found = []
            for weight in weights:
                base = weight if held == "none" else dense(held, weight)
                a, b = (torch.randn(16, n, generator=generator) for n in base.shape)
                update = a.t() @ b
                update *= size * base.norm() / update.norm()
                moved = dense(format, base + update) - dense(format, base)
                kept = float((moved * update).sum() / update.square().sum())
                found.append((kept, float((moved - update).norm() / update.norm())))
            kept, beside = (statistics.mean(column) for column in zip(*found, strict=True))
            cells.append(f"{kept:>8.3f} {beside:>5.1f}")
        print(f"{format:<12} {held:<10}" + "".join(cells), flush=True)


@torch.no_grad()
def loftq(model: str) -> None:
    """Log-probabilities beside those of the unquantized model, and weights beside its own."""
    from luthier.adapters.lora import LoRA
    from luthier.models.load import load

    files = resolve(model)
    plain = load(files, "float32", "cpu")
    ids = torch.tensor(
        [plain.tokenizer((FOLDER / "docs/architecture.md").read_text(encoding="utf-8"))["input_ids"][:512]]
    )
    wanted: Any = plain.model(ids).logits.log_softmax(-1)
    print(f"{model}: divergence from the unquantized model, nats a token over 512 tokens of docs/architecture.md")
    for rank in (0, 16, 64):
        quantized = load(files, "float32", "cpu", quantize="nf4").model
        if rank:
            LoRA(init="loftq", rank=rank).inject(quantized, seed=0)
        found: Any = quantized(ids).logits.log_softmax(-1)
        divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
        print(f"  {'nf4' if not rank else f'nf4, loftq of rank {rank}':<24} {divergence:.4f}", flush=True)
    weights = matrices(model, 7)
    for rank in (16, 64):
        rounds: list[list[float]] = [[] for _ in range(6)]
        for weight in weights:
            update = torch.zeros_like(weight)
            rounds[0].append(float((weight - dense("nf4", weight)).norm() / weight.norm()))
            for number in range(1, 6):
                lost = weight - dense("nf4", weight - update)
                u, s, v = torch.linalg.svd(lost, full_matrices=False)
                update = (u[:, :rank] * s[:rank]) @ v[:rank]
                rounds[number].append(float((lost - update).norm() / weight.norm()))
        errors_of = ", ".join(f"{statistics.mean(errors):.4f}" for errors in rounds)
        print(f"  error / norm of weights, rank {rank}, after 0 to 5 rounds: {errors_of}", flush=True)


def dense(name: str, weight: Tensor) -> Tensor:
    kind = quantizer(name)
    return kind((weight.shape[0], weight.shape[1]), kind.pack(weight), None, torch.float32).dense(torch.float32)


class Own(threading.Thread):
    """Watches the memory of this process that is no file's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            held = process.memory_info()
            self.peak = max(self.peak, held.rss - held.shared)
            time.sleep(0.02)


def child(job: dict[str, Any]) -> None:
    """Train, and print seconds, losses and peaks."""
    from benchmarks.peers.luthier_train import run_of
    from luthier.engine.loop import train

    os.chdir(job["folder"])  # for checkpoints
    own = Own()
    own.start()
    started = time.perf_counter()
    run = run_of(job)
    loaded, peak = time.perf_counter() - started, peak_memory_bytes(run.device)
    done, processor, before = [], [], time.process_time()
    for step in train(run):
        done.append(step)
        processor.append(time.process_time() - before)
        before = time.process_time()
        if job["tell"]:
            print(
                f"step {step.number}: {step.seconds:.1f} s, loss {step.metrics['loss']:.4f}",
                file=sys.stderr,
                flush=True,
            )
    outcome = {
        "load_seconds": loaded,
        "load_peak": peak,
        "peak": peak_memory_bytes(run.device),
        "own": own.peak,
        "seconds": [step.seconds for step in done],
        "processor_seconds": processor,
        "losses": [step.metrics["loss"] for step in done],
        "tokens": [step.metrics["tokens"] for step in done],
    }
    print(json.dumps(outcome))


def ask(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.quantize", "--job", str(path)]
    done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def job_of(folder: Path, model: str, quantize: str, steps: int, work: Workload) -> dict[str, Any]:
    work, rows = replace(work, steps=steps), work.rows_per_step
    settings = {"model.precision": "bfloat16", "model.device": "cpu", "model.quantize": quantize}
    return {
        **{"folder": str(folder), "model": model, "rows": str(write_lines(folder / "rows.jsonl", rows_of(work)))},
        **{"objective": "sft", "full": False, "steps": steps, "rows_per_step": rows, "learning_rate": 1e-4},
        **{"settings": settings, "tell": False},
    }


def race(model: str, steps: int, work: Workload, rounds: int) -> None:
    """The same training over each base, in turn."""
    names = ["none", *registry.names(QUANTIZERS)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    print(f"{model}, {work.rows_per_step} rows of 60 to {work.longest} tokens a step, {steps} steps after the first")
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            for name in names:
                outcome = ask(job_of(Path(place), model, name, steps + 1, work), Path(place))
                found[name].append(outcome)
                seconds = ", ".join(f"{s:.1f}" for s in outcome["seconds"])
                losses = ", ".join(f"{loss:.4f}" for loss in outcome["losses"])
                busy = ", ".join(f"{s:.1f}" for s in outcome["processor_seconds"])
                print(
                    f"  round {number + 1}, {name:<5} seconds {seconds}; of the processor {busy}; losses {losses}",
                    flush=True,
                )
    print(
        f"{'base':<8} {'tokens/s':>9} {'of bf16':>8} {'peak GiB':>9} {'of bf16':>8} {'own GiB':>8} {'of bf16':>8} "
        f"{'loading GiB':>12} {'seconds':>8}"
    )
    for name in names:
        speeds, bf16 = [_speed(o) for o in found[name]], [_speed(o) for o in found["none"]]
        ratio = statistics.median(a / b for a, b in zip(speeds, bf16, strict=True))
        peak, own = (max(o[key] for o in found[name]) for key in ("peak", "own"))
        peak_bf16, own_bf16 = (max(o[key] for o in found["none"]) for key in ("peak", "own"))
        last = found[name][-1]
        print(
            f"{name:<8} {statistics.median(speeds):>9.0f} {ratio:>8.2f} {peak / GIB:>9.2f} {peak / peak_bf16:>8.2f} "
            f"{own / GIB:>8.2f} {own / own_bf16:>8.2f} {last['load_peak'] / GIB:>12.2f} {last['load_seconds']:>8.0f}"
        )


def _speed(outcome: dict[str, Any]) -> float:
    return float(sum(outcome["tokens"][1:]) / sum(outcome["processor_seconds"][1:]))


def seven(steps: int, work: Workload) -> None:
    """Write a model of a 7B's shape in NF4, then train it in a fresh process."""
    from transformers import AutoTokenizer, Qwen2Config

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "seven"
        tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL).folder)
        config = Qwen2Config(**SEVEN, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
        started = time.perf_counter()
        write_packed(folder, config, random_weights(config), "nf4")
        tokenizer.save_pretrained(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        peak = peak_memory_bytes(torch.device("cpu"))
        print(
            f"written: {size / GIB:.2f} GiB in {time.perf_counter() - started:.0f} s, "
            f"peak of memory {peak / GIB:.2f} GiB",
            flush=True,
        )
        job = job_of(Path(place), str(folder), "nf4", steps, work)
        outcome = ask({**job, "tell": True}, Path(place))
        print(
            f"trained: {steps} steps, {sum(outcome['tokens']):.0f} tokens in {sum(outcome['seconds']):.0f} s, "
            f"loss {outcome['losses'][0]:.4f} to {outcome['losses'][-1]:.4f}; "
            f"peak of memory {outcome['peak'] / GIB:.2f} GiB "
            f"(loading {outcome['load_peak'] / GIB:.2f} GiB, {outcome['load_seconds']:.0f} s)"
        )


def random_weights(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model, one at a time: small normal numbers, and ones for norms."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in empty_model(config, torch.bfloat16).named_parameters():
        made = torch.ones(parameter.shape) if name.endswith("norm.weight") else torch.empty(parameter.shape)
        yield name, (made if name.endswith("norm.weight") else made.normal_(0, 0.02, generator=generator)).bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["errors", "train"])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--job", help="for its own processes")
    given = parser.parse_args()
    if given.job:
        child(json.loads(Path(given.job).read_text(encoding="utf-8")))
        return
    if odd := sorted(set(given.what) - {"errors", "survive", "loftq", "train", "7b"}):
        parser.error(f"{', '.join(odd)}: expected errors, survive, loftq, train or 7b")
    if "errors" in given.what:
        errors(given.model)
    if "survive" in given.what:
        survive(given.model)
    if "loftq" in given.what:
        loftq(given.model)
    if "train" in given.what:
        work = replace(SUPERVISED[0], longest=given.longest, rows_per_step=given.rows or 8)
        race(given.model, given.steps or 3, work, given.rounds)
    if "7b" in given.what:
        seven(given.steps or 20, replace(SUPERVISED[0], longest=given.longest, rows_per_step=given.rows or 1))


if __name__ == "__main__":
    main()
