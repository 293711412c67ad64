"""Parts of a run whose objective learns from replies that the model writes: prompts, graders, and the rollouts."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from luthier import registry
from luthier.adapters.base import Adapter, Injected
from luthier.config import part
from luthier.data.asked import asked, item_of, reference_of
from luthier.data.templates import Template
from luthier.data.write import message_values
from luthier.engine.rollout import Cast, Grade, Plan, Prompt, Rollouts, Sampler, Writer, Written
from luthier.engine.vllm import MOST_DRIFT, Server, VllmSampler, held_bytes
from luthier.engine.writing import OneTurn, OwnSampler, Turns
from luthier.environments.base import EnvironmentSettings
from luthier.errors import DataError, RecipeError, ServiceError
from luthier.evaluation.asked_models import AskedModels
from luthier.evaluation.graders.base import Grader, Host, Sample, Unanswered
from luthier.evaluation.systems.base import System
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
        graded = objective.needs_rewards
        wanted = "graded replies: write a table [rollout.rewards.NAME] with a grader"
        sampled = "replies that it samples: write a table [rollout]"
        raise RecipeError(f"objective.type = {name!r} learns from {wanted if graded else sampled}")
    _require_what_is_learned_from(settings, objective)
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
    require_models(settings)
    if settings.vllm is not None:
        _require_for_vllm(recipe)
    if recipe.data.replay is not None:
        raise RecipeError(f"data.replay: {name} learns from replies that it samples, so there is nothing to mix in")
    return settings


def _require_what_is_learned_from(settings: RolloutSettings, objective: OnlineObjective) -> None:
    """Raise a RecipeError where rewards are missing, or are shaped for an objective that learns from none."""
    if objective.needs_rewards and not settings.rewards and settings.environment is None:
        raise RecipeError("rollout.rewards: nothing says what a reply is worth; write [rollout.rewards.NAME]")
    for key, shapes in (("resample", settings.resample), ("overlong_tokens", settings.overlong_tokens)):
        if shapes and not objective.needs_rewards:
            raise RecipeError(
                f"rollout.{key} is about rewards, and {registry.name_of(objective)} learns from none; leave it out"
            )


def _require_for_vllm(recipe: Recipe) -> None:
    """Check that vLLM can compute what is trained.

    Raises:
        RecipeError: it cannot.
    """
    kind = registry.name_of(recipe.adapter)
    adapter = part(recipe.adapter, Adapter, "adapter")  # type: ignore[type-abstract]
    how = "or remove [rollout.vllm]: our own generator writes for all"
    if kind != "lora":
        raise RecipeError(
            f"rollout.vllm: vLLM is given the weights of a plain LoRA before each rollout, and adapter.type = {kind!r} "
            f"trains others; set adapter.type = 'lora', {how}"
        )
    if adapter.added_tokens:
        raise RecipeError(f"rollout.vllm: vLLM loads no rows of adapter.new_tokens; remove them, {how}")
    if recipe.model.quantize != "none":
        raise RecipeError(
            f"rollout.vllm: vLLM has the dense base, and model.quantize = {recipe.model.quantize!r} trains over "
            f"another; set it to 'none', {how}"
        )


@dataclass(frozen=True)
class Hosted:
    """What graders of rollouts may use."""

    host: Host = field(default_factory=Host)
    """Whom they ask."""
    decides: Mapping[str, Any] = field(default_factory=dict)
    """What they follow from beside the settings: of each run whose model judges, by its folder, the sha256 of its
    files; of a model on this machine, by its name, what its files are."""
    at_once: int = 1
    """Replies that are graded at the same time."""
    notes: Sequence[str] = ()
    """What is worth saying of whom they ask."""


@dataclass(frozen=True)
class Asked:
    """What rollouts ask, as it was read."""

    template: Template
    """Without a limit of tokens."""
    train: Sequence[Example]
    validation: Sequence[Example]
    hosted: Hosted = field(default_factory=Hosted)

    def decides(self) -> list[Any]:
        """What rewards are made of beside the settings, for a digest: what graders see of all rows, and who judges."""
        rows = (*self.train, *self.validation)
        items: list[Any] = [item_of(example) for example in rows if isinstance(example, Conversation)]
        return [*items, *([dict(self.hosted.decides)] if self.hosted.decides else [])]


def _graders(settings: RolloutSettings | None) -> list[Grader]:
    """All graders of rollouts, those within others too."""
    tables = {} if settings is None else settings.rewards
    graders = [part(table.grader, Grader, "grader") for table in tables.values()]  # type: ignore[type-abstract]
    return [one for grader in graders for one in (grader, *grader.parts())]


def runs_asked(recipe: Recipe) -> list[str]:
    """Folders of the runs that graders of rollouts ask, each once."""
    return sorted({run for grader in _graders(recipe.rollout) for run in grader.runs_asked()})


def models_asked(recipe: Recipe, folder: Path, device: str) -> AskedModels:
    """The models that graders of rollouts ask, ready; `folder`: for their answers.

    Raises:
        EvaluationError, ModelError: one cannot be asked from here.
    """
    settings = {} if recipe.rollout is None else recipe.rollout.models
    models = {name: part(model, System, f"rollout.models.{name}") for name, model in settings.items()}  # type: ignore[type-abstract]
    return AskedModels(models, folder, device)


def require_models(settings: RolloutSettings) -> None:
    """Check that graders ask just the models that are named.

    Raises:
        RecipeError: one is missing, or is asked by none.
    """
    asked = {model for grader in _graders(settings) for model in grader.models_asked()}
    if missing := sorted(asked - settings.models.keys()):
        raise RecipeError(
            f"a grader asks the model {missing[0]!r}, and nothing says where it is: write a table "
            f'[rollout.models."{missing[0]}"] with base_url and model, or with type = "local_model"'
        )
    if extra := sorted(settings.models.keys() - asked):
        raise RecipeError(f"rollout.models.{extra[0]} changes nothing: no grader asks a model of this name; remove it")


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
    at_once: int = 1
    """Replies that are graded at the same time."""

    def __call__(self, answers: Sequence[tuple[Prompt, Written]]) -> list[Grade]:
        """The grade of each reply, several at once where models are asked.

        Raises:
            ServiceError: as `grade`.
        """
        return self.grades([(prompt.item, written.message, written.earned) for prompt, written in answers])

    def grades(self, asked: Sequence[tuple[Mapping[str, Any], Message, float | None]]) -> list[Grade]:
        """What `grade` gives for each of these, several at once where models are asked; raises as it does."""
        if self.at_once == 1:
            return [self.grade(*one) for one in asked]
        with ThreadPoolExecutor(self.at_once, "grading") as pool:
            grades = [pool.submit(self.grade, *one) for one in asked]
            try:
                return [grade.result() for grade in grades]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def grade(self, item: Mapping[str, Any], reply: Message, earned: float | None = None) -> Grade:
        """The grade of one reply to the row `item`; a grader that cannot grade it gives 0 and says why.

        Raises:
            ServiceError: a model that a grader asks gives no answer.
        """
        sample = Sample.of(reply.content, [_called(call) for call in message_values(reply).get("tool_calls", ())])
        parts, problems = {}, {}
        for name, reward in self.settings.rewards.items():
            grader = part(reward.grader, Grader, f"rollout.rewards.{name}.grader")  # type: ignore[type-abstract]
            try:
                graded = grader.grade(sample, item, self.host)
            except Unanswered as failure:
                raise ServiceError(
                    f"rollout.rewards.{name}: {failure}. No reward is made up for it. What was answered is kept: once "
                    "it answers, the same command goes on"
                ) from None
            parts[name] = graded.reward
            if graded.problem:
                problems[name] = graded.problem
        total = sum(self.settings.rewards[name].weight * value for name, value in parts.items())
        if earned is not None:
            parts["environment"], total = earned, total + earned
        return Grade(total, parts, problems)

    def require(self) -> None:
        """Raise an EvaluationError if a grader cannot work here."""
        for name, reward in self.settings.rewards.items():
            part(reward.grader, Grader, f"rollout.rewards.{name}.grader").require(self.host)  # type: ignore[type-abstract]


def metric_of(
    settings: RolloutSettings, hosted: Callable[[], Hosted], files: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Settings of the metric `reward`: what graders say of an answer.

    Args:
        settings: with rewards.
        hosted: whom graders may ask, asked for with answers.
        files: of runs that judge, as `Hosted.decides`.
    """
    models = {name: part(model, System, "rollout.models").deciding() for name, model in settings.models.items()}  # type: ignore[type-abstract]
    dumped = settings.model_dump(include={"rewards"})["rewards"]
    return {
        "rewards": {"graders": dumped, "models": models, "files": dict(files)},
        "worth": lambda asked: [grade.reward for grade in _rewards(settings, hosted()).grades(asked)],
    }


def _rewards(settings: RolloutSettings, hosted: Hosted) -> Rewards:
    return Rewards(settings, hosted.host, hosted.at_once)


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as the API writes it, its arguments as text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def vllm_of(
    recipe: Recipe, loaded: LoadedModel, injected: Injected, template: Template, folder: Path
) -> VllmSampler | None:
    """The server that the recipe lets write replies, not started yet; None: our own generator writes.

    Args:
        recipe: of the run.
        loaded: its base.
        injected: the adapter that is trained in it.
        template: whose stop tokens end a reply.
        folder: for what the server says of itself.

    Raises:
        ModelError, RecipeError: it cannot work here.
    """
    settings = None if recipe.rollout is None else recipe.rollout.vllm
    if settings is None:
        return None
    server = Server(settings, loaded, min(recipe.training.max_tokens, loaded.max_tokens), folder)
    server.require()
    return VllmSampler(server, injected, template.stop_ids)


def sampler_bytes(recipe: Recipe, loaded: LoadedModel) -> int:
    """What the sampler takes of the memory of the training's device beside the training itself, about."""
    settings = None if recipe.rollout is None else recipe.rollout.vllm
    return 0 if settings is None else held_bytes(settings, loaded)


def writer_of(
    settings: RolloutSettings, loaded: LoadedModel, template: Template, sampler: Sampler | None = None
) -> Writer:
    """What writes the replies; without a sampler, our own over the model."""
    sampler, longest = sampler or OwnSampler(loaded, template.stop_ids), settings.max_new_tokens
    if settings.environment is None:
        return OneTurn(sampler, template, longest)
    environment = part(settings.environment, EnvironmentSettings, "rollout.environment")  # type: ignore[type-abstract]
    return Turns(sampler, template, longest, settings.max_turns, environment.make)


def rollouts_of(
    recipe: Recipe,
    loaded: LoadedModel,
    injected: Injected,
    models: Models,
    asked: Asked,
    folder: Path,
    key: str,
) -> Rollouts:
    """The source of rows of an online objective; `folder` and `key`: those of the training.

    Raises:
        RecipeError, EvaluationError, DataError: a setting, a grader or a prompt does not go with it.
        ModelError: the sampler cannot work here.
    """
    objective = part(recipe.objective, OnlineObjective, "objective")  # type: ignore[type-abstract]
    settings = require_fit(recipe, objective)
    rewards = _rewards(settings, asked.hosted)
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
    place = folder / "rollouts"
    vllm = vllm_of(recipe, loaded, injected, asked.template, place)
    write = writer_of(settings, loaded, asked.template, vllm)
    cast = Cast(objective, models.at(settings.temperature), loaded.model, loaded.device, write, rewards)
    if vllm is not None:
        cast = replace(cast, open=vllm.open, close=vllm.close, most_drift=MOST_DRIFT / min(settings.temperature, 1.0))
    longest, reply = min(recipe.training.max_tokens, loaded.max_tokens), settings.max_new_tokens
    train, validation = (prompts_of(rows, asked.template, longest, reply) for rows in (asked.train, asked.validation))
    return Rollouts(plan, train, _some(validation, settings.validation_prompts), cast, place, key)


def _some(prompts: list[Prompt], count: int) -> list[Prompt]:
    """At most so many, evenly spaced."""
    stride = max(1, -(-len(prompts) // count))
    return prompts[::stride]
