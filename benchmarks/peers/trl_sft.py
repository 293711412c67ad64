"""TRL's SFTTrainer with PEFT, on rows whose tokens and mask are given. Prints an outcome."""

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines
from benchmarks.peers._trl import LORA, trl_arguments

job = read_job()
rows = read_lines(job["tokens"])
clock = Clock(job)
config = SFTConfig(
    **trl_arguments(job),
    max_length=None,
    completion_only_loss=True,  # else the mask of rows given as tokens is ignored
    train_sampling_strategy="sequential",
)
trainer = SFTTrainer(
    model=job["model"],
    args=config,
    train_dataset=Dataset.from_list([{"input_ids": r["ids"], "completion_mask": r["mask"]} for r in rows]),
    peft_config=None if job["full"] else LORA,
    callbacks=[clock],
)
trainer.train()
clock.tell()
