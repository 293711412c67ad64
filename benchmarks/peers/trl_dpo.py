"""TRL's DPOTrainer with PEFT (the reference is the model with its adapter off). Prints an outcome."""

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines
from benchmarks.peers._trl import LORA, trl_arguments

job = read_job()
pairs = read_lines(job["rows"])
clock = Clock(job)
config = DPOConfig(
    **trl_arguments(job),
    beta=0.1,
    max_length=None,
    train_sampling_strategy="sequential",
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
    peft_config=LORA,
    callbacks=[clock],
)
trainer.train()
clock.tell()
