"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685).

    y = W x + (alpha / rank) B A x        W: (out, in) frozen    A: (rank, in)    B: (out, rank)

B starts at zero, so an injected model computes exactly what its base computed. A and B are float32 whatever the base
is (bfloat16 would round small updates away); they are multiplied in the base's type. Files are in the layout of the
`peft` library, which reads them and whose LoRA files are read here. Left out: initializations other than the
authors', rank-stabilized scaling, and embeddings as targets.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import Adapter, Injected, by_name, require_same_tensors
from luthier.errors import ModelError
from luthier.models.kernels.low_rank import Weight, low_rank_added, low_rank_linear
from luthier.models.quantize.base import QuantizedLinear

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
ALL_LINEAR = "all_linear"
PREFIX = "base_model.model."  # what peft puts before every name


class LoRALinear(nn.Module):
    """A frozen linear layer and its low-rank update."""

    def __init__(
        self, base: nn.Linear | QuantizedLinear, rank: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.dropout = dropout
        self.enabled = True
        a = torch.empty(rank, base.in_features)
        bound = 1 / math.sqrt(base.in_features)  # kaiming uniform with a = sqrt(5), as in the authors' loralib
        a.uniform_(-bound, bound, generator=generator)
        device = base.device if isinstance(base, QuantizedLinear) else base.weight.device
        self.a = nn.Parameter(a.to(device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        weight: Weight = self.base.lent if isinstance(self.base, QuantizedLinear) else self.base.weight
        if self.enabled and not (self.dropout and self.training):
            return low_rank_linear(x, weight, self.base.bias, self.a, self.b, self.scale)
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        low = F.linear(F.dropout(x, self.dropout), self.a.to(x.dtype))
        return low_rank_added(x, weight, self.base.bias, low, (self.scale * self.b).to(x.dtype))

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """W + (alpha / rank) B A, added in float32 and stored in the type of W; a quantized W becomes dense."""
        if isinstance(self.base, QuantizedLinear):
            self.base = self.base.to_linear()
        weight = self.base.weight
        weight.copy_((weight.float() + self.scale * (self.b @ self.a)).to(weight.dtype))
        return self.base


class InjectedLoRA(Injected):
    """LoRA layers inside one model."""

    def __init__(self, model: nn.Module, layers: Mapping[str, LoRALinear], settings: "LoRA") -> None:
        self.model, self.layers, self.settings = model, dict(layers), settings

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """`<layer>.lora_A` and `<layer>.lora_B`, layer by layer."""
        pairs = ((name, layer) for name, layer in self.layers.items())
        return {f"{name}.lora_{key}": p for name, layer in pairs for key, p in (("A", layer.a), ("B", layer.b))}

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

    def merge(self) -> None:
        """Fold each update into its linear layer and put that layer back."""
        for name, layer in self.layers.items():
            _replace(self.model, name, layer.merge())
        self.layers.clear()

    def save(self, folder: Path, base_name: str) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` as `peft` does."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": self.settings.dropout,
            "target_modules": sorted(self.layers),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }
        (folder / SETTINGS).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        named = {f"{PREFIX}{name}.weight": p for name, p in self.trainable.items()}
        save_file(by_name(named), folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Read the tensors of a folder that `save` or `peft` wrote."""
        tensors = load_file(folder / WEIGHTS)
        expected = {f"{PREFIX}{name}.weight": p for name, p in self.trainable.items()}
        require_same_tensors(folder / WEIGHTS, tensors, expected)
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensors[name])


class LoRA(Adapter):
    """Add a trainable low-rank update to each chosen linear layer."""

    rank: int = Field(16, ge=1)
    """Rank of the update; the adapter's size and capacity grow with it."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input, while training."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """`all_linear` for every linear layer but the output head, or endings of layer names such as `q_proj`. A model with
    matrices that are no linear layers (experts kept in one tensor) takes names only."""

    @property
    def named_targets(self) -> tuple[str, ...]:
        """The targets, unless they are all linear layers."""
        return () if self.targets == (ALL_LINEAR,) else self.targets

    def inject(self, model: nn.Module, seed: int) -> InjectedLoRA:
        """Wrap each target; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer, it is the output head (tied to the embedding), or `all_linear`
            would leave matrices out.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = self._choose(model)
        model.requires_grad_(False)
        layers: dict[str, LoRALinear] = {}
        for name, linear in chosen.items():
            layers[name] = LoRALinear(linear, self.rank, self.alpha / self.rank, self.dropout, generator)
            _replace(model, name, layers[name])
        return InjectedLoRA(model, layers, self)

    def restore(self, model: nn.Module, folder: Path) -> InjectedLoRA:
        """Inject with the rank, alpha and targets of the folder's settings, then load its tensors.

        Raises:
            ModelError: the folder is not a plain LoRA, or its tensors do not fit the model.
        """
        config = _read_settings(folder)
        targets = config["target_modules"]
        found = LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            targets=(ALL_LINEAR,) if targets == "all-linear" else tuple(targets),
        )
        injected = found.inject(model, seed=0)
        injected.load(folder)
        return injected

    def _choose(self, model: nn.Module) -> dict[str, nn.Linear | QuantizedLinear]:
        head = model.get_output_embeddings()  # type: ignore[operator]
        linears = {
            n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, QuantizedLinear)) and m is not head
        }
        if not linears:
            raise ModelError(f"{type(model).__name__} has no linear layer that a LoRA could be added to")
        if not self.named_targets:
            _require_only_linears(model, linears)
            return linears
        chosen: dict[str, nn.Linear | QuantizedLinear] = {}
        for target in self.targets:
            found = {n: m for n, m in linears.items() if n == target or n.endswith("." + target)}
            if not found:
                endings = sorted({n.rpartition(".")[2] for n in linears})
                raise ModelError(f"adapter.targets: {target!r} matches no linear layer; there are {', '.join(endings)}")
            chosen |= found
        return {name: linears[name] for name in linears if name in chosen}  # in the model's own order


# what a peft LoRA may say without computing anything else than the equation above; any other field must be off, since
# variants come with every release of peft
HARMLESS = frozenset(
    {"peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
    | {"r", "lora_alpha", "lora_dropout", "target_modules", "inference_mode", "runtime_config"}
    | {"megatron_core", "qalora_group_size"}  # settings of things that are off
)
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # the base stays as it was; others (pissa, olora, ...) train on a base that their initialization has changed
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
_OFF: tuple[Any, ...] = (None, False, {}, [])


def _require_only_linears(model: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    """Check that `all_linear` leaves out no matrix but embeddings and the head.

    Raises:
        ModelError: there are others, such as experts that one tensor holds.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    covered = (*linears.values(), head, *(m for m in model.modules() if isinstance(m, nn.Embedding)))
    known = {id(p) for module in covered if module is not None for p in module.parameters()}
    left_out = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and id(p) not in known}
    if left_out:
        share = sum(p.numel() for p in left_out.values()) / sum(p.numel() for p in model.parameters())
        endings = sorted({name.rpartition(".")[2] for name in linears})
        raise ModelError(
            f"adapter.targets = ['{ALL_LINEAR}'] would leave out {len(left_out)} matrices that are no linear layers "
            f"({share:.0%} of the model): {', '.join(list(left_out)[:3])}, .... Name the layers that shall train: "
            f"adapter.targets = {endings}"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable adapter settings: {error}") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    odd = {k: v for k, v in config.items() if k not in HARMLESS and v not in (*_OFF, *_PLAIN.get(k, ()))}
    if odd:
        found = ", ".join(f"{key} = {value!r}" for key, value in sorted(odd.items()))
        raise ModelError(f"{path}: {found}: the adapter `lora` does not compute that; merge it into its base with peft")
    missing = [key for key in ("r", "lora_alpha", "target_modules") if config.get(key) is None]
    if missing:
        raise ModelError(f"{path}: {', '.join(missing)} is missing; a LoRA cannot be read without it")
    if isinstance(config["target_modules"], str) and config["target_modules"] != "all-linear":
        raise ModelError(
            f"{path}: target_modules is a pattern ({config['target_modules']!r}); only lists are supported"
        )
    return config


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent).register_module(last, new)
