"""Luthier's own loop on rows of the default recipe, in the order of the job. Prints an outcome."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import assemble
from luthier.data.source import Source, Unit
from luthier.engine.loop import train
from luthier.examples import Conversation, Message
from luthier.recipe import Recipe, load


class InOrder(Source):
    """Units as they stand in the file: peers are given the same rows in the same steps."""

    def step(self, number: int) -> list[Unit]:
        """The units of step `number`, counted from 1."""
        first = (number - 1) * self.rows_per_step
        return list(self.units[first : first + self.rows_per_step])


def messages(given: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in given)


def example(row: dict[str, Any]) -> Conversation:
    return Conversation((*messages(row["prompt"]), Message("assistant", row["answer"])), id=row["id"])


def recipe_of(job: dict[str, Any]) -> Recipe:
    """The default recipe but for what the job says."""
    file = Path(job["folder"]) / "recipe.toml"
    file.write_text('[data]\ntrain = "rows.jsonl"\n', encoding="utf-8")
    settings = {
        "model.name": job["model"],
        "model.precision": job["precision"],
        "adapter.type": "full" if job["full"] else "lora",
        "training.steps": job["steps"],
        "training.rows_per_step": job["rows_per_step"],
        "training.max_tokens": 8192,
        "training.validate_every": 1_000_000,
        "training.save_every": 1_000_000,
        "optimizer.learning_rate": job["learning_rate"],
        "schedule.type": "constant",
        **job.get("settings", {}),
    }
    return load(file, [f"{key}={value}" for key, value in settings.items()])


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recipe = recipe_of(job)
    loaded = assemble.open_model(recipe)
    template = assemble.template_for(recipe, loaded)
    lines = Path(job["rows"]).read_text(encoding="utf-8").splitlines()
    units = assemble.units_of(recipe, [example(json.loads(line)) for line in lines], template)
    trainable = assemble.make_trainable(recipe, loaded)
    shortest = min(units, key=lambda unit: sum(len(row.ids) for row in unit))  # the loop validates after its last step
    groups = {"train": units, "validation": [shortest]}
    run = assemble.build_run(recipe, loaded, trainable, groups, "", Path("."))
    run.source = InOrder(units, job["rows_per_step"], 0)
    done, first = [], 0.0
    for step in train(run):
        done.append(step)
        first = first or time.time() - job["started"]
    print(
        json.dumps(
            {
                "step_seconds": [step.seconds for step in done],
                "losses": [step.metrics["loss"] for step in done],
                "tokens": [step.metrics["tokens"] for step in done],
                "trained": [step.metrics["trained_tokens"] for step in done],
                "first_step": first,
            }
        )
    )


if __name__ == "__main__":
    main()
