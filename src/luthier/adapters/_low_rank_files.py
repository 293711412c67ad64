"""What the settings files of low-rank adapters say: peft's fields that are understood, and what they make of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.adapters._layers import matches, read_settings
from luthier.adapters._tokens import INDICES

UNDERSTOOD: Mapping[str, tuple[Any, ...]] = {
    **{field: () for field in ("r", "lora_alpha", "lora_dropout", "layers_to_transform", "use_rslora")},
    **{field: () for field in ("rank_pattern", "alpha_pattern", INDICES)},
    **{field: () for field in ("megatron_core", "qalora_group_size")},  # settings of things that are off
    "bias": ("none",),
    # the base stays as it was; others (pissa, olora, ...) train on a base that their initialization has changed
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
"""Fields of peft's settings and the values that are computed here; none stands for any."""


def read_low_rank(folder: Path, use_dora: bool = False) -> dict[str, Any]:
    """The settings of a LoRA's folder, or of a DoRA's.

    Raises:
        ModelError: it is no such adapter, or one that computes something else.
    """
    plain = {**UNDERSTOOD, "use_dora": (use_dora,)}
    return read_settings(folder, "LORA", ("r", "lora_alpha", "target_modules"), plain)


def scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What peft's settings multiply the update of this layer by; `rank` is that of its tensors."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = next((alpha for key, alpha in patterns.items() if matches(name, key)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
