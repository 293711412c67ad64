"""What the scripts of TRL share: the adapter, and arguments of every trainer."""

from typing import Any

from peft import LoraConfig

from benchmarks.peers._clock import arguments

LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_arguments(job: dict[str, Any], rows: int = 1) -> dict[str, Any]:
    """As `arguments`, with the weights in bfloat16 and no bars."""
    model = {"dtype": "float32" if job["full"] or job["float32"] else "bfloat16"}
    return {**arguments(job, rows), "gradient_checkpointing": False, "model_init_kwargs": model, "disable_tqdm": True}
