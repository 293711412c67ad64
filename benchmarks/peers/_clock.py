"""The clock of peers that are built on transformers' Trainer."""

import time
from typing import Any

from transformers import TrainerCallback

from benchmarks.peers._outcome import tell_steps


class Clock(TrainerCallback):
    """Seconds and loss of each step of a job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.first = self.began = 0.0

    def on_step_begin(self, *_args: object, **_kwargs: object) -> None:
        """The clock starts."""
        self.began = time.perf_counter()

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        """The clock stops."""
        self.seconds.append(time.perf_counter() - self.began)
        self.first = self.first or time.time() - self.job["started"]

    def on_log(
        self, _args: object, _state: object, _control: object, logs: dict[str, float], **_kwargs: object
    ) -> None:
        """The loss of the step that has just ended."""
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def tell(self) -> None:
        """Print the outcome; the job's `counts` are of its rows, pairs or groups, `rows_per_step` to a step."""
        steps, size, counts = (self.job[name] for name in ("steps", "rows_per_step", "counts"))
        parts = [counts[i * size : (i + 1) * size] for i in range(steps)]
        sums = [(sum(tokens for tokens, _ in part), sum(trained for _, trained in part)) for part in parts]
        tell_steps(self.seconds, self.losses[:steps], sums, self.first)


def arguments(job: dict[str, Any], rows: int = 1) -> dict[str, Any]:
    """transformers' TrainingArguments of a job, by name; `rows` are of each of its rows, pairs or groups."""
    micro = job["micro_rows"]
    return {
        "output_dir": job["folder"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(job["rows_per_step"] * rows // micro, 1),
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": job.get("autocast", True) and not job["float32"],
    }
