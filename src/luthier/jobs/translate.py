"""From OpenAI's words to a recipe, and back to what the job tells was picked.

    n_epochs                    training.epochs
    batch_size                  training.rows_per_step
    learning_rate_multiplier    times the learning rate of our own rules (`luthier.draft`)
    beta                        objective.beta, of dpo
    method reward               objective.type = "reward": ours, a model that judges answers
    grader                      rollout.rewards.grader, of reinforcement
    compute_multiplier          times 8 replies to each prompt
    eval_interval               training.validate_every
    eval_samples                rollout.validation_prompts
    model, one that a job made  adapter.start_from, with the adapter and the model's settings of that job
    integrations                a table of `tracking` each

`"auto"`, and what is left out, is picked by these rules from the rows and the model's size. A base is named as a recipe
names it, or by a name that the operator gave another meaning (`gpt-4o-mini = "smollm2-135m-instruct"`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.config import build, part, write_toml
from luthier.data.profile import Profile, profile
from luthier.data.write import atomic_text
from luthier.draft import LARGEST_CONTEXT, REWARD_RATE, Facts, require_same_kind, sections
from luthier.errors import DataError, ModelError
from luthier.evaluation.graders.base import Host, validate
from luthier.jobs.job_folder import ADAPTER, RECIPE, RECORD, START, TRAIN, VALIDATION
from luthier.recipe import TRACKERS, Recipe, RolloutSettings, build_part
from luthier.trackers.base import Tracker

REPLIES = 8
"""To each prompt, times `compute_multiplier`."""
MOST_REPLIES = 64
REPLY_TOKENS = 256
"""Longest reply that is sampled."""
REINFORCEMENT_RATE = 0.2
"""Of the learning rate that replies would be learned with."""


@dataclass(frozen=True)
class Picked:
    """The hyperparameters that a job trains with."""

    n_epochs: float
    batch_size: int
    learning_rate_multiplier: float
    beta: float | None = None
    sampled: Mapping[str, float | str] = field(default_factory=dict)
    """Those of reinforcement alone."""

    def dump(self) -> dict[str, Any]:
        """As the job object tells them; whole epochs as whole numbers, as OpenAI's type has them."""
        found = {
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
            "n_epochs": max(1, round(self.n_epochs)),
        }
        return {**found, **({} if self.beta is None else {"beta": self.beta}), **self.sampled}


PREFERRED = ("dpo", "reward")
"""Methods whose rows are preferences."""


def method_of(body: Mapping[str, Any]) -> str:
    """`supervised` unless the request names another."""
    return str((body.get("method") or {}).get("type", "supervised"))


def hyperparameters_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the request sets to more than "auto", from `method` or from OpenAI's old place."""
    kind = method_of(body)
    own = ((body.get("method") or {}).get(kind) or {}).get("hyperparameters") or {}
    old = (body.get("hyperparameters") or {}) if kind == "supervised" else {}
    return {name: value for name, value in {**old, **own}.items() if value not in (None, "auto")}


def tracking_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of `tracking` that the integrations of a request ask for."""
    asked = body.get("integrations") or []
    names = [one["type"] if number == 1 else f"{one['type']}_{number}" for number, one in enumerate(asked, start=1)]
    return {name: {"type": one["type"], **one[one["type"]]} for name, one in zip(names, asked, strict=True)}


def require_tracking(body: Mapping[str, Any]) -> None:
    """Make sure that this server can do what the integrations of a request ask for.

    Raises:
        RecipeError: the tracker knows no such name, or is none.
        TrackingError: its package or its key is missing here.
    """
    for name, table in tracking_of(body).items():
        settings = build_part(TRACKERS, table, name, ["integrations", name])
        part(settings, Tracker, f"integrations.{name}").require()  # type: ignore[type-abstract]


def require_graded(body: Mapping[str, Any]) -> None:
    """Make sure that this server can train with the grader that a request names.

    Raises:
        EvaluationError: it is wrong in itself, or asks a model, which a training cannot.
    """
    if method_of(body) == "reinforcement":
        validate(body["method"]["reinforcement"]["grader"], Host())


def write_recipe(folder: Path, base: str, body: Mapping[str, Any], seed: int) -> Picked:
    """Write `recipe.toml` beside the rows of a job, and tell what was picked.

    Args:
        folder: holds `train.jsonl`, `validation.jsonl` if the job has one, and `start` if it goes on from a model.
        base: as `model.name`.
        body: the request.
        seed: of the job.

    Raises:
        DataError: rows cannot be read, or are not of the kind that the method trains on.
        ModelError: what was kept of the model to go on from is damaged.
        RecipeError: a setting is out of range.
    """
    kind = method_of(body)
    train, validation = folder / TRAIN, folder / VALIDATION
    rows = profile(train)
    held_out = profile(validation) if validation.is_file() else None
    require_same_kind(rows, held_out)
    require_method(kind, rows, "training file")
    tree = {"seed": seed, **drafted(Facts(rows, None, held_out, base, folder, None, has_test=False))}
    if (folder / START).is_dir():
        tree |= _continued(folder, base)
    multiplier, sampled = set_hyperparameters(tree, body)
    tree["training"]["micro_batch_tokens"] = "auto"  # smaller where memory is short, before the job is refused
    recipe = build(Recipe, tree)
    with atomic_text(folder / RECIPE) as file:
        file.write(write_toml(tree))
    beta = tree["objective"]["beta"] if kind == "dpo" else None
    return Picked(recipe.training.epochs, recipe.training.rows_per_step, multiplier, beta, sampled)


def require_method(kind: str, rows: Profile, path: Path | str) -> None:
    """Check that rows are of the kind that a method trains on.

    Raises:
        DataError: they are not.
    """
    if (rows.kind == "preference") != (kind in PREFERRED):
        pairs = "rows with 'input', 'preferred_output' and 'non_preferred_output'"
        wanted = pairs if kind in PREFERRED else "'messages'"
        raise DataError(f"the method {kind} is trained on {wanted}; these rows are of another kind", path)


def set_hyperparameters(tree: dict[str, Any], body: Mapping[str, Any]) -> tuple[float, dict[str, float | str]]:
    """Put what a request asks for into the tables of a drafted recipe.

    Returns:
        The multiplier of the learning rate, and what was picked for sampling if replies are.
    """
    given, sampled = hyperparameters_of(body), {}
    if method_of(body) == "reward":
        tree["objective"], tree["optimizer"]["learning_rate"] = {"type": "reward"}, REWARD_RATE
    training, optimizer, objective = tree["training"], tree["optimizer"], tree["objective"]
    # whole epochs, as the API counts them; a client who wants fewer steps gives fewer rows
    training["epochs"] = float(given.get("n_epochs", max(1, round(training["epochs"]))))
    training["rows_per_step"] = given.get("batch_size", training["rows_per_step"])
    multiplier = float(given.get("learning_rate_multiplier", 1.0))
    optimizer["learning_rate"] *= multiplier
    if "beta" in given:
        objective["beta"] = float(given["beta"])
    if "n_epochs" in given:
        training["patience"] = False  # so many were asked for
    if method_of(body) == "reinforcement":
        sampled = _reinforced(tree, body, given)
    tree |= {"tracking": tables} if (tables := tracking_of(body)) else {}
    return multiplier, sampled


def _reinforced(tree: dict[str, Any], body: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float | str]:
    """Make of the tables those of a training on graded replies; what was picked."""
    training, multiplier = tree["training"], float(given.get("compute_multiplier", 1.0))
    tree["objective"] = {"type": "grpo"}
    tree["optimizer"]["learning_rate"] *= REINFORCEMENT_RATE
    training["max_tokens"] = min(training["max_tokens"] + REPLY_TOKENS, LARGEST_CONTEXT)
    training["epochs"] = float(given.get("n_epochs", 1))
    if "eval_interval" in given:
        training["validate_every"] = given["eval_interval"]
    prompts = given.get("eval_samples", RolloutSettings.model_fields["validation_prompts"].default)
    tree["rollout"] = {
        "group_size": min(max(2, round(REPLIES * multiplier)), MOST_REPLIES),
        "max_new_tokens": REPLY_TOKENS,
        "validation_prompts": prompts,
        "rewards": {"grader": {"grader": dict(body["method"]["reinforcement"]["grader"])}},
    }
    found: dict[str, float | str] = {"compute_multiplier": multiplier, "eval_samples": prompts}
    if "eval_interval" in given:
        found["eval_interval"] = given["eval_interval"]
    return {**found, "reasoning_effort": "default"}


def _continued(folder: Path, base: str) -> dict[str, Any]:
    """The tables that must be as they were where the model was made.

    Raises:
        ModelError: what was kept of the model is damaged.
    """
    try:
        record = json.loads((folder / START / ADAPTER / RECORD).read_text(encoding="utf-8"))
        model, adapter = dict(record["recipe"]["model"]), dict(record["recipe"]["adapter"])
        precision = record["model"]["precision"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the files of the model are damaged: {RECORD}: {error!r}") from None
    return {
        "model": {**model, "name": base, "precision": precision},
        "adapter": {**adapter, "start_from": START},
    }


def drafted(facts: Facts) -> dict[str, Any]:
    """The tables of `luthier.draft` without their comments."""
    tree: dict[str, Any] = {}
    for section in sections(facts):
        table = tree
        for name in section.name.split("."):
            table = table.setdefault(name, {})
        table.update({entry.key: entry.value for entry in section.entries})
    return tree
