"""How a candidate is measured: the primary metric on the validation rows, and general ability on the selection half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from luthier import __version__, registry
from luthier.assemble import restore
from luthier.config import canonical_hash
from luthier.data.split import group_keys
from luthier.data.write import example_values
from luthier.data_stage import Data
from luthier.errors import EvaluationError
from luthier.evaluate import Question, context_of, reopen
from luthier.evaluation.forgetting import (
    Ability,
    Items,
    Loss,
    compare_ability,
    half_of,
    load_items,
    measure_ability,
    worst_loss,
)
from luthier.evaluation.harness import Options, measure
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.significance import Comparison, Groups, Interval, compare, metric_interval, number_groups
from luthier.evaluation.systems.base import System
from luthier.evaluation.task import SCORED_TASKS
from luthier.examples import Example
from luthier.files import sha256_of
from luthier.progress import Progress
from luthier.recipe import SYSTEMS, Recipe
from luthier.run_folder import RunFolder
from luthier.stages import Opened

MEASURED = "measured.json"


@dataclass(frozen=True)
class Measured:
    """One model on the validation rows and on the general items."""

    statistics_NS: Array
    """Of the primary metric, row by row."""
    ability: Ability


@dataclass(frozen=True)
class Judge:
    """What all candidates of a run are measured by."""

    question: Question
    data: Data
    recipe: Recipe

    @cached_property
    def rows(self) -> Sequence[Example]:
        """The validation rows that are answered.

        Raises:
            EvaluationError: there are fewer than two.
        """
        scored = self.question.task in SCORED_TASKS
        rows = (self.data.validation if scored else self.question.validation)[: self.recipe.evaluation.max_rows]
        if len(rows) < 2:
            raise EvaluationError(
                f"{len(rows)} validation rows are too few to choose a remedy by; raise data.validation_share"
            )
        return rows

    @property
    def metric(self) -> Metric:
        """The one that decides."""
        return self.question.metrics[self.question.primary]

    def kept(self, folder: RunFolder, adapter: Path | None) -> Measured | None:
        """What was measured of these very weights before."""
        found = folder.read(MEASURED)
        if found is None or found["key"] != self.key(adapter):
            return None
        ability = {name: np.array(values) for name, values in found["ability"].items()}
        return Measured(np.array(found["statistics"]), Ability(ability))

    def measure(self, folder: RunFolder, adapter: Path | None, progress: Progress) -> Measured:
        """Answer and score with the artifact at `adapter`, or with the base; kept in `folder`."""
        if (found := self.kept(folder, adapter)) is not None:
            return found
        opened = reopen(folder, self.recipe, self.data, progress)
        if adapter is not None:
            restore(opened.recipe, opened.loaded.model, adapter)
        opened.loaded.model.eval()

        with progress.stage(f"remember:{folder.path.name}", f"measuring {folder.path.name}"):
            measured = self._answered(opened, folder, self.key(adapter), progress)
        values = {name: array.tolist() for name, array in measured.ability.statistics.items()}
        statistics = measured.statistics_NS.tolist()
        folder.write(MEASURED, {"key": self.key(adapter), "statistics": statistics, "ability": values})
        return measured

    def _answered(self, opened: Opened, folder: RunFolder, key: str, progress: Progress) -> Measured:
        """What the model answers to the rows, and to the selection half of the general items."""

        def told(what: str, done: int, total: int) -> None:
            progress.update(done, total, what)

        context = replace(context_of(opened, self.question, folder), tuned_fingerprint=key, on_progress=told)
        options = Options(folder.path, self.question.primary, self.recipe.evaluation.confidence, self.recipe.seed)
        metrics = {self.question.primary: self.metric}
        _, answered = next(measure({"validation": asked_as_trained()}, self.rows, context, metrics, options))
        items = half_of(load_items(self.recipe.evaluation.forgetting, opened.loaded), "selection")
        ability = measure_ability(opened.loaded, items, on_progress=told)
        return Measured(answered.statistics[self.question.primary], ability)

    def value(self, measured: Measured) -> Interval:
        """The primary metric with its interval."""
        settings = self.recipe.evaluation
        return metric_interval(self.metric, measured.statistics_NS, settings.confidence, self.recipe.seed, self._groups)

    def gain(self, measured: Measured, base: Measured) -> Comparison:
        """How much better the metric is than the base's, paired; positive is better whatever the metric's direction."""
        pair = (measured, base) if self.metric.higher_is_better else (base, measured)
        first, second = (one.statistics_NS for one in pair)
        settings = self.recipe.evaluation
        return compare(self.metric, first, second, settings.confidence, self.recipe.seed, self._groups)

    def loss(self, measured: Measured, base: Measured) -> Loss:
        """The measure of general ability that lost the largest share.

        Raises:
            EvaluationError: none has a value before and after.
        """
        found = worst_loss(self.measures(measured, base))
        if found is None:
            raise EvaluationError(
                "no measure of general ability has a value before and after; name other items in evaluation.forgetting"
            )
        return found

    def measures(self, measured: Measured, base: Measured) -> Sequence[Mapping[str, object]]:
        """All measures of general ability, base and candidate."""
        compared = compare_ability(base.ability, measured.ability, Items((), (), {}), self.recipe.evaluation.confidence)
        found: Sequence[Mapping[str, object]] = compared["measures"]
        return found

    @cached_property
    def _groups(self) -> Groups:
        return number_groups(group_keys(self.rows))

    def key(self, adapter: Path | None) -> str:
        """Changes when the weights, the rows, the metric with its settings and the schema, or the items do."""
        settings = self.recipe.evaluation.forgetting
        named = (Path(name) for name in (settings.multiple_choice, settings.text))
        metric = [self.question.primary, self.metric.model_dump(), self.question.schema]
        return canonical_hash(
            [
                __version__,
                self.recipe.model.model_dump(),
                [example_values(row) for row in self.rows],
                [*metric, self.question.max_new_tokens, self.question.stop_loops, self.question.task],
                [settings.model_dump(), [sha256_of(path) for path in named if path.is_file()]],
                None if adapter is None else weights_digest(adapter),
            ]
        )


def asked_as_trained() -> System:
    """The system that asks with the row's own prompt, of a candidate and of the base alike."""
    return registry.load_class(SYSTEMS, "fine_tuned", System)()  # type: ignore[type-abstract]


def weights_digest(adapter: Path) -> str:
    """Changes when the weights of an artifact do."""
    return canonical_hash([sha256_of(path) for path in sorted(adapter.glob("*.safetensors"))])
