"""Luthier's own loop on rows of the default recipe, in the order of the job. Prints an outcome."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers._outcome import read_job, read_lines, tell_steps
from luthier import assemble
from luthier.data.source import NOTHING, Source, Unit
from luthier.data.templates import Template
from luthier.engine.loop import train
from luthier.engine.run import Run
from luthier.examples import Conversation, Example, Message, Preference
from luthier.models.forest import Batch
from luthier.objectives.base import Loss, Mean, Models, no_grad_logprobs
from luthier.objectives.sft import SFT
from luthier.recipe import Recipe, load


class InOrder(Source):
    """Units as they stand in the file: peers are given the same rows in the same steps."""

    def step(self, number: int, memory: Mapping[str, float] = NOTHING) -> list[Unit]:
        """The units of step `number`, counted from 1."""
        first = (number - 1) * self.rows_per_step
        return list(self.units[first : first + self.rows_per_step])


class GivenAdvantages(SFT):
    """GRPO's update (Shao et al. 2024, arXiv:2402.03300) on completions that are given, scored before they are used."""

    advantages: dict[str, float]
    """By the id of the row."""

    def weight(self, batch: Batch) -> float:
        """Number of completions."""
        return float(batch.row_count)

    def loss(self, models: Models, batch: Batch) -> Loss:
        """The clipped surrogate: mean over a completion's tokens, summed over completions."""
        old_K = no_grad_logprobs(models.policy, batch)
        ratio_K = torch.exp(models.policy.token_logprobs(batch) - old_K)
        advantage_K = torch.tensor([self.advantages[name] for name in batch.row_ids])[batch.row_K]
        gain_K = torch.minimum(ratio_K * advantage_K, ratio_K.clamp(0.8, 1.2) * advantage_K)
        per_row = batch.sum_rows(gain_K) / batch.sum_rows(torch.ones_like(gain_K))
        return Loss(-per_row.sum(), {"surprise": Mean.of(-old_K)})


def messages(given: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in given)


def example(row: dict[str, Any]) -> Example:
    """What a line of the job's rows means."""
    prompt = messages(row["prompt"])
    if "chosen" in row:
        chosen, rejected = ((Message("assistant", row[name]),) for name in ("chosen", "rejected"))
        return Preference(prompt, chosen, rejected, id=row["id"])
    return Conversation((*prompt, Message("assistant", row["answer"])), id=row["id"])


def units_of(recipe: Recipe, rows: Sequence[dict[str, Any]], template: Template) -> list[Unit]:
    """A row, a pair, or a group of completions each; the rows of group g are called g/0, g/1, ..."""
    if "answers" not in rows[0]:
        return list(assemble.units_of(recipe, [example(row) for row in rows], template))
    units = []
    for row in rows:
        ones = [example({**row, "answer": answer, "id": f"{row['id']}/{i}"}) for i, answer in enumerate(row["answers"])]
        units.append(tuple(rendered for unit in assemble.units_of(recipe, ones, template) for rendered in unit))
    return units


def recipe_of(job: dict[str, Any]) -> Recipe:
    """The default recipe but for what the job says."""
    file = Path(job["folder"]) / "recipe.toml"
    file.write_text('[data]\ntrain = "rows.jsonl"\n', encoding="utf-8")
    settings = {
        "model.name": job["model"],
        "objective.type": job["objective"],
        "adapter.type": "full" if job["full"] else "lora",
        "training.steps": job["steps"],
        "training.rows_per_step": job["rows_per_step"],
        "training.max_tokens": 8192,
        "training.validate_every": 1_000_000,
        "training.save_every": 1_000_000,
        "optimizer.learning_rate": job["learning_rate"],
        "schedule.type": "constant",
        **job.get("settings", {}),
        **({"model.precision": "float32"} if job.get("float32") else {}),
    }
    return load(file, [f"{key}={value}" for key, value in settings.items()])


def run_of(job: dict[str, Any]) -> Run:
    """The training that the job asks for, at step 0."""
    recipe = recipe_of(job)
    loaded = assemble.open_model(recipe)
    template = assemble.template_for(recipe, loaded)
    lines = read_lines(job["rows"])
    units = units_of(recipe, lines, template)
    shortest = min(units, key=lambda unit: sum(len(row.ids) for row in unit))  # the loop validates after its last step
    groups = {"train": units, "validation": [shortest]}
    trainable = assemble.make_trainable(recipe, loaded)
    run = assemble.build_run(recipe, loaded, trainable, groups, "", Path("."))
    given = {f"{line['id']}/{i}": a for line in lines for i, a in enumerate(line.get("advantages", ()))}
    objective = GivenAdvantages(advantages=given) if given else run.objective
    return replace(run, source=InOrder(units, job["rows_per_step"], 0), objective=objective)


def main() -> None:
    job = read_job()
    done, first = [], 0.0
    for step in train(run_of(job)):
        done.append(step)
        first = first or time.time() - job["started"]
    tell_steps(
        [step.seconds for step in done],
        [step.metrics.get("surprise", step.metrics["loss"]) for step in done],
        [(int(step.metrics["tokens"]), int(step.metrics["trained_tokens"])) for step in done],
        first,
    )


if __name__ == "__main__":
    main()
