"""What adapters of virtual tokens share: the embedding that knows them, the handle, and peft's files.

See `models/virtual.py` for how virtual tokens come before every row. An adapter's file says what they hold; a network
that makes them (reparametrization) is used while training and left out of the artifact, as in the papers.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PrivateAttr
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.adapters._layers import SETTINGS, WEIGHTS, read_settings, write_artifact
from luthier.adapters.base import Adapter, Injected, require_same_tensors
from luthier.errors import ModelError
from luthier.models.mixed import Part
from luthier.models.virtual import without_virtual

KEY = "prompt_embeddings"


class VirtualEmbedding(nn.Module):
    """An embedding that also knows virtual tokens, whose ids follow its own."""

    def __init__(self, base: nn.Embedding, count: int) -> None:
        super().__init__()
        self.base, self.count = base, count
        self.places: Tensor | None = None
        """Which of the tokens that were embedded last are virtual (their places, all rows end to end); None: none."""
        self.which: Tensor | None = None
        """Their numbers, from 0."""

    @property
    def weight(self) -> Tensor:
        """The embedding of the vocabulary."""
        return self.base.weight

    def contents(self) -> Tensor | None:
        """(count, width) what virtual tokens are embedded as; None: zeros."""
        return None

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., width)"""
        first = self.base.num_embeddings
        virtual = ids >= first
        self.places = self.which = None
        out: Tensor = self.base(ids.clamp(max=first - 1))
        if not bool(virtual.any()):
            return out
        self.places = virtual.flatten().nonzero()[:, 0]
        self.which = ids.flatten()[self.places] - first
        flat, contents = out.view(-1, out.shape[-1]), self.contents()
        given = torch.zeros_like(flat[: self.count]) if contents is None else contents.to(out.dtype)
        return flat.index_copy(0, self.places, given[self.which]).view(out.shape)


class InjectedVirtual(Injected):
    """Virtual tokens before every row of one model."""

    starts_as_base = False

    def __init__(self, model: Any, embedding: VirtualEmbedding, config: Mapping[str, Any]) -> None:
        self.model, self.embedding, self.config = model, embedding, dict(config)
        first = embedding.base.num_embeddings
        model.virtual_ids = tuple(range(first, first + embedding.count))

    @abstractmethod
    def contents(self) -> Tensor:
        """(count, numbers of one token) as the artifact holds them."""

    @abstractmethod
    def take(self, contents: Tensor) -> None:
        """Hold these contents from now on, without the network that made others."""

    def begin_at(self, contents: Tensor) -> None:
        """Hold these contents, with a fresh network beside them where one trains."""
        self.take(contents)

    def parts(self) -> Mapping[str, Part]:
        """Nothing: the virtual tokens are read with the prompt."""
        return {}

    def disabled(self) -> AbstractContextManager[None]:
        """No virtual tokens while open."""
        return without_virtual(self.model)

    def merge(self) -> None:
        """Refused."""
        raise NotImplementedError(
            "virtual tokens are no weights and cannot be merged: keep the adapter beside its base"
        )

    def save(self, folder: Path, base_name: str) -> None:
        """Write settings and contents as `peft` does."""
        with torch.no_grad():
            write_artifact(folder, base_name, self.config, {KEY: self.contents()})

    def load(self, folder: Path) -> None:
        """Read the contents of a folder that `save` or `peft` wrote."""
        with torch.no_grad():
            self.take(self._read(folder))

    def start_at(self, folder: Path) -> None:
        """What an earlier training left are contents alone: a network begins anew from them."""
        with torch.no_grad():
            self.begin_at(self._read(folder))

    def _read(self, folder: Path) -> Tensor:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, {KEY: self.contents()})
        return tensors[KEY]


class Virtual(Adapter):
    """Settings that all virtual tokens have."""

    tokens: int = Field(32, ge=1)
    """How many virtual tokens stand before every row."""

    _start: tuple[int, ...] = PrivateAttr(())

    def start_ids(self, vocabulary: int, generator: torch.Generator) -> Tensor:
        """(tokens,) ids of the vocabulary whose embeddings the virtual ones start at: the text's, over and over, or
        random ones."""
        if self._start:
            return torch.tensor((self._start * (self.tokens // len(self._start) + 1))[: self.tokens])
        return torch.randint(0, vocabulary, (self.tokens,), generator=generator)

    def begin(self, model: Any, seed: int) -> tuple[nn.Embedding, Tensor]:
        """The model's embedding, and (tokens, width) what the virtual tokens start as; the model is frozen.

        Raises:
            ModelError: the embedding is not a plain one.
        """
        base = embedding_of(model)
        ids = self.start_ids(base.num_embeddings, torch.Generator().manual_seed(seed))
        model.requires_grad_(False)
        return base, base.weight.detach()[ids.to(base.weight.device)]

    def starting_with(self, text: str, encode: Callable[[str], Sequence[int]]) -> "Virtual":
        """A copy whose virtual tokens start as this text.

        Raises:
            ModelError: it has no token.
        """
        ids = tuple(encode(text))
        if not ids:
            raise ModelError(f"adapter.text = {text!r} has no token to start from")
        found = self.model_copy()
        found._start = ids
        return found


def read_virtual(folder: Path, kind: str, fields: Sequence[str]) -> dict[str, Any]:
    """peft's settings of virtual tokens; `fields` are those of this kind that say nothing of what is computed.

    Raises:
        ModelError: they are of another kind, or ask for what is not computed here.
    """
    free = ("num_attention_heads", "num_layers", "num_virtual_tokens", "token_dim", *fields)
    plain = {**{field: () for field in free}, "num_transformer_submodules": (1,)}
    config = read_settings(folder, kind, ("num_virtual_tokens",), plain)
    if config["num_virtual_tokens"] < 1:
        raise ModelError(f"{folder / SETTINGS}: num_virtual_tokens is {config['num_virtual_tokens']}")
    return config


def shape_settings(model: Any, tokens: int) -> dict[str, Any]:
    """What peft's settings say of the model's shape."""
    config = model.config.get_text_config()
    return {
        "num_virtual_tokens": tokens,
        "num_transformer_submodules": 1,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "token_dim": config.hidden_size,
    }


def embedding_of(model: Any) -> nn.Embedding:
    """The model's embedding.

    Raises:
        ModelError: it is not a plain one (scaled, or per layer).
    """
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding:
        raise ModelError(
            f"{type(model).__name__}: its embedding is a {type(embedding).__name__}; a plain one is needed"
        )
    return embedding
