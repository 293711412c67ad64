"""TRL's SFTTrainer with PEFT, on rows whose tokens and mask are given. Prints an outcome."""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(job["threads"])


class Clock(TrainerCallback):
    """Seconds and loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.first = self.began = 0.0

    def on_step_begin(self, *_args: object, **_kwargs: object) -> None:
        """The clock starts."""
        self.began = time.perf_counter()

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        """The clock stops."""
        self.seconds.append(time.perf_counter() - self.began)
        self.first = self.first or time.time() - job["started"]

    def on_log(
        self, _args: object, _state: object, _control: object, logs: dict[str, float], **_kwargs: object
    ) -> None:
        """The loss of the step that has just ended."""
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


rows = [json.loads(line) for line in Path(job["tokens"]).read_text(encoding="utf-8").splitlines()]
clock = Clock()
micro = job.get("micro_rows", 1)
config = SFTConfig(
    output_dir=job["folder"],
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=job["rows_per_step"] // micro,
    max_steps=job["steps"],
    learning_rate=job["learning_rate"],
    lr_scheduler_type="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    logging_steps=1,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    bf16=job.get("autocast", True),
    max_length=None,
    completion_only_loss=True,  # else the mask of rows given as tokens is ignored
    gradient_checkpointing=False,
    train_sampling_strategy="sequential",
    model_init_kwargs={"dtype": "float32" if job["full"] else job.get("dtype", "bfloat16")},
    disable_tqdm=True,
)
lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(
    model=job["model"],
    args=config,
    train_dataset=Dataset.from_list([{"input_ids": r["ids"], "completion_mask": r["mask"]} for r in rows]),
    peft_config=None if job["full"] else lora,
    callbacks=[clock],
)
trainer.train()
steps = [rows[i : i + job["rows_per_step"]] for i in range(0, len(rows), job["rows_per_step"])][: job["steps"]]
print(
    json.dumps(
        {
            "step_seconds": clock.seconds,
            "losses": clock.losses[: job["steps"]],
            "tokens": [sum(len(r["ids"]) for r in step) for step in steps],
            "trained": [sum(sum(r["mask"]) for r in step) for step in steps],
            "first_step": clock.first,
        }
    )
)
