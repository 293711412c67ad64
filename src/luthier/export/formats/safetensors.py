"""A folder that transformers opens: merged weights as safetensors, tokenizer, template, ends of a turn."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.assemble import Trained
from luthier.export.formats._head import PROBLEMS, auto_class, head_of, require_class, save_head, with_head
from luthier.export.formats.base import TRANSFORMERS, Exporter, merge, save_tokenizer
from luthier.models.load import no_progress_bars

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Safetensors(Exporter):
    """Weights in the number format that the run was trained in, unless another one is asked for."""

    types: ClassVar[tuple[str, ...]] = tuple(_DTYPES)
    reloads_with: ClassVar[str] = TRANSFORMERS
    heads: ClassVar[frozenset[str]] = frozenset(PROBLEMS)

    def require(self, trained: Trained) -> None:
        """Whatever can be trained can be written, and a head where transformers has the architecture with one."""
        if (head := head_of(trained)) is not None:
            require_class(trained, head)

    def write(self, trained: Trained, folder: Path) -> None:
        """Merge in float32, round once, write as transformers does."""
        merge(trained)
        head = head_of(trained)
        model: Any = trained.loaded.model if head is None else with_head(trained, head)
        model.config = copy.deepcopy(model.config)
        model.to(self._dtype(trained))
        model.config.dtype = self._dtype(trained)  # what transformers loads it in
        with no_progress_bars():
            model.save_pretrained(folder)
        if head is None:
            save_tokenizer(trained, folder)
        else:
            save_head(trained, head, folder)

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """The folder, and the class that opens one with a head."""
        head = head_of(trained)
        return {"artifact": str(folder), **({} if head is None else {"class": auto_class(head)})}

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """Rounded to the nearest number of the type."""
        return weight.to(self._dtype(trained)).float()

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """All of the template's."""
        return trained.template.stop_ids

    def _dtype(self, trained: Trained) -> torch.dtype:
        return _DTYPES[self.type] if self.type else trained.loaded.dtype
