"""TRL's GRPOTrainer on completions and advantages that are given: it scores them, then updates. Prints an outcome.

Only sampling is left out. The loss shown is the negated mean log-probability of the completions when they are scored,
since GRPO's own is 0 at the first update whatever the model.
"""

from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers._clock import Clock
from benchmarks.peers._outcome import read_job, read_lines
from benchmarks.peers._trl import LORA, trl_arguments

job = read_job()
groups = read_lines(job["tokens"])
clock = Clock(job)
micro = job["micro_rows"]
size = len(groups[0]["completions"])


class Given(GRPOTrainer):
    """A trainer whose completions are not sampled."""

    scored: list[tuple[float, int]]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Completions of the next micro-batch, padded, with the log-probabilities that they have now."""
        first = self._step * micro % (size * len(groups))
        taken = [
            (group["prompt"], group["completions"][i % size], group["advantages"][i % size])
            for i in range(first, first + micro)
            for group in [groups[i // size]]
        ]
        width = max(len(prompt) for prompt, _, _ in taken)
        longest = max(len(completion) for _, completion, _ in taken)
        pad = self.processing_class.pad_token_id
        inputs = {
            "prompt_ids": torch.tensor([[pad] * (width - len(p)) + p for p, _, _ in taken]),
            "prompt_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _, _ in taken]),
            "completion_ids": torch.tensor([c + [pad] * (longest - len(c)) for _, c, _ in taken]),
            "completion_mask": torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for _, c, _ in taken]),
            "advantages": torch.tensor([a for _, _, a in taken]),
            "num_items_in_batch": torch.tensor(0),
        }
        with torch.no_grad(), self.compute_loss_context_manager():
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            old, *_ = self._get_per_token_logps_and_entropies(self.model, ids, seen, longest, batch_size=micro)
        inputs["old_per_token_logps"] = old
        mask = inputs["completion_mask"]
        self.scored.append((float((old * mask).sum()), int(mask.sum())))
        return inputs


config = GRPOConfig(
    **trl_arguments(job, rows=size),
    loss_type="grpo",
    beta=0.0,
    num_generations=size,
)
trainer = Given(
    model=job["model"],
    args=config,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    train_dataset=Dataset.from_list([{"prompt": "unused"}] * (job["steps"] * job["rows_per_step"] * size)),
    peft_config=LORA,
    callbacks=[clock],
)
trainer.scored = []
trainer.train()
per_step = len(trainer.scored) // job["steps"]
parts = [trainer.scored[i * per_step : (i + 1) * per_step] for i in range(job["steps"])]
clock.losses = [-sum(total for total, _ in part) / sum(count for _, count in part) for part in parts]
clock.tell()
