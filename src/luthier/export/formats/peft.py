"""The adapter alone, as the `peft` library lays it out, with tokenizer and template; its base is named, not copied."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from luthier import assemble
from luthier.assemble import Trained, precision_of
from luthier.errors import ExportError
from luthier.export.formats.base import TRANSFORMERS, Exporter, require_package, save_tokenizer

SETTINGS = "adapter_config.json"
"""The file by which peft knows an adapter; whichever of ours writes it, peft is asked to open."""


class Peft(Exporter):
    """What training wrote, unchanged."""

    reloads_with: ClassVar[str] = TRANSFORMERS

    def require(self, trained: Trained) -> None:
        """The run has an adapter that peft knows, and peft is here to prove it."""
        if not (trained.folder / SETTINGS).is_file():
            raise ExportError(
                f"{trained.name} has no adapter in the layout of peft (there is no {SETTINGS}): all its weights were "
                "trained; use --format safetensors"
            )
        require_package("peft", "pip install peft", "the gate opens a peft export with it")

    def write(self, trained: Trained, folder: Path) -> None:
        """The adapter's own files, byte by byte."""
        for path in sorted(trained.folder.glob("adapter_*")):
            shutil.copyfile(path, folder / path.name)
        save_tokenizer(trained, folder)

    def merges(self) -> bool:
        """No: peft adds the update to the base's answers."""
        return False

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """Nothing is rounded."""
        return weight

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """All of the template's."""
        return trained.template.stop_ids

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """The base that the adapter was trained on, in the number format that it was trained in."""
        base = {"base": str(trained.loaded.files.folder), "base_dtype": precision_of(trained.loaded)}
        if assemble.adapter_of(trained.recipe).added_tokens:
            base["vocabulary"] = str(len(trained.loaded.tokenizer))
        return {"artifact": str(folder), **base}
