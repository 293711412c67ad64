"""What the checks of a GPU share: their report, small and large models of random weights, rows, and a clock."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.models.load import wait_for
from luthier.models.scorer import Scorer, forest_mode


@dataclass
class Report:
    """Lines of checks; `failed` counts those that did not hold."""

    model: str
    failed: int = 0
    lines: list[str] = field(default_factory=list)

    def check(self, what: str, found: float, limit: float) -> None:
        """`found` must be at most `limit`; NaN is not."""
        good = found <= limit
        self.failed += not good
        self.say(f"{'ok   ' if good else 'WRONG'}  {what}: {found:.3g} (limit {limit:.3g})")

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)


def tiny(window: int | None) -> Any:
    """A random Mistral of two layers in float32, whose attention may have a window."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 200}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=window)
    return MistralForCausalLM(config).eval()


def rows(count: int = 6, shared: int = 150) -> list[Row]:
    """Rows that begin alike, each with 20 to 120 tokens of its own, half of them trained on."""
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 200, (n,), generator=generator).tolist())

    prefix = draw(shared)
    made = []
    for i in range(count):
        own = draw(20 * (i + 1))
        half = len(own) // 2
        made.append(Row(prefix + own, (0.0,) * (shared + len(own) - half) + (1.0,) * half, str(i)))
    return made


def scored(model: Any, given: list[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all trained-on tokens and the gradient of their sum, on the CPU in float64."""
    batch = build_batch(given).to(device)
    with forest_mode(model):
        logprobs = Scorer(model).token_logprobs(batch)
        gradients = torch.autograd.grad(logprobs.sum(), list(model.parameters()))
    return logprobs.detach().cpu().double(), torch.cat([g.flatten() for g in gradients]).cpu().double()


LARGE = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 1000}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True}


def large_model(device: torch.device) -> Any:
    """A model of Qwen2.5-1.5B's shape with random weights in bfloat16; on a CPU a small one."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**(LARGE if device.type == "cuda" else SMALL), **HEADS)
    with device:
        return Qwen2ForCausalLM(config).bfloat16().train()


def peak_of(device: torch.device) -> float:
    """GiB that torch held at most since `forget_peak`; NaN on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")


def forget_peak(device: torch.device) -> None:
    """Begin to look for the largest amount of memory again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def random_rows(
    generator: random.Random, vocabulary: int, count: int, shortest: int, longest: int, shared: int
) -> list[Row]:
    """Rows of random tokens behind `shared` common ones; the last 29 % of each row's own are trained on."""

    def draw(n: int) -> tuple[int, ...]:
        return tuple(generator.randrange(vocabulary) for _ in range(n))

    prefix, made = draw(shared), []
    for i in range(count):
        own = draw(generator.randint(shortest, longest))
        trained = round(0.29 * len(own))
        made.append(Row(prefix + own, (0.0,) * (shared + len(own) - trained) + (1.0,) * trained, str(i)))
    return made


def learn(model: Any, batch: Batch, trained: list[torch.nn.Parameter]) -> None:
    """One forward and backward pass."""
    with forest_mode(model):
        Scorer(model).token_logprobs(batch).sum().backward()
    for parameter in trained:
        parameter.grad = None


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Seconds of one call, over `times` of them; with more than one, a first is not counted."""
    if times > 1:
        work()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait_for(device)
    return (time.perf_counter() - start) / times
