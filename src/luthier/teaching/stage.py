"""What the stages of a run ask of its teacher: replies to its rows, if it shall write them, and what it says there."""

from collections.abc import Mapping, Sequence

from luthier import assemble
from luthier.data.source import Unit
from luthier.errors import RecipeError
from luthier.examples import Example
from luthier.models.load import LoadedModel
from luthier.objectives.base import OnlineObjective, Scorer, Teacher
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.teaching.kept import kept
from luthier.teaching.live import live
from luthier.teaching.plan import Planned, Voice, planned
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
        return replied(plan, recipe, loaded, named, folder.path, progress)


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
    with folder.timed("teacher"):
        if isinstance(assemble.objective_of(recipe), OnlineObjective):
            return live(plan, recipe, student, named, progress)
        return kept(plan, recipe, student, named, units, folder.path, progress)


def student_of(recipe: Recipe, loaded: LoadedModel, before: Scorer) -> Voice:
    """The model that learns, as a teacher sees it; `before`: as it is before training."""
    return Voice(loaded, assemble.template_for(recipe, loaded), before)


def require_rows_known(plan: Planned, is_known: bool) -> None:
    """Raise a RecipeError where a training was opened without the rows that the teacher wrote."""
    if plan.settings.replies == "teacher" and not is_known:
        raise RecipeError(
            "teacher.replies = 'teacher' is of a whole run; where many settings are tried, let the teacher write first "
            "(`luthier data replies RECIPE --model teacher`) and name these rows in data.train"
        )
