"""TRL's GRPOTrainer, sampling included, all replies as long as allowed. Prints an outcome.

The loss shown is the negated mean log-probability of what was written, over the steps so far.
"""

from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines
from benchmarks.peers._trl import LORA, trl_arguments

job = read_job()
rows = read_lines(job["rows"])
clock = Clock(job)
size = job["group_size"]


class Told(GRPOTrainer):
    """A trainer that keeps the log-probabilities of its replies."""

    told: list[float]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.told.append(-float(found[0].detach().float().mean()))
        return found


config = GRPOConfig(
    **trl_arguments(job, rows=size),
    beta=0.0,
    num_generations=size,
    max_completion_length=job["new_tokens"],
    temperature=1.0,
    shuffle_dataset=False,
    generation_kwargs={"eos_token_id": -1},  # no token: replies do not end, as those of Luthier here
)
trainer = Told(
    model=job["model"],
    args=config,
    reward_funcs=lambda completions, **_: [len(completion[0]["content"]) / 100 for completion in completions],
    train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
    peft_config=LORA,
    callbacks=[clock],
)
trainer.told = []
trainer.train()
part = len(trainer.told) // job["steps"]
means = [sum(trainer.told[i * part : (i + 1) * part]) / part for i in range(job["steps"])]
clock.losses = [sum(means[: i + 1]) / (i + 1) for i in range(len(means))]
clock.tell()
