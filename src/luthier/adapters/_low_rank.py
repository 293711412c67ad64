"""What low-rank adapters share: the layer, the handle, the settings, and peft's files.

    y = W x + scale B A x        W: (out, in) frozen    A: (rank, in)    B: (out, rank)

scale is alpha / rank, or alpha / sqrt(rank) (rank-stabilized, Kalajdzievski 2023, arXiv:2312.03732). An injected model
computes exactly what its base computed: B starts at zero, or the start is kept and subtracted (see `_starts`; LoftQ
alone starts as an update). A and B
are float32 whatever the base is (bfloat16 would round small updates away); they are multiplied in the base's type.
Files are in the layout of the `peft` library, which reads them and whose LoRA files are read here; where the start is
kept the file is a plain LoRA of twice the rank. New tokens train rows of their own (`_tokens`). Left out: embeddings
and head as targets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PrivateAttr
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.adapters._eva import directions
from luthier.adapters._layers import (
    PREFIX,
    WEIGHTS,
    InjectedLayers,
    Linear,
    Targeted,
    Wrapped,
    choose,
    device_of,
    matches,
    numbers_of,
    replace,
    targets_of,
)
from luthier.adapters._low_rank_files import read_low_rank
from luthier.adapters._starts import FROM_ROWS, KEPT, STARTS, UPDATES
from luthier.adapters._tokens import InjectedRows, ids_of
from luthier.adapters.base import require_same_tensors
from luthier.errors import ModelError
from luthier.models.forest import Batch
from luthier.models.kernels.low_rank import low_rank_added, low_rank_linear
from luthier.models.mixed import Form, Part


class LoRALinear(Wrapped):
    """A frozen linear layer and its low-rank update."""

    def __init__(self, base: Linear, rank: int, scale: float, dropout: float, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rank, self.scale, self.dropout = rank, scale, dropout
        device = device_of(base)
        # contiguous, as they come back from a file: the order in memory decides how a product rounds
        self.a, self.b = (nn.Parameter(tensor.to(device).contiguous()) for tensor in (a, b))
        self.start: tuple[Tensor, Tensor] | None = None

    def keep_start(self) -> None:
        """Let what A and B are now count as no update."""
        self.start = self.a.detach().clone(), self.b.detach().clone()

    def take_start(self, a: Tensor, b: Tensor) -> None:
        """Let the start be the one that such A' and B' of `update` were told from."""
        r = self.rank
        self.start = (a[:r] - a[r:]).to(self.a.device), b[:, r:].to(self.b.device, copy=True)

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """A and B."""
        return {"lora_A": self.a, "lora_B": self.b}

    def update(self) -> tuple[Tensor, Tensor]:
        """A' and B' whose product B' A' is the update: A and B, or what they have moved from their start."""
        if self.start is None:
            return self.a, self.b
        a0, b0 = self.start
        # B A - B0 A0 as (B - B0) A + B0 (A - A0): small numbers stay exact when they are cast to bfloat16
        return torch.cat([self.a, self.a - a0]), torch.cat([self.b - b0, b0], 1)

    def form(self) -> Form:
        """A and B."""
        a, b = self.update()
        return Form(low=(a, self.scale * b))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if not self.enabled:
            y: Tensor = self.base(x)
            return y
        a, b = self.update()
        if not (self.dropout and self.training):
            return low_rank_linear(x, self.weight, self.base.bias, a, b, self.scale)
        low = F.linear(F.dropout(x, self.dropout), a.to(x.dtype))
        return low_rank_added(x, self.weight, self.base.bias, low, (self.scale * b).to(x.dtype))

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """W + scale B A, added in float32 and stored in the type of W; a quantized W becomes dense."""
        (a, b), base = self.update(), self.dense_base()
        base.weight.copy_((base.weight.float() + self.scale * (b @ a)).to(base.weight.dtype))
        return base


class InjectedLoRA(InjectedLayers):
    """LoRA layers inside one model."""

    layers: dict[str, LoRALinear]  # type: ignore[assignment]

    def __init__(
        self, model: nn.Module, layers: Mapping[str, LoRALinear], settings: "LowRank", rows: InjectedRows | None = None
    ) -> None:
        also = {} if rows is None else rows.settings()
        super().__init__(model, layers, {**settings.file_settings(list(layers)), **also})
        self.rows = rows
        self.loraplus_ratio = settings.loraplus_ratio
        self.starts_as_base = settings.start not in UPDATES
        self.waits_for_rows = settings.start in FROM_ROWS  # until `observe`, or for ever in a run that is resumed

    def observe(self, batches: Iterable[Batch], score: Callable[[Batch], object]) -> bool:
        """EVA: A becomes the directions of the layers' inputs."""
        if not self.waits_for_rows:
            return False
        found = directions(self.layers, {name: layer.rank for name, layer in self.layers.items()}, batches, score)
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.a.copy_(found[name])
        self.waits_for_rows = False
        return True

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """A and B layer by layer, and the rows of new tokens."""
        return {**super().trainable, **({} if self.rows is None else self.rows.trainable)}

    def parts(self) -> Mapping[str, Part] | None:
        """Each layer's form; None where rows of embedding and head train, too."""
        return None if self.rows is not None else super().parts()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone while open; new tokens are what they began as."""
        with super().disabled():
            if self.rows is None:
                yield
                return
            before, self.rows.tokens.enabled = self.rows.tokens.enabled, False
            try:
                yield
            finally:
                self.rows.tokens.enabled = before

    def merge(self) -> None:
        """Fold each update into its layer and the rows of new tokens into their matrices; all or none."""
        super().merge()
        if self.rows is not None:
            self.rows.merge()
            self.rows = None

    def rate_factors(self) -> Mapping[str, float]:
        """LoRA+: B learns faster than A."""
        return {name: self.loraplus_ratio for name in self.trainable if name.endswith("lora_B")}

    def file_tensors(self) -> dict[str, Tensor]:
        """`lora_A.weight` and `lora_B.weight` of each layer, of twice the rank where the start is kept."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            named = {**layer.tensors(), **dict(zip(("lora_A", "lora_B"), layer.update(), strict=True))}
            found |= {f"{PREFIX}{name}.{_in_file(key)}": tensor for key, tensor in named.items()}
        if self.rows is not None:
            found |= {f"{PREFIX}{name}": tensor for name, tensor in self.rows.file_tensors().items()}
        return found

    def start_at(self, folder: Path) -> None:
        """A kept start is that of the earlier training, whose seed may have been another; no rows are looked at."""
        tensors = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, self.file_tensors())
        for name, layer in self.layers.items():
            if layer.start is not None:
                layer.take_start(*(tensors[f"{PREFIX}{name}.{_in_file(key)}"] for key in ("lora_A", "lora_B")))
        self.waits_for_rows = False
        super().start_at(folder)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Set A and B; of a kept start, those that were moved to what the file says."""
        for name, layer in self.layers.items():
            for key, parameter in layer.tensors().items():
                given = tensors[f"{PREFIX}{name}.{_in_file(key)}"]
                if layer.start is not None and key == "lora_A":
                    given = given[: layer.rank]
                elif layer.start is not None and key == "lora_B":
                    given = given[:, : layer.rank] + given[:, layer.rank :]
                parameter.copy_(given)
        if self.rows is not None:
            self.rows.take({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})


def _in_file(key: str) -> str:
    return f"{key}.weight" if key in ("lora_A", "lora_B") else key


class LowRank(Targeted):
    """Settings of every low-rank adapter."""

    rank: int = Field(16, ge=1)
    """Rank of the update; the adapter's size and capacity grow with it."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / rank."""
    ranks: dict[str, int] = Field(default_factory=dict)
    """Other ranks by the ending of a layer's name: `{ down_proj = 32 }`."""
    alphas: dict[str, float] = Field(default_factory=dict)
    """Other alphas by the ending of a layer's name."""
    scaling: Literal["rank", "sqrt_rank"] = "rank"
    """Divide alpha by the rank, or by its square root (rsLoRA), so that large ranks learn as fast as small ones."""
    loraplus_ratio: float = Field(1.0, gt=0)
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the learning rate of B over that of A; 16 is its authors' choice."""

    new_tokens: tuple[str, ...] = ()
    """Texts that become tokens of the model, such as `["<tool>", "</tool>"]`; their rows of embedding and head train.
    The template and replies may write them; they begin as the mean of the pieces that they were made of."""

    free_to_change: ClassVar[frozenset[str]] = frozenset({"start_from", "loraplus_ratio"})
    use_dora: ClassVar[bool] = False
    _token_ids: tuple[int, ...] = PrivateAttr(())

    @property
    def start(self) -> str:
        """How A and B begin, one of `STARTS`."""
        return "kaiming"

    @property
    def dropped(self) -> float:
        """Dropout on the update's input."""
        return 0.0

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The new tokens."""
        return self.new_tokens

    def reading(self, encode: Callable[[str], Sequence[int]]) -> "LowRank":
        """The adapter, with the ids of its new tokens.

        Raises:
            ModelError: one is no token of the model.
        """
        ids = [tuple(encode(text)) for text in self.new_tokens]
        unknown = [text for text, found in zip(self.new_tokens, ids, strict=True) if len(found) != 1]
        if unknown:
            raise ModelError(
                f"adapter.new_tokens: the model does not know {unknown}; `with_new_tokens` adds them to it"
            )
        return self._training_tokens(tuple(found[0] for found in ids)) if ids else self

    def _training_tokens(self, ids: tuple[int, ...]) -> "LowRank":
        found = self.model_copy()
        found._token_ids = ids
        return found

    def inject(self, model: nn.Module, seed: int) -> InjectedLoRA:
        """Wrap each target, and put rows beside those of new tokens; everything else is frozen.

        Raises:
            ModelError: a target matches no linear layer, it is the output head (tied to the embedding), or `all_linear`
            would leave matrices out.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = choose(model, self.targets, self.layers)
        self._require_patterns(list(chosen))
        model.requires_grad_(False)
        layers: dict[str, LoRALinear] = {}
        for name, linear in chosen.items():
            layers[name] = self._wrap(name, linear, generator)
            replace(model, name, layers[name])
        return InjectedLoRA(model, layers, self, InjectedRows(model, self._token_ids) if self._token_ids else None)

    def restore(self, model: nn.Module, folder: Path) -> InjectedLoRA:
        """Inject with the rank, alpha and targets of the folder's settings, then load its tensors.

        Raises:
            ModelError: the folder is not a plain LoRA, or its tensors do not fit the model.
        """
        config = read_low_rank(folder, self.use_dora)
        found = type(self)(
            **self._also(config),
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=targets_of(config),
            layers=numbers_of(config),
            ranks=config.get("rank_pattern") or {},
            alphas=config.get("alpha_pattern") or {},
            scaling="sqrt_rank" if config.get("use_rslora") else "rank",
        )
        injected = found._training_tokens(ids_of(config, model)).inject(model, seed=0)
        injected.load(folder)
        return injected

    def _also(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of one method alone, from peft's."""
        return {}

    def file_settings(self, names: list[str]) -> dict[str, Any]:
        """Settings as `peft` writes them, for the layers of these names."""
        times = 2 if self.start in KEPT else 1  # the file holds A' and B' of `LoRALinear.update`, scaled as before
        stretch = times if self.scaling == "rank" else times**0.5
        return {
            "peft_type": "LORA",
            "r": self.rank * times,
            "lora_alpha": self.alpha * stretch,
            "lora_dropout": self.dropped,
            "rank_pattern": {key: rank * times for key, rank in self.ranks.items()},
            "alpha_pattern": {key: alpha * stretch for key, alpha in self.alphas.items()},
            "use_rslora": self.scaling == "sqrt_rank",
            "use_dora": self.use_dora,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }

    def _layer(self) -> type[LoRALinear]:
        return LoRALinear

    def _wrap(self, name: str, linear: Linear, generator: torch.Generator) -> LoRALinear:
        rank, scale = self._shape(name)
        a, b = STARTS[self.start](linear, rank, scale, generator)
        layer = self._layer()(linear, rank, scale, self.dropped, a, b)
        if self.start in KEPT:
            layer.keep_start()
        return layer

    def _require_patterns(self, names: list[str]) -> None:
        for field, patterns in (("ranks", self.ranks), ("alphas", self.alphas)):
            for key in patterns:
                if not any(matches(name, key) for name in names):
                    raise ModelError(f"adapter.{field}: {key!r} is the ending of no layer that gets an update")

    def _shape(self, name: str) -> tuple[int, float]:
        """Rank and scale of the layer of this name."""
        rank = next((rank for key, rank in self.ranks.items() if matches(name, key)), self.rank)
        alpha = next((alpha for key, alpha in self.alphas.items() if matches(name, key)), self.alpha)
        return rank, alpha / (rank if self.scaling == "rank" else rank**0.5)
