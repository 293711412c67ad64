"""TRL's DPOTrainer with PEFT (the reference is the model with its adapter off). Prints an outcome."""

from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines

job = read_job()
pairs = read_lines(job["rows"])
clock = Clock(job)
micro = job["micro_rows"]
config = DPOConfig(
    output_dir=job["folder"],
    beta=0.1,
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
    gradient_checkpointing=False,
    train_sampling_strategy="sequential",
    model_init_kwargs={"dtype": "bfloat16"},
    disable_tqdm=True,
)
trainer = DPOTrainer(
    model=job["model"],
    args=config,
    train_dataset=Dataset.from_list(
        [
            {
                "prompt": pair["prompt"],
                "chosen": [{"role": "assistant", "content": pair["chosen"]}],
                "rejected": [{"role": "assistant", "content": pair["rejected"]}],
            }
            for pair in pairs
        ]
    ),
    peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[clock],
)
trainer.train()
clock.tell()
