"""A function of many small passes over memory as one pass, by torch's compiler, on a GPU.

Everywhere else, and where torch cannot compile, the function is called as it is: its result is the same to the bit
where its products are exact (the compiler may join a product and a sum), which is so for every format in `quantize`.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from luthier.models.kernels.compiled import works


def fused(function: Callable[..., Tensor], device: torch.device, **numbers: Any) -> Callable[..., Tensor]:
    """What to call, with tensors, in the place of a pure function of tensors on this device and of these numbers.

    Compiled for each set of numbers and each set of shapes, about a second each, so it is for the few shapes of a
    model's matrices: on one H200 such code takes 0.2 to 0.3 of the time of code for any shape (docs/gpu.md). Without
    gradients.
    """
    if device.type != "cuda" or not _works(device.type):
        return partial(function, **numbers)
    named = tuple(sorted(numbers.items(), key=lambda item: item[0]))

    def call(*given: Tensor) -> Tensor:
        with torch.no_grad():  # one version for training and for answers
            return compiled(function, named, tuple(tensor.shape for tensor in given))(*given)

    return call


@cache
def _works(kind: str) -> bool:
    return works(torch.device(kind))


@cache
def compiled(
    function: Callable[..., Tensor],
    numbers: tuple[tuple[str, Any], ...],
    shapes: tuple[torch.Size, ...],
    backend: str = "inductor",
) -> Callable[..., Tensor]:
    """The function as compiled code of its own for these numbers and tensors of these `shapes`."""
    # torch keeps what it compiled by the code object, and no more than eight versions of one: each set has its own
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_versions)}")
    fresh = FunctionType(code, function.__globals__, function.__name__)
    fresh.__kwdefaults__ = dict(numbers)
    made: Callable[..., Tensor] = torch.compile(fresh, dynamic=False, backend=backend)
    return made


_versions = count()
