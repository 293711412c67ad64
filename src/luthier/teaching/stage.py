"""What the stages of a run ask of its teacher: replies to its rows, if it shall write them, and what it says there."""

from collections.abc import Mapping, Sequence

from luthier import assemble
from luthier.data.source import Unit
from luthier.errors import RecipeError
from luthier.examples import Example
from luthier.models.load import LoadedModel
from luthier.objectives.base import OnlineObjective, Teacher
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.teaching.kept import kept
from luthier.teaching.live import live
from luthier.teaching.plan import Planned, Voice, free, planned
from luthier.teaching.replies import replied


def replies_of_teacher(
    recipe: Recipe, folder: RunFolder, loaded: LoadedModel, named: Mapping[str, Sequence[Example]], progress: Progress
) -> Mapping[str, Sequence[Example]]:
    """The rows by split, with the replies of the teacher where the recipe lets it write them.

    Raises:
        LuthierError: as `planned` and `replied`.
    """
    plan = planned(recipe, loaded)
    if plan is None or plan.settings.replies == "rows":
        return named
    with folder.timed("teacher"):
        found = replied(plan, recipe, loaded, named, folder.path, progress)
    free(loaded.device)
    return found


def teacher_of(
    plan: Planned,
    recipe: Recipe,
    folder: RunFolder,
    student: Voice,
    named: Mapping[str, Sequence[Example]],
    units: Mapping[str, Sequence[Unit]],
    progress: Progress,
) -> Teacher:
    """What the recipe's objective asks of: words that are kept, or a model that stays.

    Args:
        plan: the teacher.
        recipe: of the run.
        folder: of the run.
        student: the model that learns; its scorer is that of the model before training.
        named: examples by split, as they are learned from.
        units: their rows.
        progress: told how far it is.

    Raises:
        LuthierError: as `kept` and `live`.
    """
    objective = assemble.objective_of(recipe)
    lesson = objective.lesson()
    if lesson is None:
        raise ValueError("this objective asks no teacher")
    with folder.timed("teacher"):
        if isinstance(objective, OnlineObjective):
            return live(plan, lesson, recipe, student, named, progress)
        rows = {name: (named[name], units[name]) for name in named}
        found = kept(plan, lesson, recipe, student, rows, folder.path, progress)
    free(student.loaded.device)
    return found


def require_replies(plan: Planned, are_known: bool) -> None:
    """Raise a RecipeError where a training was opened without the rows that the teacher wrote."""
    if plan.settings.replies == "teacher" and not are_known:
        raise RecipeError(
            "teacher.replies = 'teacher' is of a whole run; where many settings are tried, let the teacher write first "
            "(`luthier data replies RECIPE --model teacher`) and name these rows in data.train"
        )
