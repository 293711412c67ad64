"""Luthier's GRPO on replies that it samples, all as long as allowed. Prints an outcome."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers._outcome import read_job, read_lines, tell_steps
from benchmarks.peers.luthier_train import example, recipe_of
from luthier import assemble
from luthier.engine.loop import train
from luthier.engine.rollout import Grade, Prompt, Rollouts, Written
from luthier.engine.writing import OneTurn, OwnSampler
from luthier.online import Asked


def by_length(answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
    """Any reward that differs: the length of the text in hundreds of characters."""
    return [Grade(len(written.text) / 100) for _, written in answers]


def main() -> None:
    job = read_job()
    settings = {
        "rollout.group_size": job["group_size"],
        "rollout.max_new_tokens": job["new_tokens"],
        "rollout.validation_prompts": 1,
        "rollout.rewards.unused.grader.type": "number",
    }
    recipe = recipe_of({**job, "settings": {**job["settings"], **settings}})
    loaded = assemble.open_model(recipe)
    template = assemble.template_for(recipe, loaded)
    examples = [example(row) for row in read_lines(job["rows"])]
    units = list(assemble.units_of(recipe, examples, template))
    trainable = replace(assemble.make_trainable(recipe, loaded), asked=Asked(template, examples, examples[:1]))
    run = assemble.build_run(
        recipe, loaded, trainable, {"train": units, "validation": units[:1]}, "", Path(job["folder"])
    )
    assert isinstance(run.source, Rollouts)
    endless = OneTurn(OwnSampler(loaded, frozenset()), template, job["new_tokens"])
    run.source.cast = replace(run.source.cast, write=endless, grade=by_length)
    done, first = [], 0.0
    for step in train(run):
        done.append(step)
        first = first or time.time() - job["started"]
    surprises = [surprise(run.source, number + 1) for number in range(job["steps"])]
    tell_steps(
        [step.seconds for step in done],
        [sum(surprises[: i + 1]) / (i + 1) for i in range(len(surprises))],
        [(int(step.metrics["tokens"]), int(step.metrics["trained_tokens"])) for step in done],
        first,
    )


def surprise(rollouts: Rollouts, number: int) -> float:
    """The negated mean log-probability of what was written in a rollout."""
    lines = read_lines(str(rollouts.folder / f"rollout-{number:06d}.jsonl"))[1:]
    values = [-float(value) for line in lines for value in line["token_values"]["sampled_logprob"]]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
