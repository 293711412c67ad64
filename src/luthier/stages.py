"""The stages of a run over its folder: data, pre-flight, training, evaluation, report.

Each can be run by itself and again: what is there and still true is kept, so a run that was stopped goes on where it
was. `luthier run` is these in order.
"""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors import SafetensorError

from luthier import assemble
from luthier.data.replay import wanted
from luthier.data.source import Unit
from luthier.data.stored import StoredUnits
from luthier.data.templates import Template
from luthier.data_stage import Data
from luthier.engine import checkpoint
from luthier.engine.heads import begins_fitted, probe, settle_head
from luthier.engine.interrupts import interruptible
from luthier.engine.kept_reference import keep
from luthier.engine.log import mend_log, metrics_line
from luthier.engine.loop import Step, observe, train, validation_loss
from luthier.engine.rollout import Rollouts
from luthier.engine.run import Run
from luthier.engine.vllm import LOG as LOG_OF_VLLM
from luthier.errors import PreflightError, StorageError
from luthier.examples import Example, Row
from luthier.files import sync
from luthier.models.kernels import native
from luthier.models.load import LoadedModel
from luthier.models.memory import peak_memory_bytes
from luthier.objectives.base import OnlineObjective
from luthier.online import Asked, Hosted
from luthier.preflight.base import RowSettings, Stage, Subject, require, run_gates
from luthier.preflight.tensors_moved import checksums
from luthier.progress import Progress, duration
from luthier.recipe import Recipe
from luthier.rewarding import host_of, unasked
from luthier.run_folder import RunFolder
from luthier.settling import calibrate_head, settle, settled
from luthier.starts import Start, keep_start
from luthier.teaching.plan import Planned, Voice, planned
from luthier.teaching.stage import replies_of_teacher, require_replies, teacher_of
from luthier.tracking import LOG, tracked
from luthier.trainee import Opens, Trainee

PROVEN_AT = 3  # the step after which the gates of stage `steps` look


# Model and rows


@dataclass(frozen=True)
class Opened:
    """A run with its base model in memory, before anything is trained."""

    recipe: Recipe
    folder: RunFolder
    data: Data
    loaded: LoadedModel
    template: Template
    units: Mapping[str, Sequence[Unit]]
    subject: Subject | None
    """What the gates looked at, its rows rendered; None where nothing is to be trained."""
    start: Start | None = None
    """What the adapter starts at; None: it is fresh, or nothing is to be trained."""

    @cached_property
    def hosted(self) -> Hosted:
        """What graders of rollouts may use, opened when it is first asked for, once: what judges hold of memory, and
        what was spent on them, is counted in one place.

        Raises:
            ModelError, EvaluationError: as `host_of`.
        """
        return host_of(self.recipe, self.folder.path, str(self.loaded.device))

    def save(self, folder: Path, run: Run) -> None:
        """As `assemble.save_artifact`."""
        begun = None if self.start is None else self.start.noted
        assemble.save_artifact(folder, self.recipe, self.loaded, run.injected, self.template, run.fingerprint, begun)


def open_run(
    recipe: Recipe,
    folder: RunFolder,
    data: Data,
    progress: Progress,
    prepare: Callable[[Data, LoadedModel, Template], Data] = lambda data, _loaded, _template: data,
) -> Opened:
    """Load the model, render every row, and let the gates over rows prove that what is trained is what is meant.

    Args:
        recipe: what is run.
        folder: the run's.
        data: its rows.
        progress: told what comes out.
        prepare: makes the rows that are trained and asked from those of the data, once the model is there.

    Raises:
        ModelError, RecipeError: what the adapter shall start at is not there, or does not fit.
        PreflightError: a gate refused the rows; `preflight.json` tells all of it.
    """
    recipe = settle(recipe, data, progress)
    start = keep_start(recipe, folder)
    with progress.stage("open", f"loading {recipe.model.name}"), folder.timed("open"):
        loaded = assemble.open_for_run(recipe, folder)
        template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    if start is not None:
        start.require_fit(recipe, loaded, template)
        progress.say(f"  the adapter starts as {start.source} left it")
    if loaded.device.type == "cpu" and native.trouble():
        progress.say(f"  without compiled kernels, so slower: {native.trouble()}")
    folder.record(
        model={
            "name": recipe.model.name,
            "origin": loaded.files.origin,
            "license": loaded.files.license,
            "sha256": dict(loaded.files.sha256),
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
        },
        template={"name": template.name, "sha256": template.sha256},
    )
    data = prepare(data, loaded, assemble.template_for(recipe, loaded))
    named = {"train": data.train, "validation": data.validation}
    learned = replace(data, **replies_of_teacher(recipe, folder, loaded, named, progress))
    with progress.stage("rows", "pre-flight over the rows"), folder.timed("preflight"):
        subject = row_subject(recipe, learned, loaded, template)
        _tell_replay(recipe, learned, len(subject.examples) - len(learned.train), folder, progress)
        _gates(folder, subject, "rows")
        named = subject.splits
        units = {
            name: StoredUnits(assemble.units_of(recipe, examples, template), folder.path)
            for name, examples in named.items()
        }
        subject.units = units
        _gates(folder, subject, "all_rows")
    return Opened(recipe, folder, data, loaded, template, units, subject, start)


def row_subject(recipe: Recipe, data: Data, loaded: LoadedModel, template: Template) -> Subject:
    """What the gates look at before a model is needed: what is replayed is trained on as well, and proved as well."""
    recipe = settled(recipe, data.train)
    return Subject(
        examples=[*data.train, *replayed(recipe, data, loaded, template)],
        template=template,
        untruncated=assemble.template_for(recipe, loaded),
        tokenizer=loaded.tokenizer,
        objective=assemble.objective_of(recipe),
        settings=RowSettings(
            max_tokens=assemble.longest_row(recipe, loaded),
            max_truncated_share=recipe.data.max_truncated_share,
            loss_on=recipe.data.loss_on,
        ),
        held_out={"validation": data.validation, "test": data.test},
        loaded=loaded,
    )


def replayed(recipe: Recipe, data: Data, loaded: LoadedModel, template: Template) -> list[Example]:
    """The rows that are mixed into training: as many as `data.replay_share` wants, of those that stay whole.

    Raises:
        DataError: one is of a kind that the objective does not train on.
    """
    count, limit = wanted(recipe.data.replay_share, len(data.train)), assemble.longest_row(recipe, loaded)
    rendered = zip(data.replay, assemble.units_of(recipe, data.replay, template), strict=True) if count else ()
    whole = (example for example, unit in rendered if unit and all(_is_whole(row, limit) for row in unit))
    return list(islice(whole, count))


def _is_whole(row: Row, limit: int) -> bool:
    return len(row.ids) < limit and row.trained_tokens > 0


def _tell_replay(recipe: Recipe, data: Data, count: int, folder: RunFolder, progress: Progress) -> None:
    """Say how much is replayed, and note it beside the counts of the split."""
    if recipe.data.replay is None:
        return
    asked_for, split_file = wanted(recipe.data.replay_share, len(data.train)), folder.read("data/split.json")
    share = count / (count + len(data.train))
    found = {**split_file.get("replay", {}), "wanted": asked_for, "trained": count, "share": round(share, 4)}
    folder.write("data/split.json", {**split_file, "replay": found})
    said = [f"{count:,} of {len(data.replay):,} rows, {share:.1%} of what is trained on"]
    said += [f"{found['leaks']:,} that ask what is held out are left out"] if found["leaks"] else []
    said += [f"{asked_for:,} were wanted, but no more fit into training.max_tokens"] if count < asked_for else []
    progress.say(f"  replay: {'; '.join(said)}")


# Training


@dataclass(frozen=True)
class Prepared(Generic[Opens]):
    """A run whose adapter is in its model and was proven there; nothing is trained yet."""

    opened: Opens
    run: Run
    found: checkpoint.Found | None
    """Where training goes on; None: it begins."""

    def base(self) -> AbstractContextManager[None]:
        """The base alone while open, until `train_stage`; where every weight trains, that is still the model itself."""
        overwrites = assemble.adapter_of(self.opened.recipe).overwrites_base
        return nullcontext() if overwrites else self.run.injected.disabled()


def prepare_training(
    opened: Opened, progress: Progress, prove: bool = True, available: int | None = None
) -> Prepared[Opened]:
    """Put the adapter in and, if training is to begin, let the gates on the model prove it.

    Without `prove` no gate looks: for a trial of settings whose like was proven, and whose winner will be.
    `available`: as of `assemble.build_run`.

    Raises:
        ModelError: the adapter does not fit the model.
        PreflightError: a gate refused the model.
        CheckpointError: there are checkpoints and every one is damaged.
    """
    recipe, folder, loaded, subject = opened.recipe, opened.folder, opened.loaded, opened.subject
    start, files = (None, None) if opened.start is None else (opened.start.folder, opened.start.files)
    if subject is None and prove:
        raise PreflightError("this run was opened for evaluation; open_run proves its rows before it trains")
    asked, plan = asked_of(opened), planned(recipe, loaded, files)
    decides = () if plan is None else plan.decides
    fingerprint = assemble.fingerprint_of(recipe, loaded, opened.template, opened.units, files, asked, decides)
    trainable = replace(assemble.make_trainable(recipe, loaded, start), asked=asked)
    if plan is not None:
        trainable = taught(plan, opened, trainable, progress)
    for note in (*trainable.notes, *(() if asked is None else asked.hosted.notes)):
        progress.say(f"  {note}")
    fitted = _with_micro_batch(recipe, folder)
    run = assemble.build_run(fitted, loaded, trainable, opened.units, fingerprint, folder.path, available)
    _tell_fit(run, folder, progress)
    if recipe.rollout is not None and recipe.rollout.vllm is not None:
        progress.say(f"  replies are written by vLLM; what it says of itself is in {folder / 'rollouts' / LOG_OF_VLLM}")
    with folder.timed("train"):
        keep(run, folder.path, progress)
    found = newest(run, progress)
    if found is None and subject is not None:
        _begin(run, folder, progress)
        subject.injected, subject.models = trainable.injected, trainable.models
        subject.targets = assemble.adapter_of(recipe).named_targets
        subject.start = start
        subject.sampled = run.source if isinstance(run.source, Rollouts) else None
        with progress.stage("model", "pre-flight on the model"), folder.timed("preflight"):
            _gates(folder, subject, "model")
            subject.checksums = checksums(loaded.model, trainable.injected)
        if subject.sampled is not None:
            _tell_first(subject.sampled.first(), progress)
    return Prepared(opened, run, found)


def _begin(run: Run, folder: RunFolder, progress: Progress) -> None:
    """Find from training rows where they begin to learn; before the gates, which prove that start."""
    if observe(run):
        progress.say("  the adapter begins from what the model does with the first rows")
    if begins_fitted(run):
        with progress.stage("head", "fitting the head"), folder.timed("train"):
            rows = probe(run)
        progress.say(f"  it was fitted to {rows:,} training rows")


def taught(plan: Planned, opened: Opened, trainable: assemble.Trainable, progress: Progress) -> assemble.Trainable:
    """The cast with its teacher."""
    require_replies(plan, opened.subject is not None)
    recipe, loaded = opened.recipe, opened.loaded
    student = Voice(loaded, assemble.template_for(recipe, loaded), trainable.before)
    splits = opened.data.named() if opened.subject is None else opened.subject.splits
    named = {name: splits[name] for name in opened.units}
    teacher = teacher_of(plan, recipe, opened.folder, student, named, opened.units, progress)
    return replace(trainable, models=replace(trainable.models, teacher=teacher))


def asked_of(opened: Opened, to_train: bool = True) -> Asked | None:
    """What an online objective asks: the rows that others train on; None where the objective asks nothing.

    Unless it is `to_train`, models that graders ask are not asked, and no reply is worth anything.

    Raises:
        ModelError, EvaluationError: a run that grades replies has no trained model, or one that judges none; or a model
            that graders ask cannot be asked from here.
    """
    if opened.recipe.rollout is None:
        return None
    named = opened.data.named() if opened.subject is None else opened.subject.splits
    template = assemble.template_for(opened.recipe, opened.loaded)
    return Asked(template, named["train"], named["validation"], opened.hosted if to_train else unasked(opened.recipe))


def _tell_first(first: Mapping[str, float], progress: Progress) -> None:
    """Say what the first rollout was worth, and what to do where little can be learned from it."""
    progress.say(
        f"  the first replies: mean reward {first['reward']:.3f}; {first['truncated']:.0%} were cut off; of "
        f"{first['dead']:.0%} of prompts all were worth the same"
    )
    if first["truncated"] > 0.5:
        progress.say(
            "  ! most ran into rollout.max_new_tokens and were graded unfinished: raise it, or train on the replies of "
            "the rows first, so that the model knows how to end"
        )
    if first["ungraded"]:
        progress.say(
            f"  ! a grader could not grade {first['ungraded']:.0%} of them, which then counts as 0; the files in "
            "rollouts say why"
        )
    if first["dead"] > 0.5:
        progress.say(
            "  ! most prompts teach nothing: raise rollout.group_size or rollout.temperature, set rollout.resample, or "
            "give part of the reward for a part of the task"
        )


def train_stage(prepared: Prepared[Trainee], progress: Progress, on_step: Callable[[Step], None] | None = None) -> Run:
    """Train, from the newest checkpoint or from the beginning; ends with the best weights in place.

    Raises:
        PreflightError: a gate refused the first three steps; the same command begins again and is refused again.
        NonFiniteStep, StorageError, CheckpointError: see there; what was saved is intact.
        KeyboardInterrupt: ctrl-C; the step was finished and everything saved.
    """
    opened, run, found = prepared.opened, prepared.run, prepared.found
    torch.manual_seed(opened.recipe.seed)  # the baselines may have drawn random numbers since the run was built
    if found is not None:
        checkpoint.restore(run, found.folder)
        progress.say(f"  going on after step {found.step} ({found.folder})")
    subject = opened.subject if found is None else None
    mend_log(opened.folder / LOG, run.state)
    sampling = closing(run.source.cast) if isinstance(run.source, Rollouts) else nullcontext()
    with sampling, tracked(opened.recipe, opened.folder, progress) as tracking:
        with progress.stage("train", "training"), opened.folder.timed("train"), interruptible() as interrupted:
            _steps(run, opened, subject, progress, on_step, interrupted)
        _finish(run, opened, progress)
        found_best = {"best_step": run.state.best_step, "best_validation_loss": run.state.best_loss}
        tracking.conclude(found_best, {"folder": opened.folder.place})
    return run


def _gates(folder: RunFolder, subject: Subject, stage: Stage) -> None:
    """Run the gates of a stage, keep their results beside those of the other stages, and require that all passed."""
    results = run_gates(subject, stage)
    kept = {r["gate"]: r for r in folder.read("preflight.json") or []}
    folder.write("preflight.json", list((kept | {r.gate: r.dump() for r in results}).values()))
    require(results)


def _with_micro_batch(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with the micro-batch that this run found for `auto` when it was first prepared, if it did.

    Another one would end with other bits: sums over other parts round otherwise.
    """
    found = folder.read("manifest.json").get("micro_batch")
    if found is None or recipe.training.micro_batch_tokens != "auto":
        return recipe
    training = recipe.training.model_copy(update={"micro_batch_tokens": found["tokens"]})
    return recipe.model_copy(update={"training": training})


def _tell_fit(run: Run, folder: RunFolder, progress: Progress) -> None:
    """Note the micro-batch that was found for `auto`, and say it."""
    if run.fit is None:
        return
    folder.record(micro_batch=asdict(run.fit))
    needed, available = (f"{value / 2**30:.1f} GiB" for value in (run.fit.needed, run.fit.available))
    progress.say(f"  micro-batches of up to {run.fit.tokens:,} tokens: {needed} at most, of {available} available")
    if not run.fit.fits:
        progress.say(
            "  that may be more than there is: set training.gradient_checkpointing = true, a lower "
            "training.max_tokens, a quantized base (model.quantize), or an adapter that trains less"
        )


def newest(run: Run, progress: Progress) -> checkpoint.Found | None:
    """The newest whole checkpoint that the gates have proven; None if training has to begin."""
    for leftover in run.checkpoints.glob(".*.tmp"):
        shutil.rmtree(leftover)
    found = checkpoint.latest(run.checkpoints)
    if found is None:
        return None
    for reason in found.skipped:
        progress.say(f"  passed over a damaged checkpoint: {reason}")
    # a step's checkpoint is written before the gates look at it, so only a later one shows that they let it pass;
    # to begin again costs seconds
    if found.step <= PROVEN_AT:
        shutil.rmtree(run.checkpoints)
        return None
    return found


def _steps(
    run: Run,
    opened: Trainee,
    subject: Subject | None,
    progress: Progress,
    on_step: Callable[[Step], None] | None,
    interrupted: threading.Event,
) -> None:
    if run.steps < PROVEN_AT:  # LoRA's A has no gradient at step 1: nothing to show yet
        progress.say(f"  {run.steps} steps are too few to show that every trained tensor moves")
    opened.folder.record(planned_steps=run.steps)  # for whoever watches
    progress.resume(run.state.step, run.steps)
    samples, learned = isinstance(run.objective, OnlineObjective), 0
    with (opened.folder / LOG).open("a", encoding="utf-8") as log:
        for step in train(run):
            log.write(metrics_line(run.state))
            log.flush()
            # replies that are all worth the same teach nothing, and move nothing
            learned += not samples or step.metrics["grad_norm"] > 0
            if subject is not None and learned == PROVEN_AT:
                _gates(opened.folder, subject, "steps")
                subject = None
            if on_step is not None:
                on_step(step)
            loss = f"loss {step.metrics['loss']:.3f}"
            if run.state.best_loss is not None:
                loss += f", best validation {run.state.best_loss:.3f}"
            progress.update(step.number, run.steps, f"step {step.number}/{run.steps}  {loss}")
            if interrupted.is_set():
                checkpoint.save(run)
                opened.folder.write("training.json", _summary(run, opened, "interrupted"))
                progress.say(f"  stopped after step {step.number}; everything is saved, the same command goes on")
                raise KeyboardInterrupt


def _finish(run: Run, opened: Trainee, progress: Progress) -> None:
    """Put the best weights in place and write the artifact and `training.json`."""
    final, best = opened.folder / "adapter", checkpoint.best(run)
    if best.skipped and assemble.is_artifact_of(final, run.fingerprint):
        progress.say(f"  the best checkpoint is damaged, but {final} has its weights: {best.skipped[0]}")
        run.injected.load(final)
    else:
        _take(run, best, progress)
        _save_artifact(run, opened, best.folder)
    run.model.eval()
    stopped = "early" if run.state.stopped_early else "finished"
    opened.folder.write("training.json", _summary(run, opened, stopped))


def _take(run: Run, best: checkpoint.Found, progress: Progress) -> None:
    """Load the weights of the best checkpoint, or say that it is damaged and which one stands in for it."""
    checkpoint.load_weights(run, best.folder)
    if best.skipped:
        run.state.best_step, run.state.best_loss = best.step, validation_loss(run, best.step)
        progress.say(
            f"  the best checkpoint is damaged: {'; '.join(best.skipped)}. The newest whole one is used instead, of "
            f"step {best.step} (validation loss {run.state.best_loss:.4f}); remove {run.checkpoints} to train again"
        )


def keep_artifact(opened: Trainee, run: Run, folder: Path) -> None:
    """Write what the run trained so far as `folder/adapter`, whole or not at all, so that it can be served.

    Raises:
        StorageError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_artifact(run, opened, folder, run.checkpoints)


def _save_artifact(run: Run, opened: Trainee, source: Path) -> None:
    """Write the artifact of the run itself; `source` is the checkpoint that its weights came from."""
    _write_artifact(run, opened, opened.folder.path, source)


def _write_artifact(run: Run, opened: Trainee, folder: Path, source: Path) -> None:
    final, temporary = folder / "adapter", folder / ".adapter.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    settle_head(run)
    calibrate_head(run)
    try:
        opened.save(temporary, run)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{final}: the trained weights could not be written: {checkpoint.write_failure(error)}. They are safe in "
            f"{source}: mend this and run the same command again."
        ) from error


def _summary(run: Run, opened: Trainee, stopped: str) -> dict[str, Any]:
    state = run.state
    return {
        "steps": state.step,
        "planned_steps": run.steps,
        "stopped": stopped,
        "best_step": state.best_step,
        "best_validation_loss": state.best_loss,
        "start_validation_loss": state.start_loss,
        "seconds": round(state.seconds, 3),
        "tokens": state.tokens,
        "trained_tokens": state.trained_tokens,
        "trainable_parameters": sum(p.numel() for p in run.injected.trainable.values()),
        "total_parameters": sum(p.numel() for p in opened.loaded.model.parameters()),
        "peak_memory_bytes": max(state.peak_memory_bytes, peak_memory_bytes(run.device)),
    }


def training_line(summary: dict[str, Any]) -> str:
    """What training did, in a sentence."""
    return (
        f"{summary['steps']} steps ({summary['stopped']}) in {duration(summary['seconds'])}; best validation loss "
        f"{summary['best_validation_loss']:.4f} at step {summary['best_step']}; "
        f"{summary['tokens'] / max(summary['seconds'], 1e-9):.0f} tokens/s; "
        f"peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
