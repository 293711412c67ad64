"""Who makes pairs: what writes replies, the graders or the judge, and what decides what they say."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from luthier import assemble
from luthier.config import Tree, did_you_mean, part
from luthier.data.templates import Template
from luthier.engine.rollout import Prompt, Written
from luthier.errors import RecipeError
from luthier.evaluation.harness import files_named
from luthier.evaluation.style.pairs import ANSWER_TOKENS
from luthier.evaluation.systems.base import Answer, Context, Desk, System
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Example, Message
from luthier.models.kernels import native
from luthier.models.load import LoadedModel, choose_device
from luthier.models.memory import tokens_in_flight
from luthier.online import Rewards, prompt_of, require_models, writer_of
from luthier.preferences.choice import Question
from luthier.progress import Progress
from luthier.recipe import Recipe, RolloutSettings, TeacherSettings, dump_part
from luthier.rewarding import host_of
from luthier.run_folder import RunFolder
from luthier.starts import keep_start
from luthier.teaching.plan import named, open_voice

Way: TypeAlias = Literal["rewards", "judge"]
WAYS: tuple[Way, ...] = ("rewards", "judge")
TEACHER = "teacher"
"""As a writer: whom the recipe's `[teacher]` names; where it has none, a system may be called so."""
SEEDS = 2**31
"""What every endpoint takes for a seed lies below."""


@dataclass(frozen=True)
class Choices:
    """What is said beside the recipe."""

    by: Way = "rewards"
    """Who says which reply is better: graders of `rollout.rewards`, or `evaluation.style.judge`."""
    margin: float | None = None
    """Least difference of rewards; None: any."""
    writer: str | None = None
    """The system of `evaluation.systems` that writes, or `teacher`, the recipe's; None: the recipe's model."""


def require_fit(recipe: Recipe, choices: Choices) -> RolloutSettings:
    """How replies are drawn, if the settings go together.

    Raises:
        RecipeError: they do not.
    """
    settings, judge = require_drawn(recipe, choices.writer), recipe.evaluation.style.judge
    if choices.by == "rewards":
        require_models(settings)
    elif settings.models:
        raise RecipeError("rollout.models are asked by graders, and --by judge has none; leave them out")
    if settings.group_size < 2:
        raise RecipeError("rollout.group_size = 1: a pair is of two replies to one prompt; draw 2 or more")
    if choices.by == "rewards" and not settings.rewards:
        raise RecipeError("nothing says what a reply is worth: write [rollout.rewards.NAME], or let --by judge decide")
    if choices.by == "judge" and judge is None:
        raise RecipeError('--by judge: write judge = { type = "local_model", model = "..." } in [evaluation.style]')
    if choices.by == "judge" and settings.group_size % 2:
        raise RecipeError(
            f"rollout.group_size = {settings.group_size}: a judge is shown two replies at a time; draw an even number"
        )
    if choices.by == "judge" and choices.margin is not None:
        raise RecipeError("--margin is of rewards, and a judge gives none; leave it out")
    return settings


def require_drawn(recipe: Recipe, writer: str | None) -> RolloutSettings:
    """How replies are drawn, if somebody can draw them so; `writer`: as of `Choices`.

    Raises:
        RecipeError: nobody can.
    """
    settings, known = recipe.rollout, [*recipe.evaluation.systems, *([TEACHER] if recipe.teacher is not None else [])]
    if settings is None:
        raise RecipeError("the recipe does not say how replies are drawn: write a table [rollout] with group_size = 8")
    if settings.vllm is not None:
        raise RecipeError(
            "rollout.vllm is of trainings; leave it out, or let a server that runs write: a table "
            "[evaluation.systems.NAME] of type 'remote', and --model NAME"
        )
    if settings.environment is not None:
        raise RecipeError("rollout.environment: what is made is of single replies, not of conversations; leave it out")
    if writer is not None and writer not in known:
        raise RecipeError(f"--model {writer}: evaluation.systems has no such table{did_you_mean(writer, known)}")
    if writer is None and recipe.teacher is not None:
        raise RecipeError("[teacher] changes nothing here without --model teacher; remove it, or let it write")
    if writer == TEACHER and recipe.teacher is not None:
        _require_teacher_as_it_is(recipe, recipe.teacher)
    elif writer is not None and settings.overlong_tokens:
        raise RecipeError("rollout.overlong_tokens counts tokens, and an endpoint's are not known; leave it out")
    return settings


def _require_teacher_as_it_is(recipe: Recipe, teacher: TeacherSettings) -> None:
    """Raise a RecipeError where the teacher would write otherwise than the recipe says, or two are called so."""
    if TEACHER in recipe.evaluation.systems:
        raise RecipeError(
            "--model teacher: the recipe has [teacher] and [evaluation.systems.teacher]; give the system another name"
        )
    if teacher.replies == "teacher":
        raise RecipeError(
            "teacher.replies = 'teacher' is of trainings; leave it out with --model teacher: [rollout] says how "
            "replies are drawn"
        )
    run = assemble.adapter_of(recipe).start_from
    if teacher.is_own and run is not None:
        raise RecipeError(
            f"--model teacher is the base behind the prompt, without what adapter.start_from trained: write run = "
            f"'{run}' in [teacher], so that this writes"
        )


@dataclass(frozen=True)
class Model:
    """The recipe's model, opened here."""

    loaded: LoadedModel
    template: Template
    longest: int
    """Tokens that a row may have."""


@dataclass(frozen=True)
class Writer:
    """What writes replies."""

    name: str
    write: Callable[[Sequence[Question], Sequence[int]], Sequence[Written]]
    """A reply to each question, with a seed each; the same question may stand there several times."""
    decides: Tree
    """What its replies follow from beside the recipe."""
    model: Model | None = None
    """None: it is not here."""
    reads: Callable[[tuple[Message, ...]], tuple[Message, ...]] = tuple
    """What it is asked where a row asks these messages."""

    def prompt(self, row: Example) -> Prompt:
        """What a row asks, as graders and rows have it."""
        return prompt_of(row, self.template)

    def asked(self, question: Question) -> Prompt:
        """What it reads itself."""
        prompt, template = question.prompt, self.template
        messages = self.reads(prompt.messages)
        if template is None or messages == prompt.messages:
            return prompt
        return replace(prompt, messages=messages, ids=tuple(template.prompt_ids(messages, prompt.tools)))

    def has_room(self, question: Question, reply: int) -> bool:
        """Whether a reply of so many tokens fits behind what it reads."""
        return self.model is None or len(self.asked(question).ids) + reply <= self.model.longest

    @property
    def template(self) -> Template | None:
        """That replies are read and rendered with; None: the writer is not here."""
        return None if self.model is None else self.model.template


@dataclass(frozen=True)
class Judge:
    """Whoever says which of two replies is better."""

    name: str
    criterion: str
    ask: Callable[[Sequence[Conversation]], list[str]]
    """Its reply to each question."""
    decides: Tree
    """What it says follows from."""


@dataclass(frozen=True)
class Cast:
    """Who takes part: a writer, and graders or a judge."""

    writer: Writer
    grade: Rewards | None
    """None: nothing says what a reply is worth."""
    judge: Judge | None
    decides: Tree
    """What they say follows from, beside the recipe."""


def cast_of(recipe: Recipe, folder: RunFolder, by: Way, writer_name: str | None, progress: Progress) -> Cast:
    """Open what takes part; no model where an endpoint writes and graders decide.

    Args:
        recipe: whose replies are drawn; known to fit.
        folder: opened with it.
        by: as of `Choices`.
        writer_name: as `Choices.writer`.
        progress: told what is opened.

    Raises:
        RecipeError, ModelError, EvaluationError: something is not there or cannot work here.
    """
    settings = require_drawn(recipe, writer_name)
    desk = Desk(folder / "responses", say=lambda text: progress.say(f"    {text}"))
    if writer_name is None:
        writer = _here(recipe, settings, folder, progress)
    elif writer_name == TEACHER and recipe.teacher is not None:
        writer = _taught(recipe, recipe.teacher, settings, folder, progress)
    else:
        writer = _elsewhere(recipe, settings, writer_name, desk)
    if by == "rewards":
        hosted = host_of(recipe, folder.path, str(choose_device(recipe.model.device)))
        for note in hosted.notes:
            progress.say(f"    {note}")
        grade = Rewards(settings, hosted.host, hosted.at_once) if settings.rewards else None
        if grade is not None:
            grade.require()
        return Cast(writer, grade, None, {"writer": writer.decides, "reward_models": dict(hosted.decides)})
    judge = _judge(recipe, folder, writer.model or _open(recipe, folder, progress), desk)
    return Cast(writer, None, judge, {"writer": writer.decides, "judge": judge.decides})


def _open(recipe: Recipe, folder: RunFolder, progress: Progress) -> Model:
    with progress.stage("open", f"loading {recipe.model.name}"):
        loaded = assemble.open_for_run(recipe, folder)
    return Model(loaded, assemble.template_for(recipe, loaded), assemble.longest_row(recipe, loaded))


def _here(recipe: Recipe, settings: RolloutSettings, folder: RunFolder, progress: Progress) -> Writer:
    """The recipe's model, as the run left it that `adapter.start_from` names."""
    start = keep_start(recipe, folder)
    model = _open(recipe, folder, progress)
    loaded, template = model.loaded, model.template
    if start is not None:
        start.require_fit(recipe, loaded, template)
        start.artifact.put_in(loaded.model)
        loaded.model.eval()
        progress.say(f"  replies are written by what {start.source} trained")
    sample = writer_of(settings, loaded, template)

    def write(asked: Sequence[Question], seeds: Sequence[int]) -> Sequence[Written]:
        return sample([question.prompt for question in asked], seeds, settings.temperature)

    decides = {
        "model": loaded.files.fingerprint,
        "template": template.sha256,
        "start": None if start is None else dict(start.files),
        "versions": _versions(loaded),
    }
    # a folder by its own name: where it lies is nobody's business who is given the pairs
    name = recipe.model.name if start is None else start.source
    return Writer(Path(name).name if Path(name).exists() else name, write, decides, model)


def _taught(
    recipe: Recipe, teacher: TeacherSettings, settings: RolloutSettings, folder: RunFolder, progress: Progress
) -> Writer:
    """The recipe's teacher, behind its prompt if it has one; the replies are those of the rows without it."""
    own = _open(recipe, folder, progress) if teacher.is_own else None
    device = choose_device(recipe.model.device)
    plan = named(recipe, teacher, device, None if own is None else own.loaded)
    if own is None:
        voice = open_voice(plan, recipe, device, progress)
        model = Model(voice.loaded, voice.template, voice.loaded.max_tokens)
    else:
        model = Model(own.loaded, own.template, own.loaded.max_tokens)
    sample = writer_of(settings, model.loaded, model.template)
    writer = Writer(
        Path(plan.name).name if Path(plan.name).exists() else plan.name,
        lambda asked, seeds: sample([writer.asked(question) for question in asked], seeds, settings.temperature),
        {"teacher": plan.decides, "template": model.template.sha256, "versions": _versions(model.loaded)},
        model,
        plan.before,
    )
    return writer


def _versions(loaded: LoadedModel) -> list[str]:
    return [torch.__version__, assemble.precision_of(loaded), loaded.device.type, native.identity()]


def _elsewhere(recipe: Recipe, settings: RolloutSettings, name: str, desk: Desk) -> Writer:
    """A system of the recipe that replies are drawn from."""
    system = part(recipe.evaluation.systems[name], System, f"evaluation.systems.{name}")  # type: ignore[type-abstract]

    def write(asked: Sequence[Question], seeds: Sequence[int]) -> Sequence[Written]:
        rows, low = [question.example for question in asked], [seed % SEEDS for seed in seeds]
        drawn = system.sample(rows, settings.max_new_tokens, settings.temperature, low, desk)
        return [_written(answer) for answer in drawn]

    return Writer(str(dump_part(system).get("model", name)), write, system.deciding())


def _written(answer: Answer) -> Written:
    reply = answer.reply or Message("assistant", answer.output)
    text = reply.content.encode("utf-8", "replace").decode()  # half of a character, which no file can hold
    return Written(text, replace(reply, content=text), (), (), (), truncated=answer.finished is False)


def _judge(recipe: Recipe, folder: RunFolder, model: Model, desk: Desk) -> Judge:
    """The judge of `evaluation.style`; one that is local is opened beside `model`."""
    style = recipe.evaluation.style
    system = part(style.judge, System, "evaluation.style.judge")  # type: ignore[type-abstract, arg-type]
    home = Path(folder.read("manifest.json")["recipe_folder"])
    context = Context(
        loaded=model.loaded,
        template=model.template,
        adapter_disabled=nullcontext,
        train=(),  # nothing of the task is told to a judge but what it is asked
        validation=(),
        max_new_tokens=ANSWER_TOKENS,
        task="text",
        primary_metric=build_metrics(["exact_match"])["exact_match"],
        base_fingerprint=model.loaded.files.fingerprint,
        recipe_folder=home,
        batch_tokens=tokens_in_flight(model.loaded.model),
        say=desk.say,
        responses=desk.responses,
    )
    values = system.deciding()
    decides = {
        "system": values,
        "criterion": style.criterion,
        "files": dict(files_named(values, home)),
        "identity": system.identity(context),
    }

    def ask(asked: Sequence[Conversation]) -> list[str]:
        return [answer.output for answer in system.answer(asked, context).answers]

    return Judge(str(values.get("model") or " ".join(values["command"])), style.criterion, ask, decides)
