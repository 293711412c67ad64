"""Preference pairs of replies that a model writes: several to each prompt, of which graders or a judge name the better.

Training rows alone are asked, so that nothing of a held-out row comes into the pairs. The random numbers of a reply are
a pure function of (seed, row, reply). Rows go in batches, each a file that is there whole or not at all; one that is
there is read instead of made, so the same command goes on where it was and ends with the same pairs.

    sampled.json                   what decides the pairs; the folder takes no others
    replies/batch-000001.jsonl     chats: every reply to some of the rows, and what it is worth
    judged/batch-000001.json       what the judge said of some pairs, in both orders
    preferences.jsonl              the pairs
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luthier import __version__
from luthier.config import Tree
from luthier.data.asked import with_place_for_reply
from luthier.data.formats.base import read_examples
from luthier.data.templates import Template
from luthier.data.write import remove_unfinished, write_examples
from luthier.data_stage import prepare_data
from luthier.engine.rollout import Grade, Written, overlong, seed_of
from luthier.errors import DataError, RecipeError, TemplateError
from luthier.evaluation.style.pairs import Judged, questions, read_replies
from luthier.examples import Conversation, Example, Message, Preference
from luthier.files import sha256_of
from luthier.online import prompt_of
from luthier.preferences.cast import WAYS as WAYS, Cast, Choices as Choices, Judge, cast_of, require_fit as require_fit
from luthier.preferences.choice import (
    NO_ROOM,
    REASONS,
    Duel,
    Fate as Fate,
    Question,
    Reply,
    duels_of,
    graded_fate,
    judged_fate,
)
from luthier.progress import Progress
from luthier.recipe import Recipe, RolloutSettings
from luthier.run_folder import RunFolder, decisive, differing

PAIRS = "preferences.jsonl"
DECIDED = "sampled.json"
REPLIES_AT_ONCE = 128
"""Of a batch, at most, but for those to a single row; what a process that is killed loses."""
JUDGED_AT_ONCE = 128
"""Pairs of a batch."""

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What came of all rows."""

    path: Path
    """Of the pairs; not there where there are none."""
    asked: int
    """Training rows."""
    unseen: Mapping[str, int]
    """Rows by split that nobody was asked."""
    fates: Sequence[Fate]
    """In the order of the rows."""

    @property
    def pairs(self) -> list[Preference]:
        """As they are written."""
        return [fate.pair for fate in self.fates if fate.pair is not None]

    def reasons(self) -> dict[str, int]:
        """How often there is no pair, by the reason."""
        counted = Counter(fate.reason for fate in self.fates)
        return {reason: counted[reason] for reason in REASONS if counted[reason]}


def make_preferences(recipe: Recipe, folder: RunFolder, choices: Choices, progress: Progress) -> Outcome:
    """Ask, grade or judge, and write the pairs; goes on where an earlier call in this folder was stopped.

    Args:
        recipe: `data.train` has the prompts, `rollout` says how replies are drawn and graded.
        folder: opened with this recipe.
        choices: what is said beside it.
        progress: told how far it is.

    Raises:
        RecipeError: settings do not go together, or the folder has replies that others decided.
        DataError: a row cannot be read or asked, or a file in the folder is damaged.
        ModelError, EvaluationError, StorageError: the model, a grader, the judge or an endpoint does not work.
    """
    settings = require_fit(recipe, choices)
    data = prepare_data(recipe, folder, progress)
    cast = cast_of(recipe, folder, choices, progress)
    _require_same(folder, {**_decides(recipe, folder, choices), **cast.decides})
    asked, fates = _questions(data.train, settings, cast)
    duels: list[Duel] = []
    done = 0
    with progress.stage("replies", f"{settings.group_size} replies to each of {len(asked):,} prompts"):
        for number, batch in enumerate(_chunks(asked, max(1, REPLIES_AT_ONCE // settings.group_size)), start=1):
            groups = _replies(batch, number, recipe.seed, settings, cast, folder)
            for question, group in zip(batch, groups, strict=True):
                if cast.judge is None:
                    may_lose = not settings.mask_truncated
                    fates.append(graded_fate(question, group, cast.writer.name, choices.margin, may_lose))
                else:
                    duels += duels_of(question, group)
            done += len(batch)
            progress.update(done, len(asked), "prompts")
    if cast.judge is not None:
        with progress.stage("judged", f"{cast.judge.name} judges two replies at a time, in both orders"):
            fates += _judged(duels, cast.judge, cast.writer.name, folder, progress)
    unseen = {"validation": len(data.validation), "test": len(data.test)}
    outcome = Outcome(folder / PAIRS, len(data.train), unseen, sorted(fates, key=lambda fate: fate.place))
    if outcome.pairs:
        write_examples(outcome.path, outcome.pairs)
    return outcome


def _decides(recipe: Recipe, folder: RunFolder, choices: Choices) -> Tree:
    """What decides the pairs beside who takes part."""
    return {
        "luthier": __version__,
        "by": choices.by,
        "margin": choices.margin,
        "seed": recipe.seed,
        "rollout": decisive(recipe.dump())["rollout"],
        "max_tokens": recipe.training.max_tokens,
        "rows": sha256_of(folder / "data/train.jsonl"),
    }


def _require_same(folder: RunFolder, decides: Tree) -> None:
    """Note what decides the pairs, if nothing else did before.

    Raises:
        RecipeError: there are replies that other settings, rows, models or versions decided.
    """
    before = folder.read(DECIDED)
    changed = [] if before is None else differing(before, decides)
    if changed and any((folder / "replies").glob("batch-*")):
        raise RecipeError(
            f"{folder.path} holds replies that were made otherwise (changed: {', '.join(changed)}). Choose another "
            "folder with --out, or remove this one"
        )
    folder.write(DECIDED, decides)


# replies


def _questions(rows: Sequence[Example], settings: RolloutSettings, cast: Cast) -> tuple[list[Question], list[Fate]]:
    """The rows that are asked, and the fates of those that leave no room for a reply."""
    model = cast.writer.model
    asked: list[Question] = []
    fates: list[Fate] = []
    for place, row in enumerate(rows):
        prompt, example = prompt_of(row, cast.writer.template), with_place_for_reply(row)
        if model is not None and len(prompt.ids) + settings.max_new_tokens > model.longest:
            fates.append(Fate(place, row.id, NO_ROOM, {}))
        elif isinstance(example, Conversation):
            asked.append(Question(place, example, prompt))
    return asked, fates


def _replies(
    batch: Sequence[Question], number: int, seed: int, settings: RolloutSettings, cast: Cast, folder: RunFolder
) -> list[Sequence[Reply]]:
    """The replies to each row of a batch: those of its file, which is written if it is not there."""
    path, size = folder / f"replies/batch-{number:06d}.jsonl", settings.group_size
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        remove_unfinished(path.parent)
        write_examples(path, list(_made(batch, seed, settings, cast)))
    kept = [_reply(row) for row in read_examples(path, "messages")]
    if len(kept) != len(batch) * size:
        raise DataError(
            f"holds {len(kept)} replies where {len(batch) * size} were written; remove it, and they are made again",
            path,
        )
    return list(_chunks(kept, size))


def _made(batch: Sequence[Question], seed: int, settings: RolloutSettings, cast: Cast) -> Iterator[Conversation]:
    """Replies as chats, each with what it is worth beside it."""
    asked = [question for question in batch for _ in range(settings.group_size)]
    numbers = list(range(settings.group_size)) * len(batch)
    seeds = [seed_of(seed, question.place, number) for question, number in zip(asked, numbers, strict=True)]
    written = cast.writer.write(asked, seeds)
    grades: Sequence[Grade | None] = [None] * len(asked)
    if cast.grade is not None:
        grades = cast.grade([(question.prompt, answer) for question, answer in zip(asked, written, strict=True)])
    for question, number, answer, grade in zip(asked, numbers, written, grades, strict=True):
        fault = _fault(question, answer.message, cast.writer.template)
        extra = {"truncated": answer.truncated, "fault": fault, **_worth(answer, grade, settings)}
        messages, row = (*question.prompt.messages, answer.message), question.example
        yield Conversation(messages, row.tools, id=f"{row.id}/{number}", extra=extra)


def _worth(answer: Written, grade: Grade | None, settings: RolloutSettings) -> dict[str, Any]:
    if grade is None:
        return {}
    reward = grade.reward - overlong(answer, settings.max_new_tokens, settings.overlong_tokens)
    return {"reward": reward, "rewards": dict(grade.parts), "problems": dict(grade.problems)}


def _fault(question: Question, reply: Message, template: Template | None) -> str:
    """Why no row can hold a reply; empty: it can."""
    if not reply.tool_calls and not reply.content.strip():
        return "empty"
    if template is not None:
        try:
            template.reply_row(Conversation((*question.prompt.messages, reply), question.example.tools), (reply,))
        except TemplateError as error:
            return str(error)
    return ""


def _reply(row: Example) -> Reply:
    if not isinstance(row, Conversation):
        raise ValueError("the format messages reads conversations")
    kept = row.extra
    worth = kept.get("reward", 0.0), kept.get("rewards"), kept.get("problems")
    return Reply(row.messages[-1], kept["truncated"], kept["fault"], *worth)


# the judge


def _judged(duels: Sequence[Duel], judge: Judge, writer: str, folder: RunFolder, progress: Progress) -> Iterator[Fate]:
    """The fates of each two replies, in their order."""
    asked = [duel for duel in duels if duel.reason is None]
    said: list[Judged] = []
    for number, batch in enumerate(_chunks(asked, JUDGED_AT_ONCE), start=1):
        said += _orders(batch, number, judge, folder)
        progress.update(len(said), len(asked), "pairs")
    left = iter(said)
    for duel in duels:
        yield judged_fate(duel, next(left) if duel.reason is None else None, writer, judge.name)


def _orders(batch: Sequence[Duel], number: int, judge: Judge, folder: RunFolder) -> list[Judged]:
    """What the judge says of a batch: that of its file, which is written if it is not there."""
    name = f"judged/batch-{number:06d}.json"
    kept = folder.read(name)
    if kept is None:
        said = read_replies(judge.ask([one for duel in batch for one in questions(duel.shown, judge.criterion)]))
        kept = [list(judged.orders) for judged in said]
        (folder / name).parent.mkdir(exist_ok=True)
        folder.write(name, kept)
    return [Judged((first, second)) for first, second in kept]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
