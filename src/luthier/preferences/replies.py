"""Rows of replies that somebody writes: of several to each prompt the best, or all that are good enough.

Sequence-level distillation (Kim & Rush 2016, arXiv:1606.07947) where a teacher writes, rejection sampling where graders
filter (RFT, Yuan et al. 2023, arXiv:2308.01825). It works through text, so the writer's tokenizer may be any. Training
rows alone are asked; replies are kept batch by batch (`sampling.py`).

    replies.jsonl                  the rows, as the objective `sft` learns them
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from luthier.data.write import write_examples
from luthier.data_stage import prepare_data
from luthier.errors import RecipeError
from luthier.evaluation.systems.base import message_text
from luthier.examples import Conversation
from luthier.online import require_models
from luthier.preferences.cast import cast_of, require_drawn
from luthier.preferences.choice import NO_ROOM, NOT_WHOLE, Question, Reply
from luthier.preferences.sampling import groups, questions, require_same
from luthier.progress import Progress
from luthier.recipe import Recipe, RolloutSettings
from luthier.run_folder import RunFolder

ROWS = "replies.jsonl"
TOO_LOW = "no whole reply is worth as much as --least"
Keep: TypeAlias = Literal["best", "passing"]
KEEPS: tuple[Keep, ...] = ("best", "passing")


@dataclass(frozen=True)
class ReplyChoices:
    """What is said beside the recipe."""

    keep: Keep = "best"
    """The best reply to each prompt, or every different one that is worth `least`."""
    least: float | None = None
    """Least reward of a reply that is kept; None: any."""
    writer: str | None = None
    """As `Choices.writer`."""


@dataclass(frozen=True)
class Answered:
    """What became of a row."""

    place: int
    id: str
    reason: str | None
    """Why none of its replies is kept."""
    told: Mapping[str, Any]
    """Figures of the replies."""
    kept: Sequence[Conversation] = ()

    def values(self) -> dict[str, Any]:
        """As a report has it."""
        return {"id": self.id, "kept": len(self.kept), "reason": self.reason, **self.told}


@dataclass(frozen=True)
class ReplyOutcome:
    """What came of all rows."""

    path: Path
    """Of the rows that are kept; not there where there are none."""
    unseen: Mapping[str, int]
    """Rows by split that nobody was asked."""
    fates: Sequence[Answered]
    """In the order of the rows."""

    @property
    def kept(self) -> list[Conversation]:
        """As they are written."""
        return [row for fate in self.fates for row in fate.kept]

    def reasons(self) -> dict[str, int]:
        """How often nothing is kept, by the reason."""
        counted = Counter(fate.reason for fate in self.fates)
        return {reason: counted[reason] for reason in (NO_ROOM, NOT_WHOLE, TOO_LOW) if counted[reason]}


def require_reply_fit(recipe: Recipe, choices: ReplyChoices) -> RolloutSettings:
    """How replies are drawn, if the settings go together.

    Raises:
        RecipeError: they do not.
    """
    settings = require_drawn(recipe, choices.writer)
    require_models(settings)
    if not settings.rewards and (choices.keep == "passing" or choices.least is not None or settings.group_size > 1):
        raise RecipeError(
            "nothing says what a reply is worth: write [rollout.rewards.NAME], or draw one reply to each prompt "
            "(rollout.group_size = 1) and keep it"
        )
    if choices.keep == "passing" and choices.least is None:
        raise RecipeError("--by passing: say with --least X what a reply must be worth")
    return settings


def make_replies(recipe: Recipe, folder: RunFolder, choices: ReplyChoices, progress: Progress) -> ReplyOutcome:
    """Ask, grade, and write what is kept; goes on where an earlier call in this folder was stopped.

    Args:
        recipe: `data.train` has the prompts, `rollout` says how replies are drawn and graded.
        folder: opened with this recipe.
        choices: what is said beside it.
        progress: told how far it is.

    Raises:
        RecipeError: settings do not go together, or the folder has replies that others decided.
        DataError: a row cannot be read or asked, or a file in the folder is damaged.
        ModelError, EvaluationError, StorageError: the writer or a grader does not work.
    """
    settings = require_reply_fit(recipe, choices)
    data = prepare_data(recipe, folder, progress)
    cast = cast_of(recipe, folder, "rewards", choices.writer, progress)
    require_same(recipe, folder, cast.decides)  # what is kept of the same replies may be said anew
    asked, full = questions(data.train, settings, cast)
    fates = [Answered(place, data.train[place].id, NO_ROOM, {}) for place in full]
    for question, group in groups(asked, recipe, settings, cast, folder, progress):
        fates.append(answered(question, group, cast.writer.name, choices))
    unseen = {"validation": len(data.validation), "test": len(data.test)}
    outcome = ReplyOutcome(folder / ROWS, unseen, sorted(fates, key=lambda fate: fate.place))
    if outcome.kept:
        write_examples(outcome.path, outcome.kept)
    else:  # those that an earlier call kept were chosen otherwise
        outcome.path.unlink(missing_ok=True)
    return outcome


def answered(question: Question, group: Sequence[Reply], writer: str, choices: ReplyChoices) -> Answered:
    """The replies of a group that are kept; of equals the earlier one is the best, and the same is kept once."""
    whole = [place for place, reply in enumerate(group) if reply.is_whole]
    good = [place for place in whole if choices.least is None or group[place].reward >= choices.least]
    told = {
        "replies": len(group),
        "truncated": sum(reply.truncated for reply in group),
        "problems": sum(bool(reply.problems) for reply in group),
        "mean_reward": sum(reply.reward for reply in group) / len(group),
        "passing": len(good),
    }
    if not good:
        return Answered(question.place, question.example.id, TOO_LOW if whole else NOT_WHOLE, told)
    if choices.keep == "best":
        kept = [max(good, key=lambda place: group[place].reward)]
    else:
        said = {message_text(group[place].message).strip(): place for place in reversed(good)}
        kept = sorted(said.values())
    rows = [_row(question, place, group[place], writer, named=len(kept) > 1) for place in kept]
    return Answered(question.place, question.example.id, None, told, rows)


def _row(question: Question, place: int, reply: Reply, writer: str, named: bool) -> Conversation:
    """The question with a reply; replies to one prompt are of one group, so that no split divides them."""
    row = question.example
    extra = {"source": row.id, "writer": writer, **({} if reply.rewards is None else {"reward": reply.reward})}
    return Conversation(
        (*question.prompt.messages, reply.message),
        row.tools,
        id=f"{row.id}/{place}" if named else row.id,
        group=row.group or (row.id if named else None),
        extra=extra,
    )
