"""TRL's SFTTrainer with PEFT, on rows whose tokens and mask are given. Prints an outcome."""

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines

job = read_job()
rows = read_lines(job["tokens"])
clock = Clock(job)
micro = job["micro_rows"]
config = SFTConfig(
    output_dir=job["folder"],
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=max(job["rows_per_step"] // micro, 1),
    max_steps=job["steps"],
    learning_rate=job["learning_rate"],
    lr_scheduler_type="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    logging_steps=1,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    bf16=job["autocast"],
    max_length=None,
    completion_only_loss=True,  # else the mask of rows given as tokens is ignored
    gradient_checkpointing=False,
    train_sampling_strategy="sequential",
    model_init_kwargs={"dtype": "float32" if job["full"] else "bfloat16"},
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
clock.tell()
