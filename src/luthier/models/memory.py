"""Predicted bytes, before they are allocated.

A process that trains holds: itself (Python, torch), the weights, for each trained number its gradient and two optimizer
moments, and for the largest micro-batch the activations kept for the backward pass and the logits of the positions
that are trained on; those are counted, see `engine.fit`. One that answers or scores holds the keys and values of the
rows in flight instead, and the activations of one layer at a time, whose coefficients were fitted.
"""

import resource
import sys
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from luthier import system_memory
from luthier.models.packed import quantized_layers
from luthier.models.quantize.base import QuantizedLinear

MALLOC = 1.12  # freed blocks that malloc keeps, fitted (benchmarks/memory.py)
# without a graph: bytes of a token in the widest layer, in units of both widths, and of a logit with its copies
_FORWARD = {"bfloat16": (20, 8), "float32": (32, 16)}
_FORWARD_LOGIT_BYTES = {"bfloat16": 10, "float32": 8}


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that decide its memory."""

    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    parameters: int
    """All numbers of the model, those that are held quantized included."""
    cached: int = 0
    """Numbers that all layers keep of a token that was read: its keys and values."""
    tied: bool = True
    """Whether head and embedding are one matrix."""
    quantized: int = 0
    """Numbers that are held in fewer bits."""
    quantized_bytes: int = 0
    """What those are held in."""


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a process at its peak, by what they are for."""

    process: int
    weights: int
    optimizer: int
    activations: int
    logits: int
    cache: int = 0
    """Keys and values of the rows in flight."""

    @property
    def total(self) -> int:
        """The predicted peak."""
        return self.process + self.weights + self.optimizer + self.activations + self.logits + self.cache


def shape_of(model: Any) -> Shape:
    """The shape of a transformers decoder."""
    config = model.config.get_text_config()  # of a model with vision, the part that reads and writes text
    values = config.to_dict()
    heads = config.num_attention_heads
    head_size = values.get("head_dim") or config.hidden_size // heads
    layers = quantized_layers(model)
    quantized = sum(layer.in_features * layer.out_features for layer in layers)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=_feed_forward(model, config),
        vocabulary=config.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()) + quantized,
        tied=bool(values.get("tie_word_embeddings", True)),
        quantized=quantized,
        quantized_bytes=sum(layer.held_bytes for layer in layers),
        cached=2 * config.num_hidden_layers * (values.get("num_key_value_heads") or heads) * head_size,
    )


def _feed_forward(model: Any, config: Any) -> int:
    """Width between the two halves of a feed-forward layer, which every family names as it likes."""
    values = config.to_dict()
    named = (values.get(name) for name in ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"))
    head = model.get_output_embeddings()
    widest = max(
        (m.in_features for m in model.modules() if isinstance(m, nn.Linear | QuantizedLinear) and m is not head),
        default=0,
    )
    return next((int(width) for width in named if width), widest or 4 * config.hidden_size)


def tokens_in_flight(model: Any) -> int:
    """How many tokens may have their keys and values held while rows are written: in 1 GiB, or half the model's bytes.

    Few rows at once leave a processor waiting for weights; the cache of a large model would not fit beside it.
    """
    size = next(p.element_size() for p in model.parameters() if p.is_floating_point())
    return int(max(2**30, held_bytes(model) // 2) // (shape_of(model).cached * size))


def held_bytes(model: Any) -> int:
    """Bytes of the weights of a model as it is now."""
    dense: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return dense + sum(layer.held_bytes for layer in quantized_layers(model))


def units_of_layers(shape: Shape) -> int:
    """What a token's activations over all layers are taken to be proportional to, from model to model."""
    return shape.layers * (5 * shape.hidden + 2 * shape.feed_forward)


@dataclass(frozen=True)
class Load:
    """The largest batch: tokens computed, and positions whose logits are needed."""

    tokens: int
    positions: int
    cached: int = 0
    """Tokens whose keys and values are kept, of rows that are being written."""


def predict_forward(training: Memory, shape: Shape, dtype: torch.dtype, load: Load) -> Memory:
    """Peak bytes of answering or scoring with the model of a training, whose weights and optimizer stay where they are.

    Args:
        training: what was predicted for it.
        shape: of the base model.
        dtype: that is computed in.
        load: the largest batch.
    """
    kind = "bfloat16" if dtype in (torch.bfloat16, torch.float16) else "float32"
    of_hidden, of_feed_forward = _FORWARD[kind]
    layer = load.tokens * (of_hidden * shape.hidden + of_feed_forward * shape.feed_forward)
    return replace(
        training,
        activations=int(layer * MALLOC),
        logits=load.positions * shape.vocabulary * _FORWARD_LOGIT_BYTES[kind],
        cache=load.cached * shape.cached * (2 if kind == "bfloat16" else 4),
    )


def loading_bytes(shape: Shape, dtype: torch.dtype, stored: int) -> int:
    """Peak bytes of the weights while they are loaded: those of the files and those in memory, both.

    Args:
        shape: of the model.
        dtype: that it is held in.
        stored: bytes of its files.
    """
    held = (shape.parameters - shape.quantized) * dtype.itemsize + shape.quantized_bytes
    if not shape.quantized:
        # files in the model's own type are mapped and stay what is held; others are there beside what is made of them
        return held if abs(stored - held) < 0.05 * held else stored + held
    # tensors are read one by one: the largest, the embedding, is there in the file's type and in the model's
    return held + shape.vocabulary * shape.hidden * (4 + dtype.itemsize)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: on CUDA what torch allocated there, else what the system counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: torch.device) -> int:
    """What this process may hold on a device: what it holds already, and what is free there.

    On the CPU the limits of control groups count, too (containers, batch systems). A device that shares the memory of
    the CPU (mps) has what that has.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss + system_memory.free_bytes())
