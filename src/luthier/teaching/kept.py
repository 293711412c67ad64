"""A teacher that is asked once, of all rows of a training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from luthier import __version__, assemble
from luthier.config import canonical_hash
from luthier.data.source import Unit, micro_batches
from luthier.data.stored import StoredUnits
from luthier.engine.kept_teacher import FOLDER, ROWS_OF_PART, KeptTeacher, is_kept, keep, places_of
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Document, Example, Row
from luthier.models.forest import build_batch
from luthier.models.kernels import native
from luthier.models.kernels.buckets import NOTHING
from luthier.models.scorer import in_mode
from luthier.objectives.base import Lesson, Told
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.teaching.plan import Planned, Voice, open_voice
from luthier.teaching.words import Words, say

READ_AT_ONCE = 4096
"""Tokens that a teacher reads at once; what they begin with in common counts once."""
TOLD = "told"
"""Value of a student's token: whether the teacher is asked there."""


@dataclass(frozen=True)
class Seen:
    """Rows as a teacher reads them."""

    pairs: Sequence[Unit]
    """Of each of the student's rows: itself, with TOLD for each token; and the teacher's, trained on where it is asked.
    """
    told: int
    trained: int


def kept(
    plan: Planned,
    lesson: Lesson,
    recipe: Recipe,
    student: Voice,
    rows: Mapping[str, tuple[Sequence[Example], Sequence[Unit]]],
    folder: Path,
    progress: Progress,
) -> KeptTeacher:
    """What the teacher says of all rows; asked now, unless it was asked before.

    Args:
        plan: the teacher.
        lesson: what is asked.
        recipe: of the run.
        student: its model, whose scorer is that of the model before training.
        rows: by split, examples and what they became.
        folder: of the run.
        progress: told how far it is.

    Raises:
        RecipeError: the teacher's tokenizer is another one and the recipe does not say what is learned where it tells
            nothing.
        DataError: a row does not fit the teacher.
        ModelError, StorageError: it cannot be opened, or the disk is full.
    """
    places = places_of(row for _, units in rows.values() for unit in units for row in unit)
    key = _key(plan, lesson, student, {name: units for name, (_, units) in rows.items()})
    if is_kept(folder, key, places):
        return keep(folder, key, places, _ask_nobody, lambda _: None)
    voice = student if plan.is_own else open_voice(plan, recipe, student.loaded.device, progress)
    words = Words(student, voice)
    one_by_one = chain.from_iterable(zip(*split, strict=True) for split in rows.values())
    read = seen(plan, voice, words, one_by_one, folder)
    _require_told(plan, lesson, read, words, progress)
    ask, count = Asking(voice, words, lesson, read.pairs), len(read.pairs)
    title = f"{plan.name} is asked of {count:,} rows once, which is kept ({FOLDER}/)"
    with progress.stage("teacher", title), in_mode(voice.loaded.model, training=False):
        return keep(
            folder,
            key,
            places,
            lambda part: ask(part * ROWS_OF_PART, (part + 1) * ROWS_OF_PART),
            lambda parts: progress.update(min(parts * ROWS_OF_PART, count), count),
        )


def _ask_nobody(part: int) -> Told:
    raise ValueError(f"part {part} was there a moment ago")


def _key(plan: Planned, lesson: Lesson, student: Voice, units: Mapping[str, Sequence[Unit]]) -> str:
    """Changes when anything does that the teacher's words follow from."""
    rows = {name: assemble.hash_units(group) for name, group in units.items()}
    own = [student.loaded.files.fingerprint, student.template.sha256, student.loaded.device.type, native.identity()]
    return canonical_hash([plan.decides, lesson.top_k, lesson.temperature, rows, own, __version__, torch.__version__])


def seen(plan: Planned, voice: Voice, words: Words, rows_of: Iterable[tuple[Example, Unit]], folder: Path) -> Seen:
    """The rows of all examples as the teacher reads them.

    Raises:
        DataError: a row has no room in the teacher's context, or is cut into other rows by its template.
    """
    counts = [0, 0]

    def pairs() -> Iterator[Unit]:
        for example, unit in rows_of:
            theirs = _read(plan, voice, example)
            if len(theirs) != len(unit):
                raise _refusal(example, f"is {len(unit)} rows to the student's template and {len(theirs)} to its")
            for mine, their in zip(unit, theirs, strict=True):
                if len(their.ids) > voice.loaded.max_tokens:
                    raise _refusal(
                        example, f"has {len(their.ids)} tokens for it, and its context is {voice.loaded.max_tokens}"
                    )
                pair, found = _paired(mine, their, words.align(mine, their))
                counts[0] += found
                counts[1] += mine.trained_tokens
                yield pair

    stored = StoredUnits(pairs(), folder)
    return Seen(stored, *counts)


def _refusal(example: Example, why: str) -> DataError:
    at = example.where
    return DataError(f"the teacher cannot read this row: it {why}", at.path, at.line, at.row)


def _read(plan: Planned, voice: Voice, example: Example) -> tuple[Row, ...]:
    """The example's rows as the teacher reads them."""
    if not isinstance(example, Conversation | Document):
        raise _refusal(example, "is no chat and no text")
    if plan.prompt is None:
        return voice.template.rows(example)
    if isinstance(example, Document):
        raise _refusal(example, "is raw text, before which no prompt stands")
    return voice.template.rows(replace(example, messages=plan.before(example.messages)))


def _paired(mine: Row, theirs: Row, places: Sequence[int | None]) -> tuple[Unit, int]:
    """Both rows, and how many tokens the teacher is asked at."""
    asked_at = {place for place in places if place is not None}
    trained = [i for i, weight in enumerate(theirs.loss_mask) if weight and i]
    wanted = {trained[place] for place in asked_at}
    mask = tuple(float(i in wanted) for i in range(len(theirs.ids)))
    told = mine.telling({TOLD: [float(place is not None) for place in places]})
    return (told, replace(theirs, loss_mask=mask)), len(asked_at)


def _require_told(plan: Planned, lesson: Lesson, read: Seen, words: Words, progress: Progress) -> None:
    """Say how much a teacher with another tokenizer tells.

    Raises:
        RecipeError: it tells nothing, or nothing else is learned where it does not.
    """
    if read.told == read.trained:
        return
    share = read.told / max(read.trained, 1)
    why = (
        "has another tokenizer, which cuts the replies otherwise"
        if not words.are_equal
        else "has a template that writes the replies otherwise"
    )
    if not read.told:
        raise RecipeError(
            f"the teacher, {plan.name}, {why}, and tells of no token. Learn from the replies that it writes: "
            "`luthier data replies RECIPE --model teacher`, then objective.type = 'sft' on these"
        )
    if lesson.wants_every_token:
        raise RecipeError(
            f"the teacher, {plan.name}, {why}: it tells of {share:.1%} of the trained tokens. Set "
            "objective.cross_entropy above 0 (0.5, say), so that the others are learned from the rows; or learn from "
            "the replies that it writes: `luthier data replies RECIPE --model teacher`"
        )
    progress.say(f"  the teacher {why}: it tells of {share:.1%} of the trained tokens, the rows of all")


class Asking:
    """Asks a teacher of rows, part by part."""

    def __init__(self, voice: Voice, words: Words, lesson: Lesson, pairs: Sequence[Unit]) -> None:
        self._device, self._scorer = voice.loaded.device, voice.scorer.at(lesson.temperature)
        self._words, self._lesson = words, lesson
        self._pairs = pairs

    def __call__(self, first: int, end: int) -> Told:
        """What it says of the trained tokens of these rows of the student; nothing where it is not asked."""
        pairs = self._pairs[first:end]
        parts = []
        for rows in micro_batches([(theirs,) for _, theirs in pairs], READ_AT_ONCE):
            batch = build_batch(rows).to(self._device)
            if len(batch.row_K):
                parts.append(say(self._scorer, batch, self._lesson, self._words))
        is_told_K = torch.tensor([bool(n) for mine, _ in pairs for n in _told(mine)])
        most = min(self._lesson.top_k, int((self._words.map_V != NOTHING).sum()))
        # where nothing is told, all of the mass is that of the unnamed
        ids_KB = torch.full((len(is_told_K), most), NOTHING)
        logprobs_KB = torch.full((len(is_told_K), most + 1), -torch.inf, dtype=_wide(parts))
        logprobs_KB[:, most] = 0.0
        if parts:
            ids_KB[is_told_K] = torch.cat([part.ids_KB for part in parts]).cpu()
            logprobs_KB[is_told_K] = torch.cat([part.logprobs_KB for part in parts]).cpu()
        return Told(ids_KB, logprobs_KB)


def _wide(parts: Sequence[Told]) -> torch.dtype:
    return parts[0].logprobs_KB.dtype if parts else torch.float32


def _told(mine: Row) -> list[float]:
    """TOLD of each trained token."""
    numbers = zip(mine.token_values[TOLD][1:], mine.loss_mask[1:], strict=True)
    return [number for number, weight in numbers if weight]
