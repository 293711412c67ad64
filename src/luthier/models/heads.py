"""A head: a small linear layer over a model's last hidden states, whose numbers are a reward, a value or classes.

    h W^T + b        h: (..., width) after the model's last norm    W: (outputs, width)    b: (outputs,) or none

It is float32 whatever the model is held in, and computed in float32 at least: a reward in bfloat16 has some two digits.
It is no part of the model: what the model writes does not depend on it, and a model's own files do not hold it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.errors import ModelError

FILE = "head.safetensors"
"""Beside the weights of an artifact."""
SETTINGS = "head.json"
"""Beside `FILE`, of a head whose numbers have names: what they are called and how they are read."""


@dataclass(frozen=True)
class HeadShape:
    """What an objective asks for."""

    kind: str
    """What its numbers are: `reward`, `value`, ... A head of another kind is never taken for it."""
    outputs: int = 1
    bias: bool = True
    """Leave it out where the loss does not depend on it, as that of pairs: what trains must be able to move."""
    normalized: bool = False
    """Whether its numbers mean something only beside others of it, so that they are told as `(r - mean) / std`."""
    after_training: bool = True
    """Whether the trained model is of no use without it, so that no export may leave it out."""
    start: Literal["normal", "zeros", "probe"] = "zeros"
    """`normal`: N(0, 1 / (width + 1)), so that numbers begin near 0 and apart (Ziegler et al. 2019, arXiv:1909.08593);
    a bias begins at 0. `probe`: at zeros, until `engine.heads.probe` fits it."""
    rate: float = 1.0
    """What the learning rate of the run is multiplied by for it."""
    labels: tuple[str, ...] = ()
    """What each of its numbers is called, in their order; empty where they have no names."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """What else decides its numbers and is known before training, as plain values: what is read of a row."""


class Head(nn.Module):
    """A head of one model."""

    def __init__(self, shape: HeadShape, width: int, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.shape = shape
        self.taken_from: Path | None = None
        """The folder whose head it is; None: it began fresh."""
        self.found: dict[str, Any] = {}
        """What was found of its numbers after training, as plain values, such as the temperature that calibrates."""
        weight = torch.zeros(shape.outputs, width)
        if shape.start == "normal":  # drawn on the CPU, so that a seed means the same start on every device
            weight.normal_(std=(width + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight.to(device))
        self.bias = nn.Parameter(torch.zeros(shape.outputs, device=device)) if shape.bias else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(shape.outputs, device=device))
        self.register_buffer("std", torch.ones(shape.outputs, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., outputs), float32 at least."""
        kind = torch.promote_types(hidden.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(kind)
        return F.linear(hidden.to(kind), self.weight.to(kind), bias)

    def normal(self, values: Tensor) -> Tensor:
        """What it read, (..., outputs), normalized by what `settle` found; as it is before that."""
        return (values - self.mean) / self.std

    def settle(self, values_NO: Tensor) -> None:
        """Take these for ordinary: their mean becomes 0 and their standard deviation 1."""
        std = values_NO.std(0, correction=0)
        self.mean.copy_(values_NO.mean(0))
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))  # all alike: nothing to measure by

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: weights, and by what its numbers are normalized."""
        return dict(self.state_dict())

    def save(self, folder: Path) -> None:
        """Write `FILE`, which says of what kind the head is, and `SETTINGS` where there is something to be named."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, folder / FILE, metadata={"kind": self.shape.kind})
        if self._named:
            text = json.dumps({**self._named, "found": self.found}, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")

    @property
    def _named(self) -> dict[str, Any]:
        """What must be equal where a head is read again."""
        named = {"labels": list(self.shape.labels)} if self.shape.labels else {}
        return {**named, **self.shape.reading}

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ModelError: it is not there, of another kind, or of another shape.
        """
        kind, tensors = read_head(folder)
        found, wanted = _described(kind, tensors), self._described()
        if found != wanted:
            raise ModelError(f"{folder / FILE}: holds {found}; this run's objective has {wanted}")
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])
        settings = read_settings(folder)
        self.found = dict(settings.pop("found", {}))
        if settings != self._named:
            raise ModelError(
                f"{folder / SETTINGS}: the head there was trained for {_short(settings)}; this run's objective has "
                f"{_short(self._named)}"
            )

    def take(self, folder: Path) -> None:
        """Begin as the head in `folder`, if there is one of this kind and shape.

        Raises:
            ModelError: its file is damaged.
        """
        if not (folder / FILE).is_file() or _described(*read_head(folder)) != self._described():
            return
        settings = read_settings(folder)
        settings.pop("found", None)
        if settings == self._named:
            self.load(folder)
            self.found = {}  # of the weights as they were
            self.taken_from = folder

    def _described(self) -> str:
        return _described(self.shape.kind, self.tensors())


def read_head(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind and the tensors of the head in `folder`.

    Raises:
        ModelError: there is none, or its file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise ModelError(f"{folder}: {FILE} is missing, the head that was trained beside these weights; restore it")
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("kind", "")
        return kind, load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file that can be read: {error}") from None


def read_settings(folder: Path) -> dict[str, Any]:
    """What `SETTINGS` in a folder says; nothing where there is no such file.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return values


def _short(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."


def _described(kind: str, tensors: Mapping[str, Tensor]) -> str:
    shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in sorted(tensors))
    return f"a head of kind {kind!r} ({shapes})"


def head_of(model: Any, shape: HeadShape, seed: int) -> Head:
    """A fresh head over the hidden states that the model's own output layer reads, on its device.

    Raises:
        ModelError: these are not to be had from the model.
    """
    if model.base_model is model:
        raise ModelError(f"{type(model).__name__} does not tell its hidden states apart from its output layer")
    device = next(p.device for p in model.parameters())
    return Head(shape, model.get_output_embeddings().in_features, seed, device)
