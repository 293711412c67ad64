"""Replies that somebody writes to rows, several to each, graded and kept; what is made of them is decided elsewhere.

The random numbers of a reply are a pure function of (seed, row, reply). Rows go in batches, each a file that is there
whole or not at all; one that is there is read instead of made.

    sampled.json                   what decides the replies; the folder takes no others
    replies/batch-000001.jsonl     chats: every reply to some of the rows, and what it is worth
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from luthier import __version__
from luthier.config import Tree
from luthier.data.asked import with_place_for_reply
from luthier.data.formats.base import read_examples
from luthier.data.templates import Template
from luthier.data.write import remove_unfinished, write_examples
from luthier.engine.rollout import Grade, Written, overlong, seed_of
from luthier.errors import DataError, RecipeError, TemplateError
from luthier.examples import Conversation, Example, Message
from luthier.files import sha256_of
from luthier.preferences.cast import Cast
from luthier.preferences.choice import Question, Reply
from luthier.progress import Progress
from luthier.recipe import Recipe, RolloutSettings
from luthier.run_folder import RunFolder, decisive, differing

DECIDED = "sampled.json"
REPLIES_AT_ONCE = 128
"""Of a batch, at most, but for those to a single row; what a process that is killed loses."""

T = TypeVar("T")


def require_same(recipe: Recipe, folder: RunFolder, decides: Tree) -> None:
    """Note what decides the replies, if nothing else did before; `decides`: beside the recipe and its rows.

    Raises:
        RecipeError: there are replies that other settings, rows, models or versions decided.
    """
    decides = {
        "luthier": __version__,
        "seed": recipe.seed,
        "rollout": decisive(recipe.dump())["rollout"],
        "max_tokens": recipe.training.max_tokens,
        "rows": sha256_of(folder / "data/train.jsonl"),
        **decides,
    }
    before = folder.read(DECIDED)
    changed = [] if before is None else differing(before, decides)
    if changed and any((folder / "replies").glob("batch-*")):
        raise RecipeError(
            f"{folder.path} holds replies that were made otherwise (changed: {', '.join(changed)}). Choose another "
            "folder with --out, or remove this one"
        )
    folder.write(DECIDED, decides)


def questions(rows: Sequence[Example], settings: RolloutSettings, cast: Cast) -> tuple[list[Question], list[int]]:
    """The rows that are asked, and the places of those that leave no room for a reply."""
    asked: list[Question] = []
    full: list[int] = []
    for place, row in enumerate(rows):
        example, prompt = with_place_for_reply(row), cast.writer.prompt(row)
        if not isinstance(example, Conversation):
            continue
        question = Question(place, example, prompt)
        if cast.writer.has_room(question, settings.max_new_tokens):
            asked.append(question)
        else:
            full.append(place)
    return asked, full


def groups(
    asked: Sequence[Question],
    recipe: Recipe,
    settings: RolloutSettings,
    cast: Cast,
    folder: RunFolder,
    progress: Progress,
) -> Iterator[tuple[Question, Sequence[Reply]]]:
    """Each question with its replies; they are made a batch before they are given out."""
    size, done = settings.group_size, 0
    with progress.stage("replies", f"{size} replies to each of {len(asked):,} prompts"):
        for number, batch in enumerate(chunks(asked, max(1, REPLIES_AT_ONCE // size)), start=1):
            yield from zip(batch, _replies(batch, number, recipe.seed, settings, cast, folder), strict=True)
            done += len(batch)
            progress.update(done, len(asked), "prompts")


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
    return list(chunks(kept, size))


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


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time."""
    return (items[first : first + size] for first in range(0, len(items), size))
