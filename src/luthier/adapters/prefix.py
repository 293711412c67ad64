"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): keys and values of virtual tokens train, in every layer.

Every token attends to the virtual ones before it, whose keys and values are trained numbers instead of what the layer
would make of its input. Keys are held as they are before rotary positions turn them, and peft's files hold them turned;
what is saved and read is turned here. They start as the layer's own keys and values of a text or of random words, since
keys that are far from those of words ruin a small model at once. With `reparametrize` they come from a small network
while training; the artifact holds keys and values alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._virtual import (
    InjectedVirtual,
    Virtual,
    VirtualEmbedding,
    embedding_of,
    read_virtual,
)
from luthier.errors import ModelError


class PrefixEmbedding(VirtualEmbedding):
    """Virtual tokens whose keys and values train; what they are embedded as plays no part."""

    def __init__(self, base: nn.Embedding, start: Tensor, width: int, checkpoints: Callable[[], bool]) -> None:
        """`start` (count, layers, 2, heads, size): keys and values of each layer."""
        super().__init__(base, len(start))
        self.shape = start.shape
        self.checkpoints = checkpoints
        flat = start.float().flatten(1)
        self.prefix = nn.Parameter(flat.clone())
        self.network: nn.Module | None = None
        if width:  # the start plus what the network makes, which is 0 at first
            self.network = nn.Sequential(nn.Linear(flat.shape[1], width), nn.Tanh(), nn.Linear(width, flat.shape[1]))
            for parameter in self.network[2].parameters():
                nn.init.zeros_(parameter)
        self.now: Tensor | None = None

    def keys_and_values(self) -> Tensor:
        """(count, layers, 2, heads, size)"""
        flat = self.prefix if self.network is None else self.prefix + self.network(self.prefix)
        return flat.view(self.shape)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., width); the layers' keys and values are made here, once for all layers."""
        out = super().forward(ids)
        if self.places is None:
            self.now = None
        elif self.training and torch.is_grad_enabled() and self.checkpoints():
            # layers that are computed again in the backward pass would look for places that are not there any longer
            raise ModelError("adapter.type = prefix: not with training.gradient_checkpointing; use `prompt`, or LoRA")
        else:
            self.now = self.keys_and_values()
        return out


class PrefixLinear(nn.Module):
    """The linear layer that makes keys, or values: trained numbers for virtual tokens."""

    def __init__(self, base: nn.Linear, layer: int, part: int, embedding: PrefixEmbedding) -> None:
        super().__init__()
        self.base, self.layer, self.part = base, layer, part
        self._embedding = (embedding,)  # in a tuple, so that it is no child of this module

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        y: Tensor = self.base(x)
        (embedding,) = self._embedding
        if embedding.now is None or embedding.places is None:
            return y
        given = embedding.now[:, self.layer, self.part].flatten(1).to(y.dtype)
        flat = y.view(-1, y.shape[-1])
        return flat.index_copy(0, embedding.places, given[embedding.which]).view(y.shape)


class InjectedPrefix(InjectedVirtual):
    """Trained keys and values of virtual tokens; once loaded from an artifact, without the network."""

    embedding: PrefixEmbedding

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Keys and values, and the network if there is one."""
        own = {name: p for name, p in self.embedding.named_parameters() if not name.startswith("base.")}
        return {f"prompt_encoder.{name}": p for name, p in own.items()}

    def rate_factors(self) -> Mapping[str, float]:
        """The network learns more slowly: one step of its last layer moves a key by as many steps as it is wide."""
        if self.embedding.network is None:
            return {}
        width = next(iter(self.embedding.network.parameters())).shape[0]
        return {name: 1 / width for name in self.trainable if ".network." in name}

    def contents(self) -> Tensor:
        """(count, layers * 2 * heads * size), keys turned by their positions."""
        return self._turned(self.embedding.keys_and_values(), 1.0).flatten(1)

    def take(self, contents: Tensor) -> None:
        """Hold these keys and values, without a network."""
        self.embedding.network = None
        self.begin_at(contents)

    def begin_at(self, contents: Tensor) -> None:
        """Hold these keys and values; a fresh network adds nothing to them."""
        turned = contents.to(self.embedding.prefix.device).view(self.embedding.shape)
        self.embedding.prefix.copy_(self._turned(turned, -1.0).flatten(1))

    def _turned(self, kv: Tensor, direction: float) -> Tensor:
        """Keys turned to their positions (direction 1) or back (-1); values as they are."""
        positions = torch.arange(len(kv), device=kv.device)[None]
        rotary = self.model.base_model.rotary_emb
        cos, sin = (turn[0][:, None, None, None].to(kv.dtype) for turn in rotary(kv, positions))
        keys, values = kv[:, :, :1], kv[:, :, 1:]
        one, other = keys.chunk(2, dim=-1)
        scale = vars(rotary).get("attention_scaling", 1.0)
        turned = (keys * cos + direction * torch.cat([-other, one], -1) * sin) / (scale**2 if direction < 0 else 1.0)
        return torch.cat([turned, values], 2)


class Prefix(Virtual):
    """Train keys and values of virtual tokens in every layer."""

    learning_rate: ClassVar[float] = 2e-2

    text: str = ""
    """A text whose keys and values the virtual tokens start at, repeated as often as need be; empty: random words."""
    reparametrize: bool = False
    """Whether a network between the start and the keys and values trains with them."""
    width: int = Field(512, ge=1)
    """Width of that network."""

    def reading(self, encode: Callable[[str], Sequence[int]]) -> "Prefix":
        """Knows the text's tokens."""
        found = self.starting_with(self.text, encode) if self.text else self
        assert isinstance(found, Prefix)
        return found

    def inject(self, model: nn.Module, seed: int) -> InjectedPrefix:
        """Give the model virtual tokens and put their keys and values into every layer; everything else is frozen.

        Raises:
            ModelError: the model's embedding is not a plain one, or its keys are not what one linear layer makes.
        """
        base, made = embedding_of(model), _makers(model)
        ids = self.start_ids(base.num_embeddings, torch.Generator().manual_seed(seed))
        start = _kv_of(model, made, ids.to(base.weight.device))
        model.requires_grad_(False)
        any_model: Any = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = self.width if self.reparametrize else 0
            embedding = PrefixEmbedding(base, start, width, lambda: any_model.base_model.gradient_checkpointing)
            embedding.to(base.weight.device)
        any_model.set_input_embeddings(embedding)
        for number, (attention, _) in enumerate(made):
            for part, name in enumerate(("k_proj", "v_proj")):
                attention.register_module(name, PrefixLinear(attention.get_submodule(name), number, part, embedding))
        heads = start.shape[3]
        config = {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": self.tokens,
            "num_transformer_submodules": 1,
            "num_layers": len(made),
            "num_attention_heads": heads,
            "token_dim": heads * start.shape[4],
            "encoder_hidden_size": self.width,
            "prefix_projection": False,
        }
        return InjectedPrefix(any_model, embedding, config)

    def restore(self, model: nn.Module, folder: Path) -> InjectedPrefix:
        """Inject as many virtual tokens as the folder's settings say, then load their keys and values."""
        config = read_virtual(folder, "PREFIX_TUNING", ("encoder_hidden_size", "prefix_projection", "init_weights"))
        injected = Prefix(tokens=config["num_virtual_tokens"]).inject(model, seed=0)
        injected.load(folder)
        return injected


def _makers(model: Any) -> list[tuple[Any, int]]:
    """The attention of each layer, and the size of its heads."""
    parts = [(m, dict(m.named_children())) for m in model.modules() if "head_dim" in vars(m)]
    found = [m for m, children in parts if {"k_proj", "v_proj"} <= children.keys()]
    normed = any("k_norm" in children for _, children in parts)
    if len(found) != model.config.get_text_config().num_hidden_layers or normed:
        raise ModelError(
            f"{type(model).__name__}: its keys are not the output of one linear layer (k_proj); "
            "use adapter.type = prompt"
        )
    if "rotary_emb" not in dict(model.base_model.named_children()):
        raise ModelError(f"{type(model).__name__} has no rotary positions of its own; use adapter.type = prompt")
    return [(m, m.head_dim) for m in found]


@torch.no_grad()
def _kv_of(model: Any, made: list[tuple[Any, int]], ids: Tensor) -> Tensor:
    """(tokens, layers, 2, heads, size) keys and values that the base makes of these ids, before positions turn them."""
    seen: dict[tuple[int, int], Tensor] = {}
    hooks = []
    for number, (attention, size) in enumerate(made):
        for part, linear in enumerate((attention.k_proj, attention.v_proj)):

            def note(_: Any, __: Any, out: Tensor, at: tuple[int, int] = (number, part), size: int = size) -> None:
                seen[at] = out.view(-1, out.shape[-1] // size, size).float()

            hooks.append(linear.register_forward_hook(note))
    training = model.training
    model.eval()
    try:
        model(input_ids=ids[None], use_cache=False, logits_to_keep=1)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.stack([seen[n, part] for part in (0, 1)], 1) for n in range(len(made))], 1)
