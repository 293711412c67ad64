"""Whether an objective and the teacher of a recipe go together, and whether a model teaches itself while it learns."""

from luthier import registry
from luthier.errors import RecipeError
from luthier.objectives.base import Objective, OnlineObjective
from luthier.recipe import Recipe


def require_teacher(recipe: Recipe, objective: Objective) -> None:
    """Check that whoever asks a teacher has one, and that none is named whom nobody asks.

    Raises:
        RecipeError: it is not so.
    """
    name = registry.name_of(objective)
    if objective.lesson() is not None and recipe.teacher is None:
        raise RecipeError(
            f"objective.type = {name!r} learns from a teacher: write a table [teacher] with model = '...', run = "
            "'runs/...', or a prompt that the model shall do without"
        )
    if objective.lesson() is None and recipe.teacher is not None:
        raise RecipeError(
            f"[teacher] changes nothing with objective.type = {name!r}, which asks none; remove it, or choose an "
            "objective such as 'distill'"
        )


def teaches_itself(recipe: Recipe, objective: Objective) -> bool:
    """Whether the model as it was before training is asked while it trains."""
    return recipe.teacher is not None and recipe.teacher.is_own and isinstance(objective, OnlineObjective)
