"""LLaMA-Factory's `sft` stage, on rows whose tokens and mask are given. Prints an outcome.

It imports torchaudio, whose published wheels are for CUDA, whatever is trained; an empty module stands in for it.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

stand_in = ModuleType("torchaudio")
stand_in.__spec__ = ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = stand_in

from datasets import Dataset  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402

from benchmarks.peers._clock import Clock, arguments  # noqa: E402
from benchmarks.peers._outcome import read_job, read_lines  # noqa: E402

job = read_job()
rows = read_lines(job["tokens"])
tokenized = f"{job['folder']}/tokenized"
Dataset.from_list(
    [
        {
            "input_ids": row["ids"],
            "attention_mask": [1] * len(row["ids"]),
            "labels": [i if trained else -100 for i, trained in zip(row["ids"], row["mask"], strict=True)],
        }
        for row in rows
    ]
).save_to_disk(tokenized)
clock = Clock(job)
method = {"finetuning_type": "full"} if job["full"] else {"finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32}
run_exp(
    {
        "model_name_or_path": job["model"],
        "stage": "sft",
        "do_train": True,
        **method,
        **({} if job["full"] else {"lora_target": "all", "lora_dropout": 0.0}),
        "dataset": "given as tokens",  # a name is asked for and not used
        "tokenized_path": tokenized,
        "template": "chatml",
        "cutoff_len": 8192,
        **arguments(job),
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "disable_tqdm": True,
    },
    [clock],
)
clock.tell()
