"""Preference pairs of replies that a model writes: several to each prompt, of which graders or a judge name the better.

Training rows alone are asked, so that nothing of a held-out row comes into the pairs. Replies are kept batch by batch
(`sampling.py`), and so is what a judge says; the same command goes on where it was and ends with the same pairs.

    judged/batch-000001.json       what the judge said of some pairs, in both orders
    preferences.jsonl              the pairs
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.write import write_examples
from luthier.data_stage import prepare_data
from luthier.evaluation.style.pairs import Judged, questions as questions_of, read_replies
from luthier.examples import Preference
from luthier.preferences.cast import WAYS as WAYS, Choices as Choices, Judge, cast_of, require_fit as require_fit
from luthier.preferences.choice import (
    NO_ROOM,
    REASONS,
    Duel,
    Fate as Fate,
    duels_of,
    graded_fate,
    judged_fate,
)
from luthier.preferences.sampling import chunks, groups, questions, require_same
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder

PAIRS = "preferences.jsonl"
JUDGED_AT_ONCE = 128
"""Pairs of a batch."""


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
    cast = cast_of(recipe, folder, choices.by, choices.writer, progress)
    require_same(recipe, folder, {"by": choices.by, "margin": choices.margin, **cast.decides})
    asked, full = questions(data.train, settings, cast)
    fates = [Fate(place, data.train[place].id, NO_ROOM, {}) for place in full]
    duels: list[Duel] = []
    for question, group in groups(asked, recipe, settings, cast, folder, progress):
        if cast.judge is None:
            may_lose = not settings.mask_truncated
            fates.append(graded_fate(question, group, cast.writer.name, choices.margin, may_lose))
        else:
            duels += duels_of(question, group)
    if cast.judge is not None:
        with progress.stage("judged", f"{cast.judge.name} judges two replies at a time, in both orders"):
            fates += _judged(duels, cast.judge, cast.writer.name, folder, progress)
    unseen = {"validation": len(data.validation), "test": len(data.test)}
    outcome = Outcome(folder / PAIRS, len(data.train), unseen, sorted(fates, key=lambda fate: fate.place))
    if outcome.pairs:
        write_examples(outcome.path, outcome.pairs)
    return outcome


# the judge


def _judged(duels: Sequence[Duel], judge: Judge, writer: str, folder: RunFolder, progress: Progress) -> Iterator[Fate]:
    """The fates of each two replies, in their order."""
    asked = [duel for duel in duels if duel.reason is None]
    said: list[Judged] = []
    for number, batch in enumerate(chunks(asked, JUDGED_AT_ONCE), start=1):
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
        said = read_replies(judge.ask([one for duel in batch for one in questions_of(duel.shown, judge.criterion)]))
        kept = [list(judged.orders) for judged in said]
        (folder / name).parent.mkdir(exist_ok=True)
        folder.write(name, kept)
    return [Judged((first, second)) for first, second in kept]
