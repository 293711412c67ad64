"""ms-swift's `sft` on the same conversations, in its own ChatML template. Prints an outcome.

Its template trains on the line break after an answer, too: one token more for each row.
"""

import json
from pathlib import Path
from typing import Any

from swift import sft_main
from swift.callbacks import callbacks_map

from benchmarks.peers._clock import Clock, arguments
from benchmarks.peers._outcome import read_job, read_lines

job = read_job()
clock = Clock(job)


def build_clock(_arguments: Any, _trainer: Any) -> Clock:
    """Callbacks are made by the trainer; this one was made before."""
    return clock


callbacks_map["bench_clock"] = build_clock
data = Path(job["folder"]) / "conversations.jsonl"
with data.open("w", encoding="utf-8") as file:
    for row in read_lines(job["rows"]):
        answer = {"role": "assistant", "content": row["answer"]}
        file.write(json.dumps({"messages": [*row["prompt"], answer]}) + "\n")
method = ["full"] if job["full"] else ["lora", "--lora_rank=16", "--lora_alpha=32", "--lora_dropout=0"]
settings = {
    "model": job["model"],
    "model_type": "llama",
    "template": "chatml",
    "torch_dtype": "float32" if job["full"] or job["float32"] else "bfloat16",
    "fp16": "false",  # else weights in float32 mean it
    "dataset": str(data),
    "split_dataset_ratio": 0,
    "dataset_shuffle": "false",
    "train_dataloader_shuffle": "false",
    "max_length": 8192,
    **arguments(job),
    "warmup_ratio": 0,
    "adam_beta2": 0.999,
    "gradient_checkpointing": "false",
    "callbacks": "bench_clock",
}
sft_main([f"--tuner_type={method[0]}", *method[1:], *(f"--{name}={value}" for name, value in settings.items())])
clock.tell()
