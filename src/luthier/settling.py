"""What an objective takes from training rows before a run, and what is found of a head's numbers after it."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from luthier.assemble import objective_of
from luthier.data_stage import Data
from luthier.engine.heads import read_units
from luthier.engine.run import Run
from luthier.evaluation.classes import is_classifier
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.said import reading_of
from luthier.examples import Example
from luthier.objectives._labeled import Labeled, listed
from luthier.progress import Progress
from luthier.recipe import Recipe


def settled(recipe: Recipe, train: Sequence[Example]) -> Recipe:
    """The recipe with what its objective takes from training rows; what it was settled with before stays.

    Raises:
        DataError: a row does not fit the objective.
    """
    objective = objective_of(recipe)
    found = objective.settled(train)
    return recipe if found is objective else recipe.model_copy(update={"objective": found})


def settle(recipe: Recipe, data: Data, progress: Progress) -> Recipe:
    """The recipe with what its objective takes from the training rows, and a word on held-out rows that it cannot be
    right about.

    Raises:
        DataError: a row does not fit the objective.
    """
    recipe = settled(recipe, data.train)
    objective = objective_of(recipe)
    if isinstance(objective, Labeled):
        for name, rows in (("validation", data.validation), ("test", data.test)):
            found = objective.unknown(rows)
            if found:
                progress.say(
                    f"  ! {sum(found.values()):,} {name} rows have labels that no training row has, and count as "
                    f"wrong: {listed(list(found))}"
                )
    return recipe


def calibrate_head(run: Run) -> None:
    """Where a head says something of texts: find what makes its numbers probabilities, on all validation rows."""
    head = run.injected.head
    if not is_classifier(head):
        return
    read, wanted = [], defaultdict[str, list[Array]](list)
    for batch, values in read_units(run, run.validation):
        of_words = bool(batch.values_K)
        read.append((values.tokens_KO if of_words else values.rows_RO).double().cpu().numpy())
        for name, numbers in (batch.values_K if of_words else batch.values_R).items():
            wanted[name].append(numbers.double().cpu().numpy())
    values_NO = np.concatenate(read) if read else np.zeros((0, 1))
    if len(values_NO):
        names = {name: np.concatenate(parts) for name, parts in wanted.items()}
        head.found = reading_of(head).calibrate(values_NO, names)
