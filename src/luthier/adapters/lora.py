"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) and its variants that compute the same.

What it shares with others is in `_low_rank`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.adapters._low_rank import LowRank


class LoRA(LowRank):
    """Add a trainable low-rank update to each chosen linear layer."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input, while training."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"] = "kaiming"
    """How A and B begin: A random and B zero (two kinds), both random, from the weight's own largest directions (two
    kinds), over a quantized base from what quantizing lost (`loftq`), or A from the directions in which the layers'
    inputs vary on the first training rows (`eva`)."""

    free_to_change: ClassVar[frozenset[str]] = LowRank.free_to_change | {"dropout"}

    @property
    def start(self) -> str:
        """How A and B begin."""
        return self.init

    @property
    def dropped(self) -> float:
        """Dropout on the update's input."""
        return self.dropout

    def _also(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"dropout": config.get("lora_dropout") or 0.0}
