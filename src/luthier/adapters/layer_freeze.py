"""Partial fine-tuning: chosen layers, norms or embeddings train, the rest of the model is frozen.

The trained weights become float32 as in full fine-tuning (see `full`), and the artifact is a whole model, which needs
no base. Lee et al. 2019 (arXiv:1911.03090) show that the last layers alone go most of the way.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from luthier.adapters._layers import layer_number
from luthier.adapters.full import Full, InjectedFull, require_dense, widen
from luthier.errors import ModelError


class LayerFreeze(Full):
    """Train the weights of chosen layers."""

    learning_rate: ClassVar[float] = 2e-4

    overwrites_base: ClassVar[bool] = True

    layers: int | tuple[int, ...] = 4
    """How many of the last decoder layers train, or the numbers of those that do, from 0."""
    norms: bool = False
    """Whether the norms of all layers train, and the last one."""
    embeddings: bool = False
    """Whether the embedding trains, and the output head where it is its own matrix."""

    def inject(self, model: nn.Module, seed: int) -> InjectedFull:
        """Freeze what was not chosen and turn the rest into float32.

        Raises:
            ModelError: nothing was chosen, or a layer that there is not, or weights are held quantized.
        """
        require_dense(model)
        wanted = self._chosen(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in wanted.values():
            widen(parameter, generator)
        narrow = {p.dtype for name, p in model.named_parameters() if name not in wanted} - {torch.float32}
        any_model: Any = model
        any_model.computed_in = next(iter(narrow), None)  # see `models.decode.computed_in`
        return InjectedFull(model, frozenset(wanted))

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        named = dict(model.named_parameters())
        count = 1 + max((n for n in map(layer_number, named) if n is not None), default=-1)
        last = range(max(count - self.layers, 0), count) if isinstance(self.layers, int) else self.layers
        layers = set(last)
        if not layers <= set(range(count)):
            raise ModelError(f"adapter.layers = {list(last)}: the model's layers are numbered 0 to {count - 1}")
        tables = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        vocabulary = {id(p) for table in tables if table is not None for p in table.parameters()}
        chosen = {
            name: p
            for name, p in named.items()
            if layer_number(name) in layers
            or (self.norms and "norm" in name.rpartition(".")[0].rpartition(".")[2])
            or (self.embeddings and id(p) in vocabulary)
        }
        if not chosen:
            raise ModelError("adapter: no layer, norm or embedding was chosen, so nothing would train")
        return chosen
