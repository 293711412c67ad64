"""Models whose linear layers are quantized in place, and the dense ones that must compute the same."""

import copy
from typing import Any

import torch
from torch import nn

from luthier.models import packed
from luthier.models.quantize.base import QuantizedLinear


def quantize(model: Any, name: str) -> Any:
    """Every linear layer but the head becomes one of the format; returns the model."""
    kind = packed.quantizer(name)
    for layer, linear in packed.linear_layers(model).items():
        shape, bias = (linear.out_features, linear.in_features), linear.bias
        made = kind(
            shape,
            kind.pack(linear.weight.detach()),
            None if bias is None else bias.detach(),
            linear.weight.dtype,
        )
        packed.replace(model, layer, made)
    return model


def dequantized(model: Any) -> Any:
    """A copy with dense layers of the same numbers."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, QuantizedLinear):
            packed.replace(made, name, module.to_dense())
    return made


def layer(name: str, out: int, width: int, dtype: torch.dtype = torch.float32, bias: bool = False) -> QuantizedLinear:
    """One quantized layer of random numbers."""
    generator = torch.Generator().manual_seed(out * 1000 + width)
    kind = packed.quantizer(name)
    weight = torch.randn(out, width, generator=generator) * 0.1
    offset = torch.randn(out, generator=generator) if bias else None
    return kind((out, width), kind.pack(weight), offset, dtype)


def dense(made: QuantizedLinear) -> nn.Linear:
    """The dense layer of the same numbers."""
    return made.to_dense()
