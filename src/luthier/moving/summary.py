"""What an import made of every part of an export, for a reader: nothing is left out in silence."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.moving.asked import HYPERPARAMETERS
from luthier.moving.exports import Export
from luthier.moving.found import Found
from luthier.moving.graders import GraderSummary
from luthier.recipe import Recipe

FEWEST_ANSWERED = 2
"""Rows with a recorded answer, below which nothing is compared and all of the validation file is the test file."""
BECAME = {
    "n_epochs": "training.epochs",
    "batch_size": "training.rows_per_step",
    "learning_rate_multiplier": "optimizer.learning_rate",
    "beta": "objective.beta",
    "compute_multiplier": "rollout.group_size",
    "eval_interval": "training.validate_every",
    "eval_samples": "rollout.validation_prompts",
}
"""Hyperparameters that have an equivalent (`luthier.jobs.translate`)."""
NO_EQUIVALENT = {"reasoning_effort": "of models that reason; nothing here"}
TOLD = {
    "id": "the folder's name",
    "model": "",
    "training_file": "",
    "validation_file": "",
    "hyperparameters": "",
    "method": "",
    "seed": "`seed`; the same number, and no promise of the same run",
    "integrations": "`tracking`, without `run_id`; its key must be in the environment, or take the table out",
    "fine_tuned_model": "whose recorded answers are looked for",
    "status": "",
    "result_files": "",
}
"""Fields of a job that the summary tells in their own way, or in these words; the rest stays in job.json alone."""


@dataclass
class JobSummary:
    """What became of one job, or of rows that no job names."""

    name: str
    job: Found
    kind: str
    model: str
    is_job: bool = True
    files: dict[str, str | None] = field(default_factory=dict)
    graders: GraderSummary = field(default_factory=GraderSummary)
    refused: str = ""
    """Why there is no recipe."""
    recipe: Recipe | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that the job sets."""
    notes: list[str] = field(default_factory=list)
    curve: str = ""
    rows: int = 0
    """Of the validation file."""
    answered: int = 0
    unmatched: int = 0
    """Recorded answers to something else than these rows."""
    older: int = 0
    other_models: Counter[str] = field(default_factory=Counter)

    @property
    def is_compared(self) -> bool:
        """Whether enough rows have a recorded answer."""
        return self.answered >= FEWEST_ANSWERED

    @property
    def told(self) -> str:
        """In a line, for the terminal."""
        old = f", {self.answered:,} recorded answers to compare with" if self.is_compared else ""
        return f"a recipe for {self.kind} training{old}"


def render(export: Export, jobs: Sequence[JobSummary], said: Sequence[str], hidden: Sequence[Path], out: Path) -> str:
    """The summary as Markdown."""
    lines = ["# What was imported from OpenAI", "", *_found(export, said, hidden)]
    for job in jobs:
        lines += ["", f"## {job.name}", "", *_job(job, out)]
    return "\n".join(lines) + "\n"


def _found(export: Export, said: Sequence[str], hidden: Sequence[Path]) -> Iterator[str]:
    counts = {
        "fine-tuning jobs": len(export.jobs),
        "training files": len(export.rows),
        "result tables": len(export.curves),
        "Evals": len(export.evals),
        "runs of Evals": len(export.runs),
        "output items": len(export.items),
        "stored completions": len(export.completions),
        "recorded answers of our own shape": len(export.answers),
    }
    yield "Found: " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) + "."
    yield from (f"- Known and not needed: {count:,} `{name}`." for name, count in sorted(export.others.items()))
    yield from (f"- {one}." for one in said)
    yield from (f"- Left out, hidden: `{path}`." for path in hidden)
    if export.evals:
        yield "- Evals stand in `evals/` as they came; the job service runs them (docs/evals.md)."
    if export.runs:
        yield "- Of the runs of Evals the answers are taken, where output items are there; their counts are not."


def _job(summary: JobSummary, out: Path) -> Iterator[str]:
    if not summary.is_job:
        yield "No job of the export names these rows, so the recipe is by our own rules alone."
        yield ""
    yield "| there | here |"
    yield "|---|---|"
    yield from _files(summary)
    if summary.recipe is not None:
        yield from _settings(summary, summary.recipe)
    yield ""
    yield from (f"- {note}" for note in [*_answers(summary), *_graders(summary), *summary.notes])
    rest = [name for name, value in summary.job.values.items() if value not in (None, [], {}) and name not in TOLD]
    if summary.is_job and rest:
        yield f"- Kept in `job.json` and read by nothing: {', '.join(f'`{name}`' for name in rest)}."
    yield ""
    yield from _next(summary, out)


def _files(summary: JobSummary) -> Iterator[str]:
    yield f"| training file `{summary.files['training_file']}` | `train.jsonl`, as it came |"
    if summary.files["validation_file"]:
        yield (
            f"| validation file `{summary.files['validation_file']}` | `test.jsonl`: nothing is chosen on it; the best "
            "checkpoint is chosen on a share of the training rows |"
        )
    elif summary.is_job:
        yield "| no validation file | a share of the training rows is tested on; old answers have nothing to meet |"
    if summary.curve:
        yield f"| result table `{summary.curve}` | `old_curve.csv`, drawn beside the new curve |"


def _settings(summary: JobSummary, recipe: Recipe) -> Iterator[str]:
    dump, values = recipe.dump(), summary.job.values
    if summary.is_job:
        yield f"| model `{values.get('model')}` | `{summary.model}`: OpenAI gives no weights out; choose with --model |"
    objective, adapter = dump["objective"]["type"], dump["adapter"]["type"]
    yield f"| method `{summary.kind}` | objective `{objective}` with adapter `{adapter}` |"
    for name in HYPERPARAMETERS[summary.kind].model_fields:
        if name in BECAME:
            yield f"| {name} = {summary.given.get(name, 'auto')} | {_setting(name, summary.given, dump)} |"
    for name, value in summary.given.items():
        if name not in BECAME:
            yield f"| {name} = {value} | no equivalent: {NO_EQUIVALENT.get(name, 'nothing here has this name')} |"
    for name in ("seed", "integrations", "fine_tuned_model"):
        if values.get(name) not in (None, []):
            yield f"| {name} | {TOLD[name]} |"


def _setting(name: str, given: Mapping[str, Any], dump: Mapping[str, Any]) -> str:
    """What a hyperparameter became."""
    table, key = BECAME[name].split(".")
    value = dump[table][key]
    became = f"`{BECAME[name]}` = {value:g}" if isinstance(value, int | float) else f"`{BECAME[name]}`"
    if name == "learning_rate_multiplier":
        multiplier = given.get(name, 1.0)
        return f"{became}: our own {value / multiplier:g}, times {multiplier:g}"
    if name not in given:
        return f"{became}: by our own rules"
    return {
        "n_epochs": f"{became}, all of them, without an early stop",
        "compute_multiplier": f"{became} replies to each prompt",
    }.get(name, became)


def _answers(summary: JobSummary) -> Iterator[str]:
    if not summary.files["validation_file"]:
        return
    model = summary.job.values.get("fine_tuned_model") or "the old model"
    if not summary.answered:
        yield f"No recorded answer of `{model}` to a row of the validation file, so there will be no parity report."
    elif not summary.is_compared:
        yield (
            f"`{model}` answered one row of the validation file, which is too few to compare, so there will be no "
            "parity report."
        )
    else:
        rest = summary.rows - summary.answered
        more = f"; the other {rest:,} are in `unanswered.jsonl`, and not used" if rest else ""
        yield f"`{model}` answered {summary.answered:,} of {summary.rows:,} rows of the validation file{more}."
    if summary.unmatched:
        yield f"{summary.unmatched:,} recorded answers are to something else than these rows, and not used."
    if summary.older:
        yield f"{summary.older:,} recorded answers are older than another one to the same prompt, and not used."
    for name, count in sorted(summary.other_models.items()):
        yield f"{count:,} recorded answers are of `{name}`, and not used here."


def _graders(summary: JobSummary) -> Iterator[str]:
    for name in summary.graders.taken:
        yield f"Grader in `graders.json`: {name}."
    for name in summary.graders.refused:
        yield f"**No equivalent** of a grader: {name}."


def _next(summary: JobSummary, out: Path) -> Iterator[str]:
    if summary.refused:
        yield f"**No recipe**: {summary.refused}."
        return
    yield "```sh"
    yield from commands(summary, out)
    yield "```"


def commands(summary: JobSummary, out: Path) -> list[str]:
    """What comes next, for a shell."""
    folder = out / summary.name
    recipe, run, answers, graders, curve = (
        shlex.quote(str(folder / name))
        for name in ("recipe.toml", "run", "answers.jsonl", "graders.json", "old_curve.csv")
    )
    found = [f"luthier run {recipe} --out {run}"]
    if summary.is_compared:
        more = (f" --graders {graders}" if summary.graders.taken else "") + (
            f" --curve {curve}" if summary.curve else ""
        )
        found.append(f"luthier parity {run} --answers {answers}{more}")
    return found
