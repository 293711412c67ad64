"""An embedder or a reranker is trained on the questions of a recipe, with the engine that trains everything else.

The passages are those of `[retrieval]`, and so is the search that wrong ones are taken from. Rows are divided so that
no passage of a training row answers a held-out one. Before the first step it is shown that what trains computes what
answers, and after the third that what should train moved; the best step is the one that finds the right passages of
the validation questions best.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier import assemble, registry
from luthier.adapters.base import Injected
from luthier.config import build
from luthier.data.asked import conversations
from luthier.data.carried_passages import RIGHT_TEXTS, WRONG_TEXTS
from luthier.data.source import Unit, micro_batches
from luthier.data.write import atomic_text
from luthier.data_stage import Data
from luthier.engine.loop import Step, observe
from luthier.engine.run import Run
from luthier.errors import DataError, RecipeError
from luthier.evaluate import retriever_of
from luthier.evaluation.passage_groups import id_of, texts_of
from luthier.models.forest import build_batch
from luthier.models.load import LoadedModel, choose_device
from luthier.models.scorer import in_mode
from luthier.objectives._retriever import RetrieverObjective, Sought
from luthier.objectives.base import Models
from luthier.preflight.base import GateResult, Subject, require
from luthier.preflight.tensors_moved import TensorsMoved, checksums
from luthier.progress import Progress
from luthier.rag.passages import Passage
from luthier.recipe import Recipe, RetrievalSettings
from luthier.retrievers.questions import find, pool_of
from luthier.retrievers.tuned import TUNED, Tuned, write_artifact
from luthier.run_folder import RunFolder, differing
from luthier.stages import PROVEN_AT, Prepared, newest, train_stage

PREFLIGHT, CORPUS = "preflight.json", "data/corpus.jsonl"
NO_EFFECT = {
    "model.template": "texts are read as they stand",
    "model.quantize": "an encoder is small, and is trained and searched with in float32",
    "model.precision": "an encoder is trained and searched with in float32",
    "data.instruction": "a question is searched as it stands",
    "data.loss_on": "vectors and scores are trained, not tokens",
    "data.replay": "it is for models that write",
    "data.replay_share": "it is for models that write",
    "data.max_truncated_share": "how many texts are longer than the encoder reads is told",
    "training.gradient_checkpointing": "lower training.micro_batch_tokens, which never changes the result",
    "adapter.start_from": "go on from a trained one with model.name = 'RUN/adapter'",
    "adapter.dropout": "vectors of a step are computed twice and must be the same",
    "adapter.new_tokens": "an encoder has its own",
    "evaluation": "retrieval is measured (recall, MRR, nDCG), whatever else is named",
    "cost": "there is no report of costs for a retriever",
    "decision": "there is no verdict for a retriever",
}
"""Settings that are refused where they are not the default, and why."""
READ = ("evaluation.confidence", "evaluation.max_rows")
"""Those of `NO_EFFECT` that are read after all."""
PROVED = 32
"""Questions that are looked at with their passages before the first step."""
SAME = 1e-4
"""Largest difference of numbers of about 1 in float32 that were padded otherwise."""


def is_wanted(recipe: Recipe) -> bool:
    """Whether the recipe trains a retriever."""
    return isinstance(recipe.objective, RetrieverObjective)


@dataclass(frozen=True)
class Opened:
    """A run of a retriever with its base in memory."""

    recipe: Recipe
    folder: RunFolder
    tuned: Tuned
    loaded: LoadedModel
    objective: RetrieverObjective
    sought: tuple[Sought, ...]
    """Questions that are trained on."""
    passages: Sequence[Passage]
    units: Mapping[str, list[Unit]]
    subject: Subject | None = None
    """No gate of a model that writes looks at an encoder; `_Proof` does."""

    def save(self, folder: Path, run: Run) -> None:
        """As `write_artifact`."""
        write_artifact(self.tuned, run, self.recipe, self.objective.trains, folder)


def train(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> None:
    """Train the retriever of a recipe, from where an earlier process stopped.

    Raises:
        RecipeError: a setting means nothing here, or there are no passages.
        DataError: no row says which passage is right.
        LuthierError: as of a training.
    """
    require_sensible(recipe)
    recipe = with_corpus(recipe, folder, data)
    opened = _open(recipe, folder, data, progress)
    run, injected = _build(opened)
    proof = _Proof(opened, run, injected)
    found = newest(run, progress)
    if found is None:
        if observe(run):
            progress.say("  the adapter begins from what the model does with the first rows")
        with progress.stage("model", "pre-flight on the encoder"), folder.timed("preflight"):
            proof.before()
    trained = train_stage(Prepared(opened, run, found), progress, None if found else proof.after)
    if trained.state.best_step == 0:
        progress.say(
            "  ! no step found more on the validation questions than the beginning did, so that is what was kept: more "
            "questions, a lower optimizer.learning_rate, or none of this"
        )


def require_sensible(recipe: Recipe) -> None:
    """Check that every setting of the recipe means something for a retriever.

    Raises:
        RecipeError: one does not, or passages are missing.
    """
    name = registry.name_of(recipe.objective)
    passages = {} if recipe.retrieval is None else {"retrieval": {"corpus": recipe.retrieval.corpus}}
    plain = build(Recipe, {"data": {"train": recipe.data.train}, **passages})
    values, default = recipe.dump(), plain.dump()
    values["adapter"] = {"dropout": 0.0, "start_from": None, "new_tokens": [], **values["adapter"]}
    default["adapter"] = {**values["adapter"], "dropout": 0.0, "start_from": None, "new_tokens": []}
    values["model"]["precision"] = values["model"]["precision"].replace("float32", "auto")
    for changed in differing(values, default):
        for key, reason in NO_EFFECT.items():
            if f"{changed}.".startswith(f"{key}.") and not changed.startswith(READ):
                raise RecipeError(f"{changed} changes nothing with objective.type = {name!r}: {reason}; remove it")


def with_corpus(recipe: Recipe, folder: RunFolder, data: Data) -> Recipe:
    """The recipe with the passages that its rows bring as texts, where it names no others: kept in the run's folder,
    and searched for wrong ones by the embedder that trains, if one does.

    Raises:
        DataError: a row brings none, and the recipe names none.
        RecipeError: both do.
    """
    rows = [row for part in data.named().values() for row in conversations(part)]
    brought = [row for row in rows if texts_of(row, RIGHT_TEXTS)]
    if recipe.retrieval is not None:
        if brought:
            raise RecipeError(
                f"{brought[0].where}: the row brings its passages as texts, and the recipe has a corpus of others: "
                "remove the table [retrieval], or give rows gold_passage_ids"
            )
        return recipe
    if len(brought) < len(rows):
        at = next(row for row in rows if not texts_of(row, RIGHT_TEXTS)).where
        raise DataError(
            "the row says of no passage that it is right: give it a 'positive', or write a table [retrieval] with "
            'corpus = "corpus.jsonl" and give rows gold_passage_ids',
            *(at.path, at.line, at.row),
        )
    texts = dict.fromkeys(text for row in rows for kind in (RIGHT_TEXTS, WRONG_TEXTS) for text in texts_of(row, kind))
    with atomic_text(folder / CORPUS) as file:
        file.writelines(json.dumps({"id": id_of(text), "text": text}, ensure_ascii=False) + "\n" for text in texts)
    settings = RetrievalSettings(corpus=str(folder / CORPUS), chunk_words=None)
    if isinstance(recipe.objective, RetrieverObjective) and recipe.objective.trains == "embedder":
        settings = settings.model_copy(update={"embedder": recipe.model.name})
    return recipe.model_copy(update={"retrieval": settings})


def _open(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> Opened:
    """The base, the passages and the rows of every question.

    Raises:
        DataError: too few questions say which passage is right, or there are no others to compare them with.
    """
    objective = assemble.objective_of(recipe)
    assert isinstance(objective, RetrieverObjective)
    device = choose_device(recipe.model.device)
    with progress.stage("open", f"loading {recipe.model.name}"), folder.timed("open"):
        torch.manual_seed(recipe.seed)  # what a base lacks is drawn
        tuned = TUNED[objective.trains](recipe, device)
        loaded = tuned.loaded()
    folder.record(
        model={
            "name": recipe.model.name,
            "origin": tuned.files.origin,
            "license": tuned.files.license,
            "sha256": dict(tuned.files.sha256),
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
        },
        held={"precision": "float32", "device": str(device)},
    )
    retriever = retriever_of(recipe, device, progress)
    with progress.stage("rows", "searching wrong passages"), folder.timed("retrieval"):
        sought: dict[str, tuple[Sought, ...]] = {}
        for name in ("train", "validation"):
            found = find(conversations(data.named()[name]), retriever, objective.negatives)
            if len(found.sought) < objective.least_per_step:
                raise DataError(
                    f"{len(found.sought)} of {len(data.named()[name]):,} {name} rows say which passage is right; "
                    "expected gold_passage_ids in a row, or a short answer that a passage holds (docs/retrievers.md)",
                    recipe.data.train,
                )
            if found.unknown:
                progress.say(f"  {found.unknown:,} {name} rows are left out: no passage is known to answer them")
            sought[name] = found.sought
        texts = tuned.texts(retriever.passages)
        pool = pool_of(sought["validation"], len(retriever.passages), objective.validation_passages)
        units = {
            "train": objective.training(sought["train"], texts),
            "validation": objective.validating(sought["validation"], pool, texts),
        }
    for name, made in units.items():
        if not made:
            raise DataError(
                f"the search finds no passage to put beside the right one of any of the {len(sought[name]):,} {name} "
                "questions; expected a larger corpus, or rows with wrong_passage_ids (docs/retrievers.md)",
                recipe.data.train,
            )
    wrong = sum(len(one.wrong) for one in sought["train"])
    counts = {name: len(ones) for name, ones in sought.items()}
    read = sum(len(unit) for unit in units["validation"])
    folder.record(questions={**counts, "wrong_passages": wrong})
    progress.say(
        f"  {counts['train']:,} questions with {wrong:,} wrong passages; {counts['validation']:,} validation questions "
        f"for which {read:,} texts are read at each validation"
    )
    return Opened(recipe, folder, tuned, loaded, objective, sought["train"], retriever.passages, units)


def _build(opened: Opened) -> tuple[Run, Injected]:
    """The run at step 0, its adapter in the encoder.

    Raises:
        RecipeError: the adapter cannot be folded into an encoder.
    """
    recipe, loaded = opened.recipe, opened.loaded
    injected = assemble.adapter_of(recipe).inject(loaded.model, recipe.seed)
    try:
        copy.deepcopy((loaded.model, injected))[1].merge()
    except NotImplementedError as error:
        raise RecipeError(
            f"adapter.type = {registry.name_of(recipe.adapter)!r} cannot be folded into an encoder, which is how it is "
            f"searched with ({error}); expected 'full', 'lora' or another that can"
        ) from None
    scorer = opened.tuned.scorer()
    trainable = assemble.Trainable(injected, Models(scorer, encoder=scorer), scorer)
    fingerprint = assemble.fingerprint_of(recipe, loaded, None, opened.units)
    return assemble.build_run(recipe, loaded, trainable, opened.units, fingerprint, opened.folder.path), injected


class _Proof:
    """What is shown of a run: before step 1, and after the first steps."""

    def __init__(self, opened: Opened, run: Run, injected: Injected) -> None:
        self._opened, self._run, self._injected = opened, run, injected
        self._before: Mapping[str, str] = {}

    def before(self) -> None:
        """What trains computes what answers.

        Raises:
            PreflightError: it does not.
        """
        self._keep(self._as_served())
        self._before = checksums(self._run.model, self._injected)

    def after(self, step: Step) -> None:
        """Once PROVEN_AT steps are done: what should train moved.

        Raises:
            PreflightError: it did not.
        """
        if step.number == PROVEN_AT:
            self._keep(TensorsMoved().between(self._before, checksums(self._run.model, self._injected)))

    def _keep(self, result: GateResult) -> None:
        folder = self._opened.folder
        kept = {one["gate"]: one for one in folder.read(PREFLIGHT) or []}
        folder.write(PREFLIGHT, list((kept | {result.gate: result.dump()}).values()))
        require([result])

    @torch.no_grad()
    def _as_served(self) -> GateResult:
        tuned, run = self._opened.tuned, self._run
        rows, served = tuned.probes(self._opened.sought[:PROVED], self._opened.passages)
        with in_mode(run.model, training=True):
            groups = micro_batches([(row,) for row in rows], run.micro_batch_tokens)
            trained = torch.cat([tuned.trained(run.models, build_batch(group).to(run.device)) for group in groups])
        off = float((trained.cpu() - served).abs().max())
        proves = "What trains computes, text by text, what answers later: the same tokens, pooling and no dropout."
        said = f"The largest difference over {len(rows)} texts is {off:.1e}; {SAME:.0e} is rounding."
        return GateResult("encoder_as_served", proves, off <= SAME, said, {"texts": len(rows), "largest": off})
