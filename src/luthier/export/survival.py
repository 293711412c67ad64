"""How much of what was learned survives when merged weights are quantized.

    kept = <Q(W + dW) - Q(W), dW> / <dW, dW>        beside = |Q(W + dW) - Q(W) - dW| / |dW|

W is the matrix that the update was trained beside, dW the update, Q rounding to codes and back. `kept` is the factor by
which the update is still there. Where W lies on the grid of the codes, as under QLoRA, nearly every number of W + dW
rounds back to where it came from: an update of 1 or 2 % of the weights' size keeps 2 %, and the model has forgotten its
training, with no error. Where W lies anywhere between the codes, a small update decides which way numbers near a
boundary fall, and `kept` is about 1.

`beside` is the part that does not point along the update: numbers that fell to the other side for the update's sake,
each by a whole step of the grid. It takes the place of as much error that Q(W) had, so it is the price of quantizing
and not a loss of what was learned; it is large for every small update (about 10 for one of 1 %), would refuse each of
them, and is told without being judged. What it costs in answers, the gate measures.

Left out: correcting codes towards the update (GPTQ and its relatives), which would keep more.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from luthier.adapters._layers import linears
from luthier.errors import ExportError
from luthier.models.packed import quantizer
from luthier.models.quantize.base import QuantizedLinear

LEAST_KEPT = 0.9
TOLD = 3
"""So many of the worst layers are printed."""


@dataclass(frozen=True)
class Layer:
    """What became of the update of one linear layer."""

    name: str
    kept: float
    beside: float
    size: float
    """|dW| / |W|"""

    def __str__(self) -> str:
        return f"{self.name}: {self.kept:.1%} of an update of {self.size:.2%} of its weights' size"


@dataclass(frozen=True)
class Survival:
    """What became of the update, for each layer that has one, the worst first."""

    format: str
    layers: tuple[Layer, ...]

    @property
    def mean(self) -> float:
        """Of all layers' shares."""
        return sum(layer.kept for layer in self.layers) / len(self.layers)

    def require(self, least: float) -> None:
        """Check that every layer keeps this share of its update; 0 asks for nothing.

        Raises:
            ExportError: one does not.
        """
        worst = next(iter(self.layers), None)
        if worst is not None and least > 0 and not worst.kept >= least:
            raise ExportError(
                f"quantized to {self.format}, the merged weights would hold little of what was learned: {worst} "
                f"survive, the mean of {len(self.layers)} layers is {self.mean:.1%}, and {least:.0%} is required. "
                "Keep the adapter beside its quantized base, as `luthier serve` does, or merge into 16 bits "
                "(--format safetensors); --least-kept 0 writes it all the same"
            )

    def told(self) -> list[str]:
        """For a terminal, a line each."""
        if not self.layers:
            return [f"{self.format}: no matrix was changed by the training"]
        first = f"{self.format}: {self.mean:.1%} of the update survives, mean of {len(self.layers)} layers; the least:"
        return [first, *(f"  {layer}" for layer in self.layers[:TOLD])]

    def dump(self) -> dict[str, Any]:
        """Plain values, as `parity.json` holds them."""
        return {
            "mean_kept": round(self.mean, 6) if self.layers else None,
            "layers": {
                layer.name: {k: round(v, 6) for k, v in vars(layer).items() if k != "name"} for layer in self.layers
            },
        }


Rounding: TypeAlias = Callable[[str, Tensor], Tensor]
"""What a format keeps of the matrix of the layer of this name, in float32."""


def measure(base: nn.Module, merged: nn.Module, format: str, rounding: Rounding) -> Survival:
    """Compare the linear layers of a merged float32 model with those of its base, as the training saw them.

    Args:
        base: dense or quantized; its linear layers have the names of those of `merged`.
        merged: every layer dense.
        format: its name, for messages.
        rounding: what it keeps.

    Raises:
        ModelError: a matrix cannot be held in the format.
    """
    found = (layer for name, w, update in updates(base, merged) if (layer := _layer(name, w, update, rounding)))
    return Survival(format, tuple(sorted(found, key=lambda layer: layer.kept)))


def updates(base: nn.Module, merged: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, matrix of the base and update of each linear layer but the head, in float32."""
    after: Mapping[str, Any] = linears(merged)
    for name, layer in linears(base).items():
        wide = layer.dense(torch.float32) if isinstance(layer, QuantizedLinear) else layer.weight.detach().float()
        yield name, wide, after[name].weight.detach() - wide


def _layer(name: str, weight: Tensor, update: Tensor, rounding: Rounding) -> Layer | None:
    size = float(update.norm())
    if size == 0:
        return None
    moved = rounding(name, weight + update) - rounding(name, weight)
    kept = float((moved * update).sum(dtype=torch.float64)) / float(update.square().sum(dtype=torch.float64))
    beside = float((moved - update).norm()) / size
    return Layer(name, kept, beside, size / max(float(weight.norm()), 1e-30))


def rounded(weight: Tensor, format: str) -> Tensor:
    """What a format of `model.quantize` keeps of a matrix, in float32."""
    kind, shape = quantizer(format), (weight.shape[0], weight.shape[1])
    return kind(shape, kind.pack(weight), None, torch.float32).dense(torch.float32)
