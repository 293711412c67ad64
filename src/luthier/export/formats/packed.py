"""A folder in the quantized form that `model.quantize` reads: merged in float32, quantized once, never silently.

The share of the update that survives is measured for each layer before anything is written (`export/survival.py`), and
too small a one is refused. Linear layers but the head are held in codes, all else in the type of the training. Only
Luthier opens such a folder: `model.name` is the folder, `model.quantize` the format.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from luthier import registry
from luthier.assemble import Trained
from luthier.export.formats.base import PACKED, Exporter, merge, save_tokenizer
from luthier.export.survival import rounded
from luthier.models.packed import linear_layers, quantizer, write_packed
from luthier.recipe import QUANTIZERS


class Packed(Exporter):
    """nf4 unless another format is asked for."""

    types: ClassVar[tuple[str, ...]] = tuple(n for n in registry.names(QUANTIZERS) if not quantizer(n).from_file)
    reloads_with: ClassVar[str] = PACKED

    @property
    def chosen(self) -> str:
        """The format of the linear layers."""
        return self.type or "nf4"

    @property
    def few_bits(self) -> str:
        """Those of the format."""
        return self.chosen

    def require(self, trained: Trained) -> None:
        """Whatever can be merged can be written; how much of it survives, `write` finds out."""

    def write(self, trained: Trained, folder: Path) -> None:
        """Merge in float32, measure, quantize and write.

        Raises:
            ExportError: too little of the update survives; nothing was written.
        """
        merge(trained)
        self.require_update(trained)
        config = copy.deepcopy(_model(trained).config)
        config.dtype = trained.loaded.dtype
        write_packed(folder, config, self._tensors(trained), self.chosen)
        save_tokenizer(trained, folder)

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """Through codes and back, or to the nearest number of the type of the training."""
        if _layer_of(name) in linear_layers(_model(trained)):
            return rounded(weight, self.chosen)
        return weight.to(trained.loaded.dtype).float()

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """All of the template's."""
        return trained.template.stop_ids

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """The folder and its format."""
        return {"artifact": str(folder), "quantize": self.chosen}

    def _tensors(self, trained: Trained) -> Iterator[tuple[str, Tensor]]:
        packed = linear_layers(_model(trained))
        for name, parameter in trained.loaded.model.named_parameters():
            yield name, parameter.detach() if _layer_of(name) in packed else parameter.detach().to(trained.loaded.dtype)


def _model(trained: Trained) -> Any:
    return trained.loaded.model


def _layer_of(name: str) -> str | None:
    """The layer whose matrix a parameter is."""
    layer, _, last = name.rpartition(".")
    return layer if last == "weight" else None
