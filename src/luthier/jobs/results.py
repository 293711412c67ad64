"""What is told of a step: an event's message and data, a checkpoint's metrics, and the table of all steps."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

OWN = ("learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds", "accuracy", "validation_accuracy")
"""Figures of a step beside OpenAI's; the accuracies are those of pairs."""
ROLLED_OUT = "reply_tokens"
"""A figure of steps whose replies were sampled and graded; a model that learns to judge has a `reward`, too."""
COLUMNS = {
    "openai": ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"),
    "azure": (
        "step",
        "train_loss",
        "train_mean_token_accuracy",
        "valid_loss",
        "validation_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    ),
}
"""Headers of the table, by dialect; validation is always over all validation rows, so both of its losses are one."""
REWARDS = ("train_reward_mean", "valid_reward_mean")
"""What an event tells a second time, below `scores`."""
RENAMED = {
    "train_accuracy": "train_mean_token_accuracy",
    "validation_mean_token_accuracy": "valid_mean_token_accuracy",
}
"""Columns that events call otherwise."""


def step_message(step: Mapping[str, Any], total: int | None) -> str:
    """As OpenAI words it."""
    if ROLLED_OUT in step:
        text = f"Step {step['step']}/{total or '?'}: train mean reward={step['reward']:.2f}"
        seen = "validation_reward" in step
        return text + (f", full validation mean reward={step['validation_reward']:.2f}" if seen else "")
    text = f"Step {step['step']}/{total or '?'}: training loss={step['loss']:.2f}"
    return text + (f", validation loss={step['validation_loss']:.2f}" if "validation_loss" in step else "")


def _measured(step: Mapping[str, Any]) -> dict[str, float]:
    """Losses and accuracies of a step as the wire calls them; accuracies of objectives that have none are absent."""
    found = {"train_loss": step["loss"]}
    if "token_accuracy" in step:
        found["train_mean_token_accuracy"] = step["token_accuracy"]
    for wire, own in (("loss", "validation_loss"), ("mean_token_accuracy", "validation_token_accuracy")):
        if own in step:
            found |= {f"valid_{wire}": step[own], f"full_valid_{wire}": step[own]}
    if ROLLED_OUT in step:
        found |= {"train_mean_reward": step["reward"], "train_reward_mean": step["reward"]}
        found["completion_tokens_mean"] = step[ROLLED_OUT]
    if ROLLED_OUT in step and "validation_reward" in step:
        found |= {"full_valid_mean_reward": step["validation_reward"], "valid_reward_mean": step["validation_reward"]}
    return found


def metrics_data(step: Mapping[str, Any], total: int | None) -> dict[str, Any]:
    """The data of a metrics event."""
    own = {name: step[name] for name in OWN if name in step}
    found = {"step": step["step"], **_measured(step), "total_steps": total, **own}
    scores = {name: found[name] for name in REWARDS if name in found}
    return {**found, "scores": scores} if scores else found


def checkpoint_metrics(step: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a checkpoint."""
    return {"step": float(step["step"]), **_measured(step)}


def as_csv(steps: Sequence[Mapping[str, Any]], dialect: str = "openai") -> str:
    """All steps, a line each; cells of what was not measured are empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS[dialect])
    for step in steps:
        known = {"step": step["step"], **_measured(step)}
        known |= {column: known[name] for column, name in RENAMED.items() if name in known}
        table.writerow(["" if known.get(name) is None else known[name] for name in COLUMNS[dialect]])
    return out.getvalue()
