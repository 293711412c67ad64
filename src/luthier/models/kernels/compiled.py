"""Decoder layers compiled for a GPU, where a training is long enough to pay for the compilation.

torch's compiler joins what lies between matrix products into few passes over memory: on one H100 a layer of a 1.5 B
model takes 0.72 of the time (docs/performance.md). One compilation serves all layers and all forests of as many
levels; it takes a quarter of a minute to a minute, and less where torch finds it in its cache on disk. torch's own
switch, `TORCH_COMPILE_DISABLE=1`, turns it off.
"""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

PAYS_FROM = 3e16
"""Operations of a training (6 for each weight and token) from which compiling takes less time than it saves; on an
H100 that saves 40 s."""


def pays(device: torch.device, weights: int, tokens: int) -> bool:
    """Whether a training of so many tokens should compile the layers of a model with so many weights."""
    return device.type == "cuda" and 6.0 * weights * tokens >= PAYS_FROM


def works(device: torch.device) -> bool:
    """Whether torch can compile for this device here; Triton needs a C compiler, for one."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError):  # torch's own errors of compilation are RuntimeErrors
        return False
    return True


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Let each decoder layer compute with compiled code while it trains on a forest; returns how many there are.

    Answers, validation and forests that flash attention does not serve take the code that was there.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward, backend)
    return len(layers)


def _forward(layer: Any, before: Callable[..., Tensor], backend: str, *args: Any, **kwargs: Any) -> Tensor:
    if kwargs.get("levels") is None or not layer.training:
        return before(*args, **kwargs)
    kwargs.pop("forest")  # its levels say what is computed; a plain object would be compiled for anew
    hidden, *rest = args
    if torch.is_grad_enabled() and not hidden.requires_grad:
        # the first layer, over frozen embeddings: like the others, so that it is not compiled for itself
        hidden = hidden.detach().requires_grad_()
    out: Tensor = _compiled(type(layer).forward, backend)(layer, hidden, *rest, **kwargs)
    return out


@lru_cache
def _compiled(forward: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    return torch.compile(forward, dynamic=True, backend=backend)
