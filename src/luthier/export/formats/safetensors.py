"""A folder that transformers opens: merged weights as safetensors, tokenizer, template, ends of a turn."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.assemble import Trained
from luthier.export.formats.base import TRANSFORMERS, Exporter, merge, save_tokenizer
from luthier.models.load import no_progress_bars

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Safetensors(Exporter):
    """Weights in the number format that the run was trained in, unless another one is asked for."""

    types: ClassVar[tuple[str, ...]] = tuple(_DTYPES)
    reloads_with: ClassVar[str] = TRANSFORMERS

    def require(self, trained: Trained) -> None:
        """Whatever can be trained can be written."""

    def write(self, trained: Trained, folder: Path) -> None:
        """Merge in float32, round once, write as transformers does."""
        merge(trained)
        model: Any = trained.loaded.model
        model.config = copy.deepcopy(model.config)
        model.to(self._dtype(trained))
        model.config.dtype = self._dtype(trained)  # what transformers loads it in
        with no_progress_bars():
            model.save_pretrained(folder)
        save_tokenizer(trained, folder)

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """Rounded to the nearest number of the type."""
        return weight.to(self._dtype(trained)).float()

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """All of the template's."""
        return trained.template.stop_ids

    def _dtype(self, trained: Trained) -> torch.dtype:
        return _DTYPES[self.type] if self.type else trained.loaded.dtype
