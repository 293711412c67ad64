"""Predicted bytes, before they are allocated.

A training process holds: itself (Python, torch), the weights, for each trained number its gradient and two optimizer
moments, and for the largest micro-batch the activations kept for the backward pass and the logits of the positions
that are trained on. The coefficients were first counted from what autograd saves in a decoder of the Llama family
(norms in float32, rotary attention, gated feed-forward) and then fitted to what processes held: `benchmarks/memory.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch

# bytes a token and layer that autograd keeps, in units of the hidden and the feed-forward width
_KEPT = {"bfloat16": (26, 9), "float32": (46, 18), "autocast": (36, 8)}
# a logit, its float32 copy, its log-softmax, and their gradients at the moment when most of them live
_LOGIT_BYTES = {"bfloat16": 24, "float32": 24, "autocast": 14}
_ALLOCATOR = 1.06  # freed blocks that malloc keeps


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that decide its memory."""

    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    parameters: int


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a training process, by what they are for."""

    process: int
    weights: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The predicted peak."""
        return self.process + self.weights + self.optimizer + self.activations + self.logits


def shape_of(model: Any) -> Shape:
    """The shape of a transformers decoder."""
    config = model.config.get_text_config()  # of a model with vision, the part that reads and writes text
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def held_bytes(model: Any) -> int:
    """Bytes of the parameters of a model as it is now."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@dataclass(frozen=True)
class Load:
    """The largest micro-batch: tokens computed, and positions whose logits are needed."""

    tokens: int
    positions: int


def predict(
    shape: Shape, dtype: torch.dtype, trainable: int, load: Load, *, full: bool, checkpointing: bool, process: int
) -> Memory:
    """Peak bytes of training.

    Args:
        shape: of the base model.
        dtype: that the base is loaded in.
        trainable: numbers that train.
        load: the largest micro-batch.
        full: whether the base itself trains (then in float32, with products in `dtype`).
        checkpointing: whether layers are computed again in the backward pass.
        process: bytes that the process holds beside the model.
    """
    short = dtype in (torch.bfloat16, torch.float16)
    kind = "autocast" if full and short else "bfloat16" if short else "float32"
    of_hidden, of_feed_forward = _KEPT[kind]
    per_layer = load.tokens * (of_hidden * shape.hidden + of_feed_forward * shape.feed_forward)
    stream = load.tokens * shape.hidden * (2 if kind == "bfloat16" else 4)
    kept = per_layer * shape.layers if not checkpointing else stream * shape.layers + per_layer
    weights = shape.parameters * (4 if full or not short else 2)
    copies = shape.parameters * 2 if kind == "autocast" else 0  # autocast's own copies live through the backward pass
    adapter = 0 if full else trainable * 4
    return Memory(
        process=process,
        weights=weights + copies + adapter,
        optimizer=trainable * 12,
        activations=int(kept * _ALLOCATOR),
        logits=load.positions * shape.vocabulary * _LOGIT_BYTES[kind],
    )
