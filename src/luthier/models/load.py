"""A verified folder becomes a model in memory, with its tokenizer and the ids that end a turn."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.models.catalog import ModelFiles


@dataclass(frozen=True)
class LoadedModel:
    """A base model that is ready to be scored, sampled from, or adapted."""

    model: nn.Module
    tokenizer: Any
    """The `transformers` tokenizer."""
    stop_ids: frozenset[int]
    """Ids that end an assistant turn."""
    max_tokens: int
    """Longest sequence the model was made for."""
    files: ModelFiles
    dtype: torch.dtype
    device: torch.device
