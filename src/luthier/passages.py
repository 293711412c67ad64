"""A run's second training: the same rows with retrieved passages in their prompts, for the system fine_tuned_rag.

What the retriever finds for a row's question stands in the row's prompt in training as it will when the model is asked,
wrong passages and all: so the model learns to read, and to pass over what does not answer. Where the right passage is
known and was not found, it takes the place of the last one in a training row, since an answer that stands nowhere
teaches to invent (RAFT, Zhang et al. 2024, arXiv:2403.10131, puts the right one into most rows); and it is the last
that is left out where room is short. Of a source that was cut, the right passage is the one that holds the answer.
Validation rows are read as they will be asked. The second training has a folder of its own in the run's folder, with
everything that a training proves and keeps, and goes on where it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from luthier import assemble
from luthier.adapters.base import Injected
from luthier.config import canonical_hash
from luthier.data.templates import Template
from luthier.data.write import write_examples
from luthier.data_stage import Data
from luthier.errors import RecipeError
from luthier.evaluate import Question, measure_tuned, reopen, retriever_of
from luthier.evaluation.harness import Evaluation
from luthier.evaluation.retrieval import Judged, judged_rows, require_gold
from luthier.examples import Conversation, Example
from luthier.models.load import LoadedModel
from luthier.progress import Progress, Within
from luthier.rag.passages import Passage
from luthier.rag.prompt import last_question, with_passages
from luthier.rag.retriever import Retriever, read_passages
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.stages import Opened, open_run, prepare_training, train_stage, training_line

FOLDER, KEY = "with_passages", "passages.json"
WHAT = "with passages"
"""How its stages are called."""
LONGER = 2.5
"""About how much longer a step takes; for the plan alone."""
ROOM_TOKENS = 2**17
"""Longest row of the second training: passages make rows longer than `training.max_tokens`, and the model's own context
is the bound."""
LOOKED_AT = 100
"""Places of a search in which the best passage of a right source is looked for, if none of them holds the answer."""


def is_wanted(recipe: Recipe) -> bool:
    """Whether a system of the recipe needs the second training."""
    return any(system.trained_on == "passages" for system in assemble.systems_of(recipe).values())


def require_readable(recipe: Recipe, data: Data) -> None:
    """Check before the first training that the second one, if it is wanted, will find what its rows name.

    Raises:
        LuthierError: as `read_passages` and `require_gold`.
    """
    if recipe.retrieval is not None and is_wanted(recipe):
        require_gold(data.train, read_passages(recipe.retrieval))


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
        RecipeError: it was done with other passages, the recipe has none, or no training row asks anything.
        EvaluationError: a training row names passages that the corpus does not hold.
        LuthierError: as of a training.
    """
    inner, within = RunFolder(folder / FOLDER, listed=False), Within(progress, WHAT)
    longer = _longer(recipe)
    with folder.timed("training with passages"):
        inner.open(longer, folder / "recipe.toml")
        replay = folder.read("data/split.json").get("replay", {})  # beside which the training notes what it replays
        inner.write("data/split.json", {"train": len(data.train), "replay": replay})

        def prepare(rows: Data, loaded: LoadedModel, template: Template) -> Data:
            retriever = retriever_of(recipe, loaded.device, within)
            require_gold(rows.train, retriever.passages)
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
    return Second(opened, assemble.restore(opened.recipe, opened.loaded.model, inner / "adapter"))


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
        longest: tokens of a row at most; what is too much is left out, the last passage first, the right one last.
    """

    def __init__(self, retriever: Retriever, template: Template, longest: int) -> None:
        self._retriever, self._template, self._longest = retriever, template, longest

    def read(self, examples: Sequence[Example], helped: bool) -> list[Example]:
        """The same rows; those that ask something, with as many passages as the model's context holds.

        `helped`: where the right passage is known and was not found, it takes the place of the last one.

        Raises:
            EvaluationError: a row that shall be helped names passages that the corpus does not hold.
        """
        asked = [row for row in examples if isinstance(row, Conversation)]
        found = self._search(asked, self._retriever.top_k)
        judged = {id(one.row): one for one in (judged_rows(asked, self._retriever.passages) if helped else ())}
        right = self._right_of([one for one in judged.values() if one.gold])
        passages = {id(row): _with_right(hits, right.get(id(row), ()), self._retriever.top_k) for row, hits in found}
        return [
            self._longest_that_fits(row, *passages[id(row)]) if isinstance(row, Conversation) else row
            for row in examples
        ]

    def _search(self, rows: Sequence[Conversation], count: int) -> list[tuple[Conversation, list[Passage]]]:
        found = self._retriever.search([last_question(row.prompt) for row in rows], count)
        return [(row, [hit.passage for hit in hits]) for row, hits in zip(rows, found, strict=True)]

    def _right_of(self, judged: Sequence[Judged]) -> dict[int, list[Passage]]:
        """By row the passages any of which is right: of those that it names, the ones that hold an answer word for
        word; where none does, the one that the search ranks highest, or the first if it finds none of them."""
        named: dict[str, list[Passage]] = {}
        for passage in self._retriever.passages:
            for name in {passage.id, passage.source_id}:
                named.setdefault(name, []).append(passage)
        right, unsure = {}, []
        for one in judged:
            candidates = [passage for name in sorted(one.gold) for passage in named[name]]
            right[id(one.row)] = [passage for passage in candidates if one.holds_answer(passage)] or candidates[:1]
            if len(candidates) > 1 and not one.holds_answer(right[id(one.row)][0]):
                unsure.append(one)
        ranked = self._search([one.row for one in unsure], LOOKED_AT)
        for one, (row, passages) in zip(unsure, ranked, strict=True):
            right[id(row)] = next(([p] for p in passages if one.is_of_gold(p)), right[id(row)])
        return right

    def _longest_that_fits(
        self, row: Conversation, passages: Sequence[Passage], right: Passage | None = None
    ) -> Conversation:
        rest = row.messages[len(row.prompt) :]
        for fewer in _ever_fewer(passages, right):
            made = replace(row, messages=(*with_passages(row.prompt, fewer), *rest))
            if max(len(one.ids) for one in self._template.rows(made)) <= self._longest:
                return made
        return row


def _with_right(
    found: Sequence[Passage], right: Sequence[Passage], top_k: int
) -> tuple[Sequence[Passage], Passage | None]:
    """What was found, or a right passage in the place of the last one; and which is right, if any is."""
    if not right:
        return found, None
    there = next((passage for passage in found if passage in right), None)
    return (found, there) if there is not None else ([*found[: top_k - 1], right[0]], right[0])


def _ever_fewer(passages: Sequence[Passage], right: Passage | None) -> Iterator[Sequence[Passage]]:
    """All of them, then without the last, and so on; the right one goes when it is alone."""
    while passages:
        yield passages
        last = -2 if len(passages) > 1 and passages[-1] is right else -1
        passages = [passage for passage in passages if passage is not passages[last]]
