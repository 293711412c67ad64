"""Parts of a run whose objective learns from replies that the model writes: prompts, graders, and the rollouts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier import registry
from luthier.config import part
from luthier.data.asked import asked, item_of, reference_of
from luthier.data.templates import Template
from luthier.data.write import message_values
from luthier.engine.rollout import Cast, Grade, Plan, Prompt, Rollouts, Writer, Written
from luthier.engine.writing import OneTurn, OwnSampler, Turns
from luthier.environments.base import EnvironmentSettings
from luthier.errors import DataError, RecipeError
from luthier.evaluation.graders.base import Grader, Host, Sample
from luthier.examples import Conversation, Example, Message
from luthier.models.load import LoadedModel
from luthier.objectives.base import Models, OnlineObjective
from luthier.recipe import Recipe, RolloutSettings


def require_fit(recipe: Recipe, objective: OnlineObjective) -> RolloutSettings:
    """The recipe's rollouts, if all else in it goes with them.

    Raises:
        RecipeError: there are none, or another setting excludes them.
    """
    settings = recipe.rollout
    name, adapter = registry.name_of(objective), recipe.dump()["adapter"]
    if settings is None:
        raise RecipeError(
            f"objective.type = {name!r} learns from graded replies: write a table [rollout.rewards.NAME] with a grader"
        )
    if not settings.rewards and settings.environment is None:
        raise RecipeError("rollout.rewards: nothing says what a reply is worth; write [rollout.rewards.NAME]")
    if settings.group_size < objective.least_group:
        raise RecipeError(
            f"rollout.group_size = {settings.group_size}: {name} compares replies to one prompt and needs at least "
            f"{objective.least_group}"
        )
    for key, value in adapter.items():
        if key in ("dropout", "lora_dropout") and value:
            raise RecipeError(
                f"adapter.{key} = {value}: with dropout a reply is scored by another model than the one that wrote it; "
                f"set it to 0 for {name}"
            )
    if adapter.get("init") == "eva":
        raise RecipeError(
            f"adapter.init = 'eva' begins from what the model does with the first rows, and {name} has none before it "
            "samples them; choose another start"
        )
    if recipe.data.replay is not None:
        raise RecipeError(f"data.replay: {name} learns from replies that it samples, so there is nothing to mix in")
    return settings


@dataclass(frozen=True)
class Asked:
    """What rollouts ask, as it was read."""

    template: Template
    """Without a limit of tokens."""
    train: Sequence[Example]
    validation: Sequence[Example]
    host: Host = field(default_factory=Host)
    """What graders may use."""
    judges: Mapping[str, Any] = field(default_factory=dict)
    """Of each run whose model judges replies, by its folder, the sha256 of its files."""

    def decides(self) -> list[Any]:
        """What rewards are made of beside the settings, for a digest: what graders see of all rows, and who judges."""
        rows = (*self.train, *self.validation)
        items: list[Any] = [item_of(example) for example in rows if isinstance(example, Conversation)]
        return [*items, *([dict(self.judges)] if self.judges else [])]


def runs_asked(recipe: Recipe) -> list[str]:
    """Folders of the runs that graders of rollouts ask, each once."""
    tables = {} if recipe.rollout is None else recipe.rollout.rewards
    graders = [part(table.grader, Grader, "grader") for table in tables.values()]  # type: ignore[type-abstract]
    return sorted({run for grader in graders for one in (grader, *grader.parts()) for run in one.runs_asked()})


def prompts_of(examples: Sequence[Example], template: Template, longest: int, reply: int) -> list[Prompt]:
    """What is asked for each example.

    Args:
        examples: chats.
        template: that they are rendered with.
        longest: tokens that a row may have.
        reply: tokens that a reply may have.

    Raises:
        DataError: a prompt leaves no room for the longest reply.
    """
    found = []
    for example in examples:
        prompt = prompt_of(example, template)
        if len(prompt.ids) + reply > longest:
            raise DataError(
                f"its prompt has {len(prompt.ids)} tokens, and with rollout.max_new_tokens = {reply} more a row would "
                f"have more than {longest}: raise training.max_tokens, the model's context allowing, or lower it",
                example.where.path,
                example.where.line,
                example.where.row,
            )
        found.append(prompt)
    return found


def prompt_of(example: Example, template: Template | None) -> Prompt:
    """What is asked for an example; without a template its tokens are not told.

    Raises:
        DataError: it is no chat.
    """
    if not isinstance(example, Conversation):
        raise DataError("only a chat can be answered", example.where.path, example.where.line, example.where.row)
    ids = () if template is None else tuple(template.prompt_ids(asked(example), example.tools))
    return Prompt(example.id, ids, asked(example), item_of(example), example.tools, reference_of(example))


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of graders."""

    settings: RolloutSettings
    host: Host

    def __call__(self, answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
        """The grade of each reply."""
        return [self.grade(prompt.item, written.message, written.earned) for prompt, written in answers]

    def grade(self, item: Mapping[str, Any], reply: Message, earned: float | None = None) -> Grade:
        """The grade of one reply to the row `item`; a grader that cannot grade it gives 0 and says why."""
        sample = Sample.of(reply.content, [_called(call) for call in message_values(reply).get("tool_calls", ())])
        parts, problems = {}, {}
        for name, reward in self.settings.rewards.items():
            grader = part(reward.grader, Grader, f"rollout.rewards.{name}.grader")  # type: ignore[type-abstract]
            graded = grader.grade(sample, item, self.host)
            parts[name] = graded.reward
            if graded.problem:
                problems[name] = graded.problem
        total = sum(self.settings.rewards[name].weight * value for name, value in parts.items())
        if earned is not None:
            parts["environment"], total = earned, total + earned
        return Grade(total, parts, problems)

    def metric(self) -> dict[str, Any]:
        """Settings of the metric `reward`."""
        rewards = self.settings.model_dump(include={"rewards"})["rewards"]
        return {"rewards": rewards, "worth": lambda item, reply: self.grade(item, reply).reward}

    def require(self) -> None:
        """Raise an EvaluationError if a grader cannot work here."""
        for name, reward in self.settings.rewards.items():
            part(reward.grader, Grader, f"rollout.rewards.{name}.grader").require(self.host)  # type: ignore[type-abstract]


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as the API writes it, its arguments as text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def writer_of(settings: RolloutSettings, loaded: LoadedModel, template: Template) -> Writer:
    """What writes the replies."""
    sampler, longest = OwnSampler(loaded, template.stop_ids), settings.max_new_tokens
    if settings.environment is None:
        return OneTurn(sampler, template, longest)
    environment = part(settings.environment, EnvironmentSettings, "rollout.environment")  # type: ignore[type-abstract]
    return Turns(sampler, template, longest, settings.max_turns, environment.make)


def rollouts_of(recipe: Recipe, loaded: LoadedModel, models: Models, asked: Asked, folder: Path, key: str) -> Rollouts:
    """The source of rows of an online objective; `folder` and `key`: those of the training.

    Raises:
        RecipeError, EvaluationError, DataError: a setting, a grader or a prompt does not go with it.
    """
    objective = part(recipe.objective, OnlineObjective, "objective")  # type: ignore[type-abstract]
    settings = require_fit(recipe, objective)
    rewards = Rewards(settings, asked.host)
    rewards.require()
    plan = Plan(
        recipe.training.rows_per_step,
        settings.group_size,
        settings.max_new_tokens,
        settings.temperature,
        recipe.seed,
        settings.updates,
        settings.minibatches,
        settings.resample,
        settings.mask_truncated,
        settings.overlong_tokens,
    )
    write = writer_of(settings, loaded, asked.template)
    cast = Cast(objective, models.at(settings.temperature), loaded.model, loaded.device, write, rewards)
    longest, reply = min(recipe.training.max_tokens, loaded.max_tokens), settings.max_new_tokens
    train, validation = (prompts_of(rows, asked.template, longest, reply) for rows in (asked.train, asked.validation))
    return Rollouts(plan, train, _some(validation, settings.validation_prompts), cast, folder / "rollouts", key)


def _some(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most so many, evenly spaced."""
    stride = max(1, -(-len(prompts) // count))
    return prompts[::stride]
