"""Replies that the teacher writes before the training, in place of those of the rows (`teacher.replies = "teacher"`).

They go in batches, each a file that is there whole or not at all, in a folder named by all that decides them: a process
that was stopped goes on with the next one. A reply that was cut off would teach not to end; its row is left out.

    teacher/replies-0123456789ab/train-000001.jsonl  validation-000001.jsonl
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from luthier import __version__, assemble
from luthier.config import canonical_hash
from luthier.data.asked import asked
from luthier.data.formats.base import read_examples
from luthier.data.write import example_values, remove_unfinished, write_examples
from luthier.engine.kept_teacher import FOLDER
from luthier.engine.rollout import Prompt, seed_of
from luthier.engine.writing import OneTurn, OwnSampler
from luthier.errors import DataError
from luthier.examples import Conversation, Example
from luthier.models.kernels import native
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.teaching.plan import Planned, Voice, open_voice

AT_ONCE = 64
"""Replies of a batch; what a process that is killed loses."""
CUT_OFF = "cut_off"
"""Whether a reply ran into `teacher.max_new_tokens`."""


def replied(
    plan: Planned,
    recipe: Recipe,
    loaded: LoadedModel,
    named: Mapping[str, Sequence[Example]],
    folder: Path,
    progress: Progress,
) -> dict[str, list[Example]]:
    """The rows with the teacher's replies, by split; fewer where it did not come to an end.

    Args:
        plan: the teacher.
        recipe: of the run.
        loaded: its base, with no adapter in it.
        named: chats by split.
        folder: of the run.
        progress: told how far it is.

    Raises:
        DataError: a row is no chat, leaves no room for a reply, or no reply of a split came to an end.
        ModelError, StorageError: the teacher cannot be opened, or the disk is full.
    """
    place = folder / FOLDER / f"replies-{_key(plan, recipe, loaded, named)[:12]}"
    batches = {
        place / f"{name}-{number + 1:06d}.jsonl": (first, rows[first : first + AT_ONCE])
        for name, rows in named.items()
        for number, first in enumerate(range(0, len(rows), AT_ONCE))
    }
    missing = [path for path in batches if not path.is_file()]
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        remove_unfinished(place)
        student = Voice(loaded, assemble.template_for(recipe, loaded), Scorer(loaded.model))
        voice = student if plan.is_own else open_voice(plan, recipe, loaded.device, progress)
        with progress.stage("replies", f"{plan.name} writes replies, which are kept ({place.name}/)"):
            for number, path in enumerate(missing, start=1):
                write_examples(path, _written(plan, voice, recipe.seed, *batches[path]))
                progress.update(number, len(missing), "batches of replies")
    found: dict[str, list[Example]] = {name: [] for name in named}
    for path, (_, rows) in batches.items():
        name = path.name.rpartition("-")[0]
        found[name] += _whole(rows, list(read_examples(path, "messages")), path)
    for name, rows in named.items():
        _tell(name, len(rows), len(found[name]), progress)
    return found


def _key(plan: Planned, recipe: Recipe, loaded: LoadedModel, named: Mapping[str, Sequence[Example]]) -> str:
    settings = plan.settings
    rows = {name: [example_values(row) for row in group] for name, group in named.items()}
    how = [recipe.seed, settings.max_new_tokens, settings.temperature]
    student = [loaded.files.fingerprint, assemble.template_for(recipe, loaded).sha256]
    here = [*student, loaded.device.type, native.identity(), __version__, torch.__version__]
    return canonical_hash([plan.decides, how, here, rows])


def _written(plan: Planned, voice: Voice, seed: int, first: int, rows: Sequence[Example]) -> Iterator[Conversation]:
    """A batch as chats, whose first row has the place `first` in its split."""
    settings = plan.settings
    write = OneTurn(OwnSampler(voice.loaded, voice.template.stop_ids), voice.template, settings.max_new_tokens)
    prompts = [_prompt(plan, voice, row) for row in rows]
    seeds = [seed_of(seed, first + place) for place in range(len(rows))]
    for row, written in zip(rows, write(prompts, seeds, settings.temperature), strict=True):
        if isinstance(row, Conversation):
            empty = not written.message.tool_calls and not written.message.content.strip()
            extra = {CUT_OFF: written.truncated or empty}
            yield Conversation((*asked(row), written.message), row.tools, id=row.id, extra=extra)


def _prompt(plan: Planned, voice: Voice, row: Example) -> Prompt:
    at = row.where
    if not isinstance(row, Conversation):
        raise DataError("only a chat can be answered by a teacher", at.path, at.line, at.row)
    messages = plan.before(asked(row))
    ids = tuple(voice.template.prompt_ids(messages, row.tools))
    room = voice.loaded.max_tokens - len(ids)
    if room < plan.settings.max_new_tokens:
        raise DataError(
            f"its prompt has {len(ids)} tokens for the teacher, whose context leaves room for {max(room, 0)} more, and "
            f"teacher.max_new_tokens is {plan.settings.max_new_tokens}",
            at.path,
            at.line,
            at.row,
        )
    return Prompt(row.id, ids, messages, {}, row.tools)


def _whole(rows: Sequence[Example], kept: Sequence[Example], path: Path) -> Iterator[Example]:
    """The rows with their replies, where these came to an end."""
    if [row.id for row in rows] != [reply.id for reply in kept]:
        raise DataError("is damaged; remove it, and its replies are written again", path)
    for row, reply in zip(rows, kept, strict=True):
        if isinstance(row, Conversation) and isinstance(reply, Conversation) and not reply.extra[CUT_OFF]:
            yield replace(row, messages=reply.messages, target=None)


def _tell(name: str, asked_for: int, whole: int, progress: Progress) -> None:
    if asked_for and not whole:
        raise DataError(
            f"no reply of the teacher to the {asked_for:,} {name} rows came to an end: raise teacher.max_new_tokens, "
            "or look at what it writes"
        )
    if whole < asked_for:
        progress.say(f"  {asked_for - whole:,} of {asked_for:,} replies to {name} rows were cut off, and are left out")
