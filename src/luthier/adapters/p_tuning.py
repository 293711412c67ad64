"""P-tuning (Liu et al. 2021, arXiv:2103.10385): embeddings of virtual tokens come from a small network that trains.

    embedding_i = z_i + network(z)_i        z: (tokens, width) trained

The sum is that of residual prompt tuning (Razdaibiedina et al. 2023, arXiv:2305.03937): the last layer starts at 0, so
that virtual tokens start as words of the vocabulary. From what a fresh network makes of them a small model
learned less (docs/adapters.md). The network is an MLP of three layers, or a bidirectional LSTM with an MLP behind it;
it lets the embeddings move together while training, and the artifact holds the embeddings alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.adapters._virtual import (
    InjectedVirtual,
    Virtual,
    VirtualEmbedding,
    embedding_of,
    read_virtual,
    shape_settings,
)
from luthier.adapters.prompt import InjectedPrompt, PromptEmbedding


class EncodedEmbedding(VirtualEmbedding):
    """Virtual tokens that a network makes."""

    def __init__(self, base: nn.Embedding, start: Tensor, width: int, network: str) -> None:
        super().__init__(base, len(start))
        size = start.shape[1]
        self.z = nn.Parameter(start.float())
        self.lstm = nn.LSTM(size, width, num_layers=2, bidirectional=True) if network == "lstm" else None
        given = 2 * width if network == "lstm" else size
        middle = [nn.Linear(width, width), nn.ReLU()] if network == "mlp" else []
        self.mlp = nn.Sequential(nn.Linear(given, width), nn.ReLU(), *middle, nn.Linear(width, size))
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def contents(self) -> Tensor:
        """(count, width)"""
        hidden = self.z
        if self.lstm is not None:
            hidden, _ = self.lstm(hidden)
        added: Tensor = self.mlp(hidden)
        return self.z + added


class InjectedPTuning(InjectedVirtual):
    """Virtual tokens and the network that makes them; once loaded from an artifact, the embeddings alone."""

    embedding: EncodedEmbedding | PromptEmbedding  # type: ignore[assignment]

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """All of the network and what goes into it."""
        own = {name: p for name, p in self.embedding.named_parameters() if not name.startswith("base.")}
        return {f"prompt_encoder.{name}": p for name, p in own.items()}

    def contents(self) -> Tensor:
        """(count, width)"""
        return self.embedding.contents()

    def begin_at(self, contents: Tensor) -> None:
        """z becomes the contents, and a fresh network adds nothing to them."""
        assert isinstance(self.embedding, EncodedEmbedding)
        self.embedding.z.copy_(contents)

    def take(self, contents: Tensor) -> None:
        """Put plain embeddings in the network's place."""
        self.embedding = PromptEmbedding(self.embedding.base, contents.to(self.embedding.weight.device))
        self.model.set_input_embeddings(self.embedding)


class PTuning(Virtual):
    """Train a network that makes the embeddings of virtual tokens before every row."""

    learning_rate: ClassVar[float] = 2e-3

    network: Literal["mlp", "lstm"] = "mlp"
    """What makes the embeddings."""
    width: int = Field(512, ge=1)
    """Width of its hidden layers."""

    def inject(self, model: nn.Module, seed: int) -> InjectedPTuning:
        """Give the model virtual tokens; everything else is frozen.

        Raises:
            ModelError: the model's embedding is not a plain one.
        """
        base, start = self.begin(model, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            embedding = EncodedEmbedding(base, start, self.width, self.network).to(base.weight.device)
        model.set_input_embeddings(embedding)  # type: ignore[operator]
        config: dict[str, Any] = {
            "peft_type": "P_TUNING",
            "encoder_hidden_size": self.width,
            "encoder_reparameterization_type": self.network.upper(),
        }
        return InjectedPTuning(model, embedding, {**config, **shape_settings(model, self.tokens)})

    def restore(self, model: nn.Module, folder: Path) -> InjectedPrompt:
        """Inject as many virtual tokens as the folder's settings say, then load them."""
        free = ("encoder_hidden_size", "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout")
        config = read_virtual(folder, "P_TUNING", free)
        base = embedding_of(model)
        model.requires_grad_(False)
        embedding = PromptEmbedding(base, torch.zeros(config["num_virtual_tokens"], base.embedding_dim))
        embedding.to(base.weight.device)
        model.set_input_embeddings(embedding)  # type: ignore[operator]
        kept = {key: value for key, value in config.items() if key not in ("base_model_name_or_path",)}
        injected = InjectedPrompt(model, embedding, kept)
        injected.load(folder)
        return injected
