"""A run's second training: the same rows with retrieved passages in their prompts, for the system fine_tuned_rag.

What the retriever finds for a row's question stands in the row's prompt in training as it will when the model is asked,
wrong passages and all: so the model learns to read, and to pass over what does not answer. Where the right passage is
known and was not found, it takes the place of the last one in a training row, since an answer that stands nowhere
teaches to invent (RAFT, Zhang et al. 2024, arXiv:2403.10131, puts the right one into most rows); validation rows are
read as they will be asked. The second training has a folder of its
own in the run's folder, with everything that a training proves and keeps, and goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier import assemble
from luthier.adapters.base import Injected
from luthier.config import canonical_hash
from luthier.data.templates import Template
from luthier.data.write import write_examples
from luthier.errors import RecipeError
from luthier.evaluate import Question, measure_tuned, reopen, retriever_of
from luthier.evaluation.harness import Evaluation
from luthier.evaluation.retrieval import judged_rows
from luthier.examples import Conversation, Example
from luthier.models.load import LoadedModel
from luthier.progress import Progress, Within
from luthier.rag.passages import Hit, Passage
from luthier.rag.prompt import last_question, with_passages
from luthier.rag.retriever import Retriever
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.stages import Data, Opened, open_run, prepare_training, train_stage, training_line

FOLDER, KEY = "with_passages", "passages.json"
WHAT = "with passages"
"""How its stages are called."""
LONGER = 2.5
"""About how much longer a step takes; for the plan alone."""
ROOM_TOKENS = 2**17
"""Longest row of the second training: passages make rows longer than `training.max_tokens`, and the model's own context
is the bound."""


def is_wanted(recipe: Recipe) -> bool:
    """Whether a system of the recipe needs the second training."""
    return any(system.trained_on == "passages" for system in assemble.systems_of(recipe).values())


def planned(plan: Mapping[str, float]) -> dict[str, float]:
    """A rough plan of its seconds, from that of the first training."""
    return {f"{WHAT}: {name}": plan[name] * factor for name, factor in (("model", 1.0), ("train", LONGER))}


@dataclass(frozen=True)
class Second:
    """The second training of a run, done."""

    opened: Opened
    injected: Injected


def train_with_passages(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> Second:
    """Put passages into the rows and train on them, from where an earlier process stopped.

    Args:
        recipe: the run's, with passages.
        folder: the run's; the training lies in `with_passages` in it.
        data: the rows without passages.
        progress: told what comes out.

    Raises:
        RecipeError: it was done with other passages, or the recipe has none.
        LuthierError: as of a training.
    """
    inner, within = RunFolder(folder / FOLDER, listed=False), Within(progress, WHAT)
    longer = _longer(recipe)
    with folder.timed("training with passages"):
        inner.open(longer, folder / "recipe.toml")

        def prepare(rows: Data, loaded: LoadedModel, template: Template) -> Data:
            retriever = retriever_of(recipe, loaded.device, within)
            _require_same(inner, retriever)
            reader = Reader(retriever, template, loaded.max_tokens)
            read = {name: reader.read(examples, helped=name == "train") for name, examples in rows.named().items()}
            for name, examples in read.items():  # for people: what was trained on can be looked at
                write_examples(inner / f"data/{name}.jsonl", examples)
            return replace(rows, **read)

        opened = open_run(longer, inner, data, within, prepare)
        run = train_stage(prepare_training(opened, within), within)
    progress.say("  " + training_line(inner.read("training.json")))
    return Second(opened, run.injected)


def measure_with_passages(
    second: Second, question: Question, before: Evaluation, folder: RunFolder, progress: Progress
) -> Evaluation:
    """Let the systems of the second training answer the run's test rows, beside what was measured `before`."""
    return measure_tuned(second.opened, question, second.injected, progress, before, folder)


def reopen_with_passages(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> Second | None:
    """The second training as it lies in the run's folder, for evaluation alone; None if there is none.

    Raises:
        ModelError: it was trained from another base than the recipe's.
    """
    inner = RunFolder(folder / FOLDER, listed=False)
    if not (inner / "adapter").is_dir():
        return None
    opened = reopen(inner, _longer(recipe), data, Within(progress, WHAT))
    assemble.require_same_base(assemble.artifact_record(inner / "adapter"), opened.loaded)
    return Second(opened, assemble.adapter_of(recipe).restore(opened.loaded.model, inner / "adapter"))


def _longer(recipe: Recipe) -> Recipe:
    """The recipe with room for passages in its rows."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_tokens": ROOM_TOKENS})})


def _require_same(inner: RunFolder, retriever: Retriever) -> None:
    """Note what the rows are read with, or compare it.

    Raises:
        RecipeError: something was trained here with other passages.
    """
    key = canonical_hash([retriever.fingerprint, retriever.top_k])
    kept = inner.read(KEY)
    if kept is not None and kept["key"] != key and (inner / "checkpoints").is_dir():
        raise RecipeError(
            f"{inner.path} holds a training on other passages ([retrieval] or its corpus was changed since). Choose "
            "another folder with --out, or remove this one"
        )
    inner.write(KEY, {"key": key, "retriever": retriever.name, "top_k": retriever.top_k})


class Reader:
    """Puts passages into rows.

    Args:
        retriever: finds them.
        template: renders the rows, whole.
        longest: tokens of a row at most; what is too much is left out, the last passage first.
    """

    def __init__(self, retriever: Retriever, template: Template, longest: int) -> None:
        self._retriever, self._template, self._longest = retriever, template, longest

    def read(self, examples: Sequence[Example], helped: bool) -> list[Example]:
        """The same rows; those that ask something, with as many passages as the model's context holds.

        `helped`: where the right passage is known and was not found, it takes the place of the last one.
        """
        asked = [row for row in examples if isinstance(row, Conversation)]
        found = self._retriever.search([last_question(row.prompt) for row in asked], self._retriever.top_k)
        judged = {id(one.row): one for one in (judged_rows(asked, self._retriever.passages) if helped else ())}
        passages = {}
        for row, hits in zip(asked, found, strict=True):
            one = judged.get(id(row))
            right = self._right_of(one.gold) if one is not None and not any(one.relevance(hits)) else None
            passages[id(row)] = _with_right(hits, right, self._retriever.top_k)
        return [
            self._longest_that_fits(row, passages[id(row)]) if isinstance(row, Conversation) else row
            for row in examples
        ]

    def _right_of(self, gold: frozenset[str]) -> Passage | None:
        """The first passage that the row names as right."""
        return next((p for p in self._retriever.passages if p.source_id in gold or p.id in gold), None)

    def _longest_that_fits(self, row: Conversation, passages: Sequence[Passage]) -> Conversation:
        rest = row.messages[len(row.prompt) :]
        for count in range(len(passages), 0, -1):
            made = replace(row, messages=(*with_passages(row.prompt, passages[:count]), *rest))
            if max(len(one.ids) for one in self._template.rows(made)) <= self._longest:
                return made
        return row


def _with_right(hits: Sequence[Hit], right: Passage | None, top_k: int) -> list[Passage]:
    """What was found, or the right passage in the place of the last one."""
    found = [hit.passage for hit in hits]
    return found if right is None else [*found[: top_k - 1], right]
