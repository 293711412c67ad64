"""What adapters that wrap linear layers share: choosing them, switching them off, merging, and their files.

A wrapped layer is a `Wrapped` in the place of a linear layer. An adapter's file makes them and says how it is called on
disk; choice and file layout are here.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import Adapter, Injected, by_name, require_same_tensors
from luthier.errors import ModelError
from luthier.models.kernels.low_rank import Weight
from luthier.models.mixed import Form, Part
from luthier.models.packed import replace as replace
from luthier.models.quantize.base import QuantizedLinear

Linear: TypeAlias = nn.Linear | QuantizedLinear
"""What adapters wrap."""

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."  # what peft puts before every name
ALL_LINEAR = "all_linear"

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class Wrapped(nn.Module, ABC):
    """A frozen linear layer and what trains beside it; `tensors` are its trained ones by their name in files."""

    base: Linear
    enabled: bool = True

    @property
    def weight(self) -> Weight:
        """The frozen matrix, or what makes it where it is held quantized."""
        return self.base.lent if isinstance(self.base, QuantizedLinear) else self.base.weight

    def dense_base(self) -> nn.Linear:
        """The layer to merge into: the base itself, or a dense copy of a quantized one in the type of its products."""
        return self.base.to_dense() if isinstance(self.base, QuantizedLinear) else self.base

    @abstractmethod
    def tensors(self) -> Mapping[str, nn.Parameter]:
        """The trained tensors."""

    def form(self) -> Form | None:
        """What it computes, for batches in which every row has an adapter of its own; None: it is asked itself."""
        return None

    def require_mergeable(self) -> None:
        """Check that one linear layer can compute the same alone; nothing is changed.

        Raises:
            NotImplementedError: none can.
        """

    @abstractmethod
    def merge(self) -> nn.Linear:
        """The linear layer that computes the same alone; `require_mergeable` has let it pass."""


class InjectedLayers(Injected):
    """Wrapped layers inside one model, by the names of the layers that they wrap."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Wrapped], config: Mapping[str, Any]) -> None:
        """`config` is what the settings file says beside the names of the layers."""
        self.model, self.layers, self.config = model, dict(layers), dict(config)

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """`<layer>.<tensor>`, layer by layer."""
        return {f"{name}.{key}": p for name, layer in self.layers.items() for key, p in layer.tensors().items()}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone while open; nothing is added, so logits are bit-identical to the base's."""
        before = [layer.enabled for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer, enabled in zip(self.layers.values(), before, strict=True):
                layer.enabled = enabled

    def parts(self) -> Mapping[str, Part] | None:
        """Each layer's form, or the layer."""
        with torch.no_grad():
            return {name: layer.form() or layer for name, layer in self.layers.items()}

    def merge(self) -> None:
        """Fold each layer's update into its linear layer and put that layer back; all or none."""
        for layer in self.layers.values():
            layer.require_mergeable()
        merged = {name: layer.merge() for name, layer in self.layers.items()}
        for name, linear in merged.items():
            replace(self.model, name, linear)
        self.layers.clear()

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors of the artifact by their names there."""
        return {f"{PREFIX}{name}": p for name, p in self.trainable.items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trained tensors from those of an artifact, whose names and shapes were compared."""
        for name, parameter in self.trainable.items():
            parameter.copy_(tensors[f"{PREFIX}{name}"])

    def save(self, folder: Path, base_name: str) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        config = {"target_modules": sorted(self.layers), **self.config}
        write_artifact(folder, base_name, config, self.file_tensors())

    def load(self, folder: Path) -> None:
        """Read the tensors of a folder that `save` wrote, or `peft` where it has the method."""
        tensors = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, self.file_tensors())
        with torch.no_grad():
            self.take(tensors)


class Targeted(Adapter):
    """Settings of adapters that wrap any linear layers."""

    targets: tuple[str, ...] = (ALL_LINEAR,)
    """`all_linear` for every linear layer but the output head, or endings of layer names such as `q_proj`. A model with
    matrices that are no linear layers (experts kept in one tensor) takes names only."""
    layers: tuple[int, ...] | None = None
    """Numbers of the decoder layers that are adapted, from 0; absent: all."""

    @property
    def named_targets(self) -> tuple[str, ...]:
        """The targets, unless they are all linear layers."""
        return () if self.targets == (ALL_LINEAR,) else self.targets


def device_of(base: Linear) -> torch.device:
    """Where a layer is."""
    return base.device if isinstance(base, QuantizedLinear) else base.weight.device


def linears(model: nn.Module) -> dict[str, Linear]:
    """Every linear layer but the output head, by name.

    Raises:
        ModelError: there is none.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | QuantizedLinear) and m is not head}
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear layer that an adapter could be added to")
    return found


def choose(model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None = None) -> dict[str, Linear]:
    """The linear layers that `targets` name, in the model's own order.

    Args:
        model: a causal language model.
        targets: `all_linear` alone, or names of layers or their endings.
        layers: numbers of decoder layers, from 0; None: all of them.

    Raises:
        ModelError: a target or a number matches nothing, or `all_linear` would leave matrices out.
    """
    found = linears(model)
    if tuple(targets) == (ALL_LINEAR,):
        _require_only_linears(model, found)
        wanted = set(found)
    else:
        wanted = set()
        for target in targets:
            matching = {name for name in found if matches(name, target)}
            if not matching:
                _require_no_table(model, target)
                endings = ", ".join(sorted({name.rpartition(".")[2] for name in found}))
                raise ModelError(f"adapter.targets: {target!r} matches no linear layer; there are {endings}")
            wanted |= matching
    if layers is not None:
        wanted &= _in_layers(found, layers)
    return {name: linear for name, linear in found.items() if name in wanted}


def _require_no_table(model: nn.Module, target: str) -> None:
    """Check that a target is neither the embedding nor the head.

    Raises:
        ModelError: it is.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    for what, table in (("embedding", embedding), ("output head", head)):
        if any(module is table and matches(name, target) for name, module in model.named_modules()):
            tied = head is not None and head.weight is embedding.weight
            one = " (embedding and head are one matrix in this model)" if tied else ""
            raise ModelError(
                f"adapter.targets: {target!r} is the {what}{one}, which gets no low-rank update here. To teach the "
                "model tokens of its own, name them in adapter.new_tokens: their rows train alone. To train the whole "
                "matrix, take adapter.type = 'layer_freeze' with embeddings = true, or 'full'"
            )


def matches(name: str, target: str) -> bool:
    """Whether a layer's name is `target` or ends with it."""
    return name == target or name.endswith("." + target)


def layer_number(name: str) -> int | None:
    """The number of the decoder layer that a module of this name is part of."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def _in_layers(names: Iterable[str], layers: Sequence[int]) -> set[str]:
    numbers = {name: layer_number(name) for name in names}
    known = {number for number in numbers.values() if number is not None}
    missing = sorted(set(layers) - known)
    if missing or not layers:
        raise ModelError(
            f"adapter.layers = {list(layers)}: the model's layers are numbered {min(known, default=0)} to "
            f"{max(known, default=0)}"
        )
    return {name for name, number in numbers.items() if number in set(layers)}


def _require_only_linears(model: nn.Module, found: Mapping[str, Linear]) -> None:
    """Check that `all_linear` leaves out no matrix but embeddings and the head.

    Raises:
        ModelError: there are others, such as experts that one tensor holds.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    covered = (*found.values(), head, *(m for m in model.modules() if isinstance(m, nn.Embedding)))
    known = {id(p) for module in covered if module is not None for p in module.parameters()}
    left_out = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and id(p) not in known}
    if left_out:
        share = sum(p.numel() for p in left_out.values()) / sum(p.numel() for p in model.parameters())
        endings = sorted({name.rpartition(".")[2] for name in found})
        raise ModelError(
            f"adapter.targets = ['{ALL_LINEAR}'] would leave out {len(left_out)} matrices that are no linear layers "
            f"({share:.0%} of the model): {', '.join(list(left_out)[:3])}, .... Name the layers that shall train: "
            f"adapter.targets = {endings}"
        )


def write_artifact(folder: Path, base_name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write settings and tensors of an adapter, in the layout of `peft` where `config` names a method of its."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "inference_mode": True, **config}
    (folder / SETTINGS).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    save_file(by_name(tensors), folder / WEIGHTS, metadata={"format": "pt"})


# what settings of peft may say without computing anything else than their method's equation
HARMLESS = frozenset(
    {"peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
    | {"target_modules", "inference_mode", "runtime_config"}
)
_OFF: tuple[Any, ...] = (None, False, {}, [])


def read_settings(folder: Path, kind: str, needed: Sequence[str], plain: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The settings file of an adapter.

    Args:
        folder: of the artifact.
        kind: the `peft_type` that it must be of.
        needed: fields that must be there.
        plain: fields and the values that are understood, empty for any value; every other field must be off, since
            variants come with every release of peft.

    Raises:
        ModelError: it cannot be read, is of another kind, or asks for what is not computed here.
    """
    path = folder / SETTINGS
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable adapter settings: {error}") from None
    if config.get("peft_type") != kind:
        raise ModelError(f"{path}: peft_type is {config.get('peft_type')!r}, expected {kind!r}")
    any_value = HARMLESS | {field for field, values in plain.items() if not values}
    odd = {k: v for k, v in config.items() if k not in any_value and v not in (*_OFF, *plain.get(k, ()))}
    if odd:
        found = ", ".join(f"{key} = {value!r}" for key, value in sorted(odd.items()))
        raise ModelError(
            f"{path}: {found}: the adapter of this kind does not compute that; merge it into its base with peft"
        )
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise ModelError(f"{path}: {', '.join(missing)} is missing; the adapter cannot be read without it")
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        raise ModelError(f"{path}: target_modules is a pattern ({targets!r}); only lists are supported")
    return config


def numbers_of(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """`layers_to_transform` of a settings file as `layers`."""
    numbers = config.get("layers_to_transform")
    return (numbers,) if isinstance(numbers, int) else None if numbers is None else tuple(numbers)


def targets_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`target_modules` of a settings file as `targets`."""
    targets = config["target_modules"]
    return (ALL_LINEAR,) if targets == "all-linear" else tuple(targets)
