"""A teacher that stays in memory, and one that is none, where only memory and time are counted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from luthier.data.asked import asked
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Example, Row
from luthier.models.forest import Batch, build_batch
from luthier.models.load import LoadedModel
from luthier.models.memory import held_bytes
from luthier.objectives.base import Lesson, Scorer, Teacher, Told
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.teaching.plan import Planned, Voice, open_voice
from luthier.teaching.words import Words, say, width_of


class LiveTeacher:
    """A teacher that is asked in every step, of replies that nobody knew before."""

    def __init__(
        self, scorer: Scorer, lesson: Lesson, words: Words, prompts: Mapping[str, tuple[int, ...]], held: int
    ) -> None:
        """
        Args:
            scorer: of the teacher.
            lesson: what is asked of it.
            words: what its tokens are to the student.
            prompts: what it reads before the reply, by the id of the example.
            held: bytes that it takes beside the student.
        """
        self._scorer, self._lesson, self._words, self._prompts = scorer, lesson, words, prompts
        self._held = held

    def told(self, batch: Batch) -> Told:
        """What it says of the same replies behind its own prompts."""
        rows = [self._read(row) for row in batch.rows]
        return say(self._scorer, build_batch(rows).to(batch.row_K.device), self._lesson, self._words)

    def _read(self, row: Row) -> Row:
        # a reply has its number behind a slash; a turn that is a row of its own, behind a hash
        names = row.id, row.id.rpartition("/")[0], row.id.rpartition("#")[0]
        before = self._prompts[next((name for name in names if name in self._prompts), row.id)]
        first = next((i for i, weight in enumerate(row.loss_mask) if weight and i), len(row.ids))
        mask = (*(0.0,) * len(before), *row.loss_mask[first:])
        return Row((*before, *row.ids[first:]), mask, row.id)

    def at(self, temperature: float) -> "LiveTeacher":
        """The same with its logits divided, too."""
        return LiveTeacher(self._scorer.at(temperature), self._lesson, self._words, self._prompts, self._held)

    def held_bytes(self) -> int:
        """Of its weights, where they are others than the student's."""
        return self._held


def live(
    plan: Planned,
    lesson: Lesson,
    recipe: Recipe,
    student: Voice,
    named: Mapping[str, Sequence[Example]],
    progress: Progress,
) -> LiveTeacher:
    """The teacher of a training that samples its replies; arguments as of `kept`.

    Raises:
        RecipeError: its tokenizer is another one than the student's.
        DataError: two rows have one id, or a row leaves no room for a reply behind what the teacher reads.
        ModelError: it cannot be opened.
    """
    voice = student if plan.is_own else open_voice(plan, recipe, student.loaded.device, progress)
    words = Words(student, voice)
    if not words.are_equal:
        raise RecipeError(
            f"the teacher, {plan.name}, has another tokenizer than {recipe.model.name}: replies that are sampled here "
            "are no tokens of its. Learn from given replies (objective.type = 'distill' with objective.cross_entropy = "
            "0.5), or from those that it writes (`luthier data replies RECIPE --model teacher`)"
        )
    reply = 0 if recipe.rollout is None else recipe.rollout.max_new_tokens
    prompts = _prompts(plan, voice, chain.from_iterable(named.values()), reply)
    held = 0 if plan.is_own else held_bytes(voice.loaded.model)
    return LiveTeacher(voice.scorer, lesson, words, prompts, held)


def _prompts(plan: Planned, voice: Voice, rows: Iterable[Example], reply: int) -> dict[str, tuple[int, ...]]:
    """What the teacher reads before a reply of so many tokens, by the id of the row."""
    found: dict[str, tuple[int, ...]] = {}
    for row in rows:
        if not isinstance(row, Conversation):
            continue
        ids = tuple(voice.template.prompt_ids(plan.before(asked(row)), row.tools))
        at, longest = row.where, voice.loaded.max_tokens
        if len(ids) + reply > longest:
            raise DataError(
                f"its prompt has {len(ids)} tokens for the teacher, and with rollout.max_new_tokens = {reply} more a "
                f"row would have more than its context, {longest}: shorten the prompt, or lower that",
                at.path,
                at.line,
                at.row,
            )
        if found.setdefault(row.id, ids) != ids:
            raise DataError(
                f"another row has the id {row.id!r}, too, by which a teacher finds what it reads; give each its own",
                at.path,
                at.line,
                at.row,
            )
    return found


def made_up(lesson: Lesson, student: LoadedModel) -> Teacher:
    """In place of a kept teacher where only time and memory are counted: it finds all that it names equally likely."""
    return _Nobody(min(lesson.top_k, width_of(student)))


@dataclass(frozen=True)
class _Nobody:
    named: int

    def told(self, batch: Batch) -> Told:
        shape, device = (len(batch.row_K), self.named), batch.row_K.device
        ids_KB = torch.arange(self.named, device=device).expand(shape)
        uniform = torch.full((shape[0], self.named + 1), -math.log(self.named + 1), device=device)
        return Told(ids_KB, uniform)

    def at(self, temperature: float) -> "_Nobody":
        return self

    def held_bytes(self) -> int:
        return 0
