"""Recipe -> the parts of a run. The one module that knows every part; it reads like a packing list."""

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier import __version__, registry
from luthier.adapters._head import WithHead, require_no_head
from luthier.adapters.base import Adapter, Injected, standing_in
from luthier.config import build, canonical_hash, part
from luthier.data.source import RowSource, Source, Unit
from luthier.data.templates import Template, build_template
from luthier.engine.fit import fit, most_that_pays
from luthier.engine.optimizers.base import OptimizerSettings
from luthier.engine.rollout import Rollouts
from luthier.engine.run import Run
from luthier.engine.schedules.base import Schedule
from luthier.errors import DataError, ModelError, RecipeError
from luthier.evaluation.systems.base import System
from luthier.examples import Conversation, Document, Example, Judged, Preference
from luthier.files import sha256_of, sync
from luthier.lessons import require_teacher, teaches_itself
from luthier.models import heads
from luthier.models.catalog import resolve
from luthier.models.kernels import native
from luthier.models.kernels.compiled import compile_layers, pays, works
from luthier.models.load import LoadedModel, load
from luthier.models.memory import available_bytes
from luthier.models.new_tokens import with_new_tokens
from luthier.models.packed import quantized_layers
from luthier.models.scorer import Held, Scorer, require_forest
from luthier.objectives._retriever import require_writes
from luthier.objectives.base import Models, Objective, OnlineObjective, Scorer as AnyScorer
from luthier.online import Asked, require_fit, rollouts_of, sampler_bytes
from luthier.recipe import ModelSettings, Recipe
from luthier.run_folder import RunFolder, decisive

TEMPLATE_FILE = "template.jinja"
RECORD = "run.json"
KINDS: Mapping[type, tuple[str, str, str]] = {
    Conversation: ("a conversation", "conversations", "sft"),
    Document: ("raw text", "raw text", "sft"),
    Preference: ("a preference pair", "preference pairs (prompt, chosen, rejected)", "dpo"),
    Judged: ("a judged reply", "judged replies (prompt, completion, label)", "kto"),
}
"""What a row is called, what many are, and an objective for them."""


def open_model(recipe: Recipe, precision: str | None = None, device: str | None = None) -> LoadedModel:
    """The base model of the recipe, fetched if need be, verified and loaded; what is given goes before its settings.

    Raises:
        ModelError: it cannot be had or used.
    """
    settings = recipe.model
    require_writes(recipe.objective)
    if settings.quantize != "none" and adapter_of(recipe).overwrites_base:
        raise RecipeError(
            f"model.quantize = {settings.quantize!r} holds the base in a form that cannot be trained, and "
            f"adapter.type = {registry.name_of(recipe.adapter)!r} trains it: set model.quantize = 'none', or "
            "an adapter such as lora"
        )
    files = resolve(settings.name)
    loaded = load(files, precision or settings.precision, device or settings.device, quantize=settings.quantize)
    require_forest(loaded.model)
    return with_new_tokens(loaded, adapter_of(recipe).added_tokens)


def open_base(name: str, device: str | None = None, precision: str | None = None) -> LoadedModel:
    """A base model by itself, held as a recipe without further settings holds it.

    Raises:
        ModelError: it cannot be had or used.
    """
    settings = ModelSettings(name=name)
    loaded = load(resolve(name), precision or settings.precision, device or settings.device)
    require_forest(loaded.model)
    return loaded


def open_for_run(recipe: Recipe, folder: RunFolder) -> LoadedModel:
    """The base model as this run held it when it was first opened: `auto` must not mean another thing after a stop.

    Raises:
        ModelError: it cannot be had or used, or the device of the run is not on this machine.
    """
    loaded = open_model(recipe, **(folder.read("manifest.json").get("held") or {}))
    folder.record(held={"precision": precision_of(loaded), "device": str(loaded.device)})
    return loaded


def precision_of(loaded: LoadedModel) -> str:
    """The number format of a model, as `model.precision` names it."""
    return str(loaded.dtype).removeprefix("torch.")


def adapter_of(recipe: Recipe) -> Adapter:
    """The recipe's adapter."""
    return part(recipe.adapter, Adapter, "adapter")  # type: ignore[type-abstract]


def longest_row(recipe: Recipe, loaded: LoadedModel) -> int:
    """Most tokens of a row: what the recipe allows, and never more than the model's context."""
    return min(recipe.training.max_tokens, loaded.max_tokens)


def template_for(recipe: Recipe, loaded: LoadedModel, max_tokens: int | None = None) -> Template:
    """The template that this run trains, evaluates and serves with."""
    return build_template(loaded, recipe.model.template, loss_on=recipe.data.loss_on, max_tokens=max_tokens)


def objective_of(recipe: Recipe) -> Objective:
    """The recipe's objective.

    Raises:
        RecipeError: it does not go with the recipe's rollouts, or with there being none; or rows are to be made first,
            by a constitution.
    """
    objective = part(recipe.objective, Objective, "objective")  # type: ignore[type-abstract]
    require_teacher(recipe, objective)
    if recipe.constitution is not None:
        raise RecipeError(
            "the recipe has a table [constitution], which `luthier constitution` reads and no other command; remove it "
            "to train on the rows as they are"
        )
    if isinstance(objective, OnlineObjective):
        require_fit(recipe, objective)
    elif recipe.rollout is not None:
        raise RecipeError(
            f"[rollout] changes nothing with objective.type = {registry.name_of(objective)!r}, which learns from the "
            "replies of the rows; remove it, or choose an objective such as 'grpo'"
        )
    return objective


def units_of(recipe: Recipe, examples: Iterable[Example], template: Template) -> Iterator[Unit]:
    """The training rows of each example, in the order of the examples.

    Raises:
        DataError: an example is of a kind that the objective does not train on.
    """
    objective = objective_of(recipe)
    for example in examples:
        if not isinstance(example, objective.accepts):
            kinds = " or ".join(KINDS[kind][1] for kind in objective.accepts)
            found, _, fitting = KINDS[type(example)]
            raise DataError(
                f"objective.type = {registry.name_of(objective)!r} trains on {kinds}, but this row is {found}; set "
                f"objective.type (to {fitting!r}, say) or data.format",
                example.where.path,
                example.where.line,
                example.where.row,
            )
        yield objective.rows(example, template)


def rate_of(recipe: Recipe) -> float:
    """The learning rate: the recipe's, else the adapter's own, times what the objective makes of it."""
    optimizer = part(recipe.optimizer, OptimizerSettings, "optimizer")  # type: ignore[type-abstract]
    return optimizer.learning_rate or adapter_of(recipe).learning_rate * objective_of(recipe).rate_factor


@dataclass(frozen=True)
class Trainable:
    """A model with its adapter in it, and the cast that the objective sees."""

    injected: Injected
    models: Models
    before: AnyScorer
    """The model as it is before training: while nothing is trained, or for good where that is `models.reference`."""
    notes: tuple[str, ...] = ()
    """What is worth saying of how it begins."""
    asked: Asked | None = None
    """What an online objective asks."""


def systems_of(recipe: Recipe) -> dict[str, System]:
    """The systems of the recipe by name: those that need no training first, then what is trained, by rung."""
    found = {
        name: part(settings, System, f"evaluation.systems.{name}")  # type: ignore[type-abstract]
        for name, settings in recipe.evaluation.systems.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].place))


def make_trainable(recipe: Recipe, loaded: LoadedModel, start: Path | None = None) -> Trainable:
    """Put the adapter in, and a head beside it where the objective asks for one.

    A reference, where the objective needs one, is the model before training: the base with the adapter off; the tensors
    that an earlier training left, where this one continues it; a frozen copy where the base itself trains. The head is
    that of `start`, or of the base's folder where that is a model trained as a whole, if it is of the same kind and
    shape; else it is fresh.

    Args:
        recipe: of the run.
        loaded: its base; edited.
        start: the artifact that the adapter starts at; None: it is fresh.

    Raises:
        ModelError: the adapter does not fit the model, or the artifact is not of this adapter.
    """
    adapter, objective = adapter_of(recipe), objective_of(recipe)
    ready = adapter.reading(lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    injected = ready.inject(loaded.model, recipe.seed)
    if (head := head_over_base(recipe, loaded)) is not None:
        injected = WithHead(injected, head)
    if start is not None:
        injected.start_at(start)
    # an overwritten base is held in float32; products are still computed in the type that the model was loaded in
    autocast = loaded.dtype if adapter.overwrites_base and loaded.dtype == torch.bfloat16 else None
    policy, notes = Scorer(loaded.model, autocast, injected.head), _about_head(injected, start or loaded.files.folder)
    before = Held(policy, nullcontext if adapter.overwrites_base or start is not None else injected.disabled)
    if not objective.uses_reference and not teaches_itself(recipe, objective):
        return Trainable(injected, Models(policy), before, notes)
    reference: AnyScorer = before
    if start is not None:
        begun = {name: parameter.detach().clone() for name, parameter in injected.trainable.items()}
        reference = Held(policy, partial(standing_in, injected.trainable, begun))
    elif adapter.overwrites_base:
        # copied after the injection, so that at step 0 policy and reference compute the same bits
        reference = Scorer(copy.deepcopy(loaded.model).requires_grad_(False).eval(), autocast)
    return Trainable(injected, Models(policy, reference), reference, notes)


def head_over_base(recipe: Recipe, loaded: LoadedModel) -> heads.Head | None:
    """The head of the recipe's objective over a base that was not trained by it: the base's own, where its folder holds
    one of that kind and shape, else a fresh one; None: the objective has none.

    Raises:
        ModelError: the model does not tell its hidden states, or its head's file is damaged.
    """
    shape = objective_of(recipe).head()
    if shape is None:
        return None
    head = heads.head_of(loaded.model, shape, recipe.seed)
    head.take(loaded.files.folder)
    return head


_FRESH = {"zeros": "fresh, zeros", "normal": "fresh, normal", "probe": "fresh, fitted to training rows"}


def _about_head(injected: Injected, begun_at: Path) -> tuple[str, ...]:
    """Where a head begins, or that one is left behind; neither shows in the loss."""
    head, notes = injected.head, []
    taken = None if head is None else head.taken_from
    if head is not None:
        start = _FRESH[head.shape.start] if taken is None else f"as {taken / heads.FILE} has it"
        notes.append(f"the head of kind {head.shape.kind!r} begins {start}")
    if taken is None and (begun_at / heads.FILE).is_file():
        notes.append(f"the head in {begun_at} is not of a kind and shape that this objective trains, and is left there")
    return tuple(notes)


def restore(recipe: Recipe, model: nn.Module, folder: Path) -> Injected:
    """Put the adapter that lies in `folder` into a base, and its head beside it.

    Raises:
        ModelError: the adapter does not fit, or the head is missing, or is one that the objective does not have.
    """
    injected, shape = adapter_of(recipe).restore(model, folder), objective_of(recipe).head()
    if shape is None:
        require_no_head(folder)
        return injected
    both = WithHead(injected, heads.head_of(model, shape, recipe.seed))
    both.head.load(folder)
    return both


def planned_steps(recipe: Recipe, rows: int) -> int:
    """How many optimizer steps the recipe asks for."""
    passes = 1 if recipe.rollout is None else recipe.rollout.updates
    return recipe.training.steps or math.ceil(recipe.training.epochs * rows * passes / recipe.training.rows_per_step)


def build_run(
    recipe: Recipe,
    loaded: LoadedModel,
    trainable: Trainable,
    units: Mapping[str, Sequence[Unit]],
    fingerprint: str,
    folder: Path,
    available: int | None = None,
) -> Run:
    """All parts of a training, at step 0; `available`: bytes that `micro_batch_tokens = "auto"` may count on, None:
    what is free on the device now.

    Raises:
        RecipeError: a step has fewer rows than the objective compares.
    """
    torch.manual_seed(recipe.seed)
    if recipe.training.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if _compiling_pays(recipe, loaded, units["train"]):
        compile_layers(loaded.model)
    optimizer = part(recipe.optimizer, OptimizerSettings, "optimizer")  # type: ignore[type-abstract]
    objective, rate = objective_of(recipe), rate_of(recipe)
    if recipe.training.rows_per_step < objective.least_per_step:
        raise RecipeError(
            f"objective.type = {registry.name_of(recipe.objective)!r} compares the rows of a step: set "
            f"training.rows_per_step to {objective.least_per_step} or more, better 16"
        )
    models, validation = trainable.models, units["validation"]
    source: RowSource = Source(units["train"], recipe.training.rows_per_step, recipe.seed)
    if isinstance(objective, OnlineObjective):
        if trainable.asked is None:
            raise ValueError("an online objective needs what is asked")
        rollouts = rollouts_of(recipe, loaded, trainable.injected, models, trainable.asked, folder, fingerprint)
        source, models, validation = rollouts, rollouts.cast.models, rollouts.planned_validation()
    given, most = recipe.training.micro_batch_tokens, most_that_pays(loaded.device)
    run = Run(
        settings=recipe.training,
        steps=planned_steps(recipe, len(units["train"])),
        model=loaded.model,
        models=models,
        objective=objective,
        injected=trainable.injected,
        optimizer=optimizer.build(trainable.injected.trainable, rate, trainable.injected.rate_factors()),
        schedule=part(recipe.schedule, Schedule, "schedule"),  # type: ignore[type-abstract]
        learning_rate=rate,
        source=source,
        validation=validation,
        checkpoints=folder / "checkpoints",
        fingerprint=fingerprint,
        device=loaded.device,
        micro_batch_tokens=most if given == "auto" else given,
        optimizer_numbers=optimizer.state_numbers,
    )
    if given == "auto":
        taken = sampler_bytes(recipe, loaded)
        free = available if available is not None or not taken else available_bytes(loaded.device)
        run.fit = fit(run, most, None if free is None else max(free - taken, 0))
        run.micro_batch_tokens = run.fit.tokens
    if isinstance(source, Rollouts):
        source.micro_batch_tokens = run.micro_batch_tokens
    return run


def _compiling_pays(recipe: Recipe, loaded: LoadedModel, units: Sequence[Unit]) -> bool:
    if loaded.device.type != "cuda" or not units:
        return False
    rows = planned_steps(recipe, len(units)) * recipe.training.rows_per_step
    tokens = rows * sum(len(row.ids) for unit in units for row in unit) // len(units)
    weights = sum(p.numel() for p in loaded.model.parameters())
    # a quantized layer makes its matrix anew for each product, in Python that is not compiled
    return not quantized_layers(loaded.model) and pays(loaded.device, weights, tokens) and works(loaded.device)


def fingerprint_of(
    recipe: Recipe,
    loaded: LoadedModel,
    template: Template | None,
    units: Mapping[str, Sequence[Unit]],
    start: Mapping[str, str] | None = None,
    asked: Asked | None = None,
    taught: Sequence[Any] = (),
) -> str:
    """Hash of everything that decides the trained weights: settings, model, template, token ids and masks, versions.

    `start` is the sha256 of each file of the artifact that the adapter starts at, if it is not fresh. `asked` is what
    graders see of the rows, where the objective is online. `taught` is what a teacher's words follow from. No
    `template` makes the rows of a retriever.
    """
    # with passages rows differ in tokens; a teacher's words follow from what is in them, not from where files lie
    settings = {k: v for k, v in decisive(recipe.dump()).items() if k not in ("data", "teacher")}
    settings["adapter"] = {k: v for k, v in settings["adapter"].items() if k != "start_from"}  # its files say more
    data = {name: hash_units(group) for name, group in units.items()}
    versions = [__version__, torch.__version__, str(loaded.dtype), loaded.device.type, native.identity()]
    begun: list[Any] = [] if start is None else [dict(start)]
    begun += [{"teacher": list(taught)}] if taught else []
    if asked is not None:
        data["items"] = canonical_hash(asked.decides())
    return canonical_hash([settings, loaded.files.fingerprint, template and template.sha256, data, versions, *begun])


def hash_units(units: Sequence[Unit]) -> str:
    """Changes when a token, a weight or a value of them does."""
    digest = hashlib.sha256()
    for unit in units:
        for row in unit:
            digest.update(np.asarray(row.ids, dtype=np.int64).tobytes())
            digest.update(np.asarray(row.loss_mask, dtype=np.float32).tobytes())
            if row.values or row.token_values:
                digest.update(canonical_hash([dict(row.values), dict(row.token_values)]).encode())
        digest.update(b"|")
    return digest.hexdigest()


def save_artifact(
    folder: Path,
    recipe: Recipe,
    loaded: LoadedModel,
    injected: Injected,
    template: Template,
    fingerprint: str | None = None,
    started_from: Mapping[str, Any] | None = None,
) -> None:
    """Write what training made, so that it is on the disk: weights, template, and where both came from.

    An adapter is laid out as by `peft`; a model that was trained as a whole comes with its tokenizer, so that
    transformers opens the folder by itself. The sha256 of every file goes into `run.json`, the last file written.

    Args:
        folder: made if need be.
        recipe: of the run.
        loaded: the base, with the number format that it was trained in.
        injected: the trained tensors.
        template: that was trained with.
        fingerprint: of the training (`fingerprint_of`), by which `is_artifact_of` knows the artifact again.
        started_from: the earlier run that the training continued, and the sha256 of its files; None: none.

    Raises:
        OSError, SafetensorError: the disk is full or the folder cannot be written.
    """
    injected.save(folder, loaded.files.base_name)
    (folder / TEMPLATE_FILE).write_text(template.source, encoding="utf-8")
    if adapter_of(recipe).overwrites_base:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        tokenizer.chat_template = template.source
        tokenizer.save_pretrained(folder)
    record = {
        "luthier": __version__,
        "recipe": recipe.dump(),
        "model": {
            "name": recipe.model.name,
            "fingerprint": loaded.files.fingerprint,
            "precision": precision_of(loaded),
        },
        "template": {"name": template.name, "sha256": template.sha256},
        "training": fingerprint,
        **({} if started_from is None else {"started_from": dict(started_from)}),
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)


@dataclass(frozen=True)
class Trained:
    """What `open_trained` returns: a trained model that is ready to answer."""

    name: str
    recipe: Recipe
    loaded: LoadedModel
    template: Template
    injected: Injected
    folder: Path
    """Where the artifact lies."""

    @contextmanager
    def base(self) -> Iterator[None]:
        """The base model alone while open."""
        with self.injected.disabled():
            yield


def artifact_record(folder: Path) -> dict[str, Any]:
    """What `save_artifact` noted beside the weights in `folder`, once every file there is what it wrote.

    Raises:
        ModelError: there is no trained model, or a file of it was changed, added or removed since.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ModelError(f"{folder}: no trained model here; `luthier run` or `luthier train` makes one")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = dict(record["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is damaged ({error!r}); `luthier train` writes it again from its checkpoint"
        ) from None
    present = {p.name: sha256_of(p) for p in folder.iterdir() if p.is_file() and p.name != RECORD}
    changed = sorted(name for name in written.keys() | present.keys() if written.get(name) != present.get(name))
    if changed:
        raise ModelError(
            f"{folder}: {', '.join(changed)} was changed, added or removed since the training wrote this folder; "
            "restore it, or let `luthier train` write it again from its checkpoint"
        )
    return record


def is_artifact_of(folder: Path, fingerprint: str) -> bool:
    """Whether `folder` holds the whole artifact of the training with this fingerprint."""
    try:
        return bool(artifact_record(folder)["training"] == fingerprint)
    except ModelError:
        return False


def require_same_base(record: dict[str, Any], loaded: LoadedModel) -> None:
    """Check that an artifact was trained on this very base.

    Raises:
        ModelError: it was trained on other files.
    """
    if loaded.files.fingerprint != record["model"]["fingerprint"]:
        raise ModelError(
            f"{loaded.files.name} is not the model that this run was trained on (its files differ); "
            "a LoRA on another base would answer nonsense. Train again, or restore the files."
        )


@dataclass(frozen=True)
class Artifact:
    """What a run trained, as it lies in its folder; every file there is what the training wrote."""

    name: str
    folder: Path
    record: dict[str, Any]
    recipe: Recipe

    @property
    def is_whole(self) -> bool:
        """Whether it holds the weights of the model itself, so that no base is left beside them."""
        return adapter_of(self.recipe).overwrites_base

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts that it was trained to know as tokens."""
        return tuple(adapter_of(self.recipe).added_tokens)

    def open_base(self, device: str | None = None) -> LoadedModel:
        """The model that was trained from, held as it was then.

        Raises:
            ModelError: it cannot be had, or is another one than it was.
        """
        loaded = open_model(self.recipe, self.record["model"]["precision"], device)
        require_same_base(self.record, loaded)
        return loaded

    def template(self, loaded: LoadedModel) -> Template:
        """The template that was trained with.

        Raises:
            ModelError: it is another one.
        """
        found = build_template(loaded, str(self.folder / TEMPLATE_FILE), loss_on=self.recipe.data.loss_on)
        if found.sha256 != self.record["template"]["sha256"]:
            raise ModelError(
                f"{self.folder / TEMPLATE_FILE} is not the template that this run was trained with; restore it"
            )
        return found

    def put_in(self, model: nn.Module) -> Injected:
        """Put what was trained into a base."""
        return restore(self.recipe, model, self.folder)


def read_artifact(run_folder: Path) -> Artifact:
    """The trained model of a run, not opened yet.

    Raises:
        ModelError: there is none, or a file of it was changed since.
    """
    folder = run_folder / "adapter"
    record = artifact_record(folder)
    return Artifact(run_folder.resolve().name, folder, record, build(Recipe, record["recipe"]))


def open_trained(run_folder: Path, device: str | None = None) -> Trained:
    """Load the model that a run trained, with the template that it was trained with.

    Raises:
        ModelError: the run has no adapter yet, its base model is another one than it was, or a file was changed since.
    """
    artifact = read_artifact(run_folder)
    loaded = artifact.open_base(device)
    template = artifact.template(loaded)
    injected = artifact.put_in(loaded.model)
    loaded.model.eval()
    return Trained(artifact.name, artifact.recipe, loaded, template, injected, artifact.folder)
