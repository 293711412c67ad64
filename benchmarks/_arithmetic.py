"""The arithmetic that a training step cannot do without, and how fast this machine multiplies.

python -m benchmarks._arithmetic 2      (with two threads)
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data.source import Unit
from luthier.models.forest import build_batch

SHAPES = ((2048, 576, 1536), (2048, 1536, 576), (2048, 576, 576), (4096, 1024, 4096))


@dataclass(frozen=True)
class Decoder:
    """The numbers of a model that decide how much there is to multiply."""

    layers: int
    attention_width: int
    """Heads times their size."""
    linear: int
    """Numbers in the weights of all linear layers but the head."""
    head: int
    """Numbers in the head's weight."""
    low_rank: int
    """Numbers of the adapter; 0 if all weights train."""


def operations(units: Sequence[Unit], model: Decoder, extra_forwards: int = 0) -> float:
    """Floating-point operations of one step: what rows share is counted once, and the head only where it is needed.

    Forward, and backward to the activations; to the weights if they train. Attention counts what causality leaves of
    it, and twice as much backward. `extra_forwards` are of a reference, or of scoring before the update.
    """
    batch = build_batch([row for unit in units for row in unit])
    tokens, positions = len(batch.forest.ids_N), len(batch.hidden_H)
    linear = 2.0 * model.linear * tokens + 2.0 * model.head * positions
    attention = 4.0 * model.attention_width * float((batch.forest.positions_N + 1).sum()) * model.layers
    weights = linear if not model.low_rank else 2.0 * model.low_rank * tokens
    update = 0.0 if not model.low_rank else 4.0 * model.low_rank * tokens
    forward = linear + attention
    return forward * (1 + extra_forwards) + linear + 2 * attention + weights + update


def rate(dtype: torch.dtype = torch.bfloat16, seconds: float = 0.3) -> float:
    """Operations a second of the best of a few products of a decoder's size, with torch's threads."""
    best = 0.0
    for rows, inner, columns in SHAPES:
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(max(rate(torch.bfloat16), rate(torch.float32)))
