"""The adapter alone, as the `peft` library lays it out, with tokenizer and template; its base is named, not copied."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier import assemble
from luthier.assemble import Trained, precision_of
from luthier.errors import ExportError
from luthier.export.formats._head import (
    PROBLEMS,
    WEIGHT,
    auto_class,
    head_of,
    reads_words,
    require_class,
    save_head,
    score_weight,
)
from luthier.export.formats.base import TRANSFORMERS, Exporter, require_package, save_tokenizer
from luthier.models.heads import Head
from luthier.models.packed import quantizer

SETTINGS = "adapter_config.json"
"""The file by which peft knows an adapter; whichever of ours writes it, peft is asked to open."""


class Peft(Exporter):
    """What training wrote, unchanged."""

    reloads_with: ClassVar[str] = TRANSFORMERS
    heads: ClassVar[frozenset[str]] = frozenset(PROBLEMS)

    def require(self, trained: Trained) -> None:
        """The run has an adapter that peft knows, over a base that peft can be given, and peft is here to prove it."""
        quantize = trained.recipe.model.quantize
        if quantize != "none" and not (quantizer(quantize).from_file and _is_float32(trained.loaded.files.folder)):
            raise ExportError(
                f"{trained.name} was trained over a base held as {quantize}, and peft would put its adapter over the "
                "base as it is published, which answers otherwise. --format safetensors holds what was trained, merged"
            )
        if not (trained.folder / SETTINGS).is_file():
            raise ExportError(
                f"{trained.name} has no adapter in the layout of peft (there is no {SETTINGS}): all its weights were "
                "trained; use --format safetensors"
            )
        if (head := head_of(trained)) is not None:
            require_class(trained, head)
        require_package("peft", "pip install peft", "the gate opens a peft export with it")

    def write(self, trained: Trained, folder: Path) -> None:
        """The adapter's own files, byte by byte."""
        for path in sorted(trained.folder.glob("adapter_*")):
            shutil.copyfile(path, folder / path.name)
        if (head := head_of(trained)) is None:
            save_tokenizer(trained, folder)
        else:
            save_head(trained, head, folder)
            _add_head(head, folder)

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
        """The base that the adapter was trained on, in the number format that it was trained in: blocks hold more than
        bfloat16 does."""
        precision = precision_of(trained.loaded) if trained.recipe.model.quantize == "none" else "float32"
        base = {"base": str(trained.loaded.files.folder), "base_dtype": precision}
        if assemble.adapter_of(trained.recipe).added_tokens:
            base["vocabulary"] = str(len(trained.loaded.tokenizer))
        if (head := head_of(trained)) is not None:
            told = {"num_labels": head.shape.outputs, "id2label": dict(enumerate(head.shape.labels))}
            return {"artifact": str(folder), **base, "class": auto_class(head), "settings": told}
        return {"artifact": str(folder), **base}


def _add_head(head: Head, folder: Path) -> None:
    """Put the head among the adapter's tensors, and say so, as peft does of a head that trains beside an adapter."""
    (weights,) = folder.glob("adapter_*.safetensors")
    tensors = {**load_file(weights), f"base_model.model.{WEIGHT}": score_weight(head)}
    if reads_words(head):
        tensors["base_model.model.score.bias"] = torch.zeros(head.shape.outputs)
    save_file(tensors, weights, {"format": "pt"})
    path = folder / SETTINGS
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {
        "task_type": "TOKEN_CLS" if reads_words(head) else "SEQ_CLS",
        "modules_to_save": [*(values.get("modules_to_save") or []), "score"],
    }
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _is_float32(folder: Path) -> bool:
    """Whether a base is published in float32: only then it holds the numbers of a file's blocks as they are."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "float32" in (config.get("dtype"), config.get("torch_dtype"))
