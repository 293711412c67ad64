"""What vLLM makes of an adapter in the layout of `peft`: whether it computes what was trained, and the largest rank."""

from collections.abc import Mapping
from typing import Any

PLAIN = ("alora_invocation_tokens", "modules_to_save", "trainable_token_indices", "use_dora")
"""Settings of an adapter that vLLM refuses, or leaves out."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""


def why_not(settings: Mapping[str, Any]) -> str | None:
    """Why vLLM would compute something else than an adapter of these settings (`adapter_config.json`); None: it would
    not."""
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none":
        return "it is no LoRA"
    if extra := [name for name in PLAIN if settings.get(name)]:
        return f"its adapter has {', '.join(extra)}"
    return None


def rank_for(settings: Mapping[str, Any]) -> int | None:
    """The least `--max-lora-rank` under which such an adapter can be loaded; None: there is none."""
    needed = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    return next((rank for rank in RANKS if rank >= needed), None)
