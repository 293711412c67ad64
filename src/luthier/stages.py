"""The stages of a run over its folder: data, pre-flight, training, evaluation, report.

Each can be run by itself and again: what is there and still true is kept, so a run that was stopped goes on where it
was. `luthier run` is these in order.
"""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from luthier import __version__, assemble
from luthier.config import canonical_hash
from luthier.data.checks._text import exact_content
from luthier.data.checks.base import EMPTY_REPLY, Finding, run_checks
from luthier.data.corpus_leaks import corpus_leaks
from luthier.data.formats.base import read_examples, sniff
from luthier.data.replay import Pool, build_pool, wanted
from luthier.data.source import Unit
from luthier.data.split import Split, split
from luthier.data.stored import StoredUnits
from luthier.data.templates import Template
from luthier.data.write import write_examples
from luthier.engine import checkpoint
from luthier.engine.interrupts import interruptible
from luthier.engine.kept_reference import keep
from luthier.engine.log import mend_log, metrics_line
from luthier.engine.loop import Step, observe, settle_head, train, validation_loss
from luthier.engine.rollout import Rollouts
from luthier.engine.run import Run
from luthier.errors import DataError, PreflightError, StorageError
from luthier.evaluation.graders.base import Host
from luthier.examples import Example, Row, Where
from luthier.files import sha256_of, sync
from luthier.models.kernels import native
from luthier.models.load import LoadedModel
from luthier.models.memory import peak_memory_bytes
from luthier.objectives.base import OnlineObjective
from luthier.online import Asked, runs_asked, with_place_for_reply
from luthier.preflight.base import RowSettings, Stage, Subject, require, run_gates
from luthier.preflight.tensors_moved import checksums
from luthier.progress import Progress, duration
from luthier.rag.corpus import read_corpus
from luthier.recipe import Recipe
from luthier.rewarding import Judges
from luthier.run_folder import RunFolder
from luthier.starts import Start, keep_start
from luthier.tracking import LOG, tracked

SPLITS = ("train", "validation", "test")  # keys of `data` in a recipe, too
PROVEN_AT = 3  # the step after which the gates of stage `steps` look


@dataclass(frozen=True)
class Data:
    """The rows of a run."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    replay: Sequence[Example] = ()
    """What may be mixed into training, in the order in which it is taken; it belongs to no split."""

    def named(self) -> dict[str, Sequence[Example]]:
        """By split, train first."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


# Data


def prepare_data(recipe: Recipe, folder: RunFolder, progress: Progress) -> Data:
    """Read, split and check the rows; the result is kept in the run's folder.

    Raises:
        DataError: a row cannot be read, or a check found an error; `findings.json` then tells all of it. Or this run
            was trained already, on other rows than the files hold now.
    """
    digests, corpus = _digests(recipe), _corpus(recipe)
    shown = canonical_hash([text for text, _ in corpus])
    key = canonical_hash([__version__, recipe.data.model_dump(), recipe.seed, digests, shown])
    kept = folder.read("data/split.json")
    if kept is not None and kept["key"] == key and kept["written"] == _written(folder):
        _require_no_errors([Finding.from_dict(f) for f in folder.read("findings.json")])
        names = (*SPLITS, *(["replay"] if recipe.data.replay else []))
        counts = {name: kept[name] for name in SPLITS}
        return Data(
            *(list(read_examples(folder / f"data/{name}.jsonl")) if counts.get(name, 1) else [] for name in names)
        )
    if recipe.data.format == "auto":
        for path in filter(None, _files(recipe).values()):
            progress.say(f"  {path}: read as {sniff(Path(path))}")
    with progress.stage("check", "reading and checking the data"), folder.timed("check"):
        data, counts, findings = divide(recipe)
        _require_what_was_trained_on(recipe, folder, kept, data)
        findings = [*findings, *corpus_leaks(corpus, data.test)]
        folder.write("findings.json", [finding.to_dict() for finding in findings])
        _require_no_errors(findings)
        for name, examples in (data.named() | ({"replay": data.replay} if data.replay else {})).items():
            write_examples(folder / f"data/{name}.jsonl", examples)
        folder.write("data/split.json", {**counts, "key": key, "written": _written(folder)})
        folder.record(data=_sources(recipe, data, digests))
    rows = ", ".join(f"{len(examples):,} {name}" for name, examples in data.named().items())
    worst = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in ("warning", "note"))
    progress.say(f"  rows: {rows}; findings: {worst} (in findings.json and the report)")
    return data


def _require_what_was_trained_on(recipe: Recipe, folder: RunFolder, kept: Mapping[str, Any] | None, data: Data) -> None:
    """Test rows may change after a training; if the others did, what was trained on may now be asked in the test."""
    is_trained = (folder / "adapter").is_dir() or any((folder / "checkpoints").glob("step-*"))
    if kept is None or not is_trained:
        return
    for name in ("train", "validation"):
        path = folder / f"data/{name}.now.jsonl"
        now = write_examples(path, data.named()[name])
        digest = sha256_of(path)
        path.unlink()
        if digest != kept["written"][f"{name}.jsonl"]:
            source = _files(recipe)[name] or recipe.data.train
            raise DataError(
                f"the {name} rows are not those that {folder.path} was trained with: {kept[name]:,} then, {now:,} now, "
                "and not the same. Bring the file back, or use another --out",
                source,
            )


def _files(recipe: Recipe) -> dict[str, str | None]:
    """The file of each split, None where it is a share of the training rows."""
    return {name: path for name, path in recipe.data.model_dump().items() if name in SPLITS}


def _corpus(recipe: Recipe) -> list[tuple[str, Where]]:
    """The texts that systems may be shown, each behind its title, and where it stands."""
    if recipe.retrieval is None:
        return []
    sources = read_corpus(Path(recipe.retrieval.corpus))
    return [(f"{s.title}\n{s.text}" if s.title else s.text, s.where) for s in sources]


def _digests(recipe: Recipe) -> dict[str, str]:
    digests = {}
    for name, path in {**_files(recipe), "replay": recipe.data.replay}.items():
        try:
            if path is not None:
                digests[name] = sha256_of(Path(path))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path) from None
    return digests


def _written(folder: RunFolder) -> dict[str, str | None]:
    """sha256 of what this stage leaves in the folder, None where a file is missing."""
    paths = [folder / "findings.json", *(folder / f"data/{name}.jsonl" for name in SPLITS)]
    paths += (folder / "data").glob("replay.jsonl")
    return {path.name: sha256_of(path) if path.is_file() else None for path in paths}


def divide(recipe: Recipe) -> tuple[Data, dict[str, Any], list[Finding]]:
    """Read, split and check the rows of a recipe, and count; nothing is written.

    The checks see the repeated rows that `data.duplicates` then leaves out of training.

    Raises:
        DataError: a row cannot be read, or there are too few to split.
    """
    settings = recipe.data

    def read(path: str) -> list[Example]:
        examples = read_examples(Path(path), settings.format, settings.instruction)
        return [with_place_for_reply(example) for example in examples] if recipe.rollout else list(examples)

    given = {name: path for name, path in _files(recipe).items() if name != "train"}
    taken = {name: read(path) for name, path in given.items() if path is not None}
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    taken |= {} if settings.test_share or "test" in taken else {"test": []}
    shares = {name: share for name, share in shares.items() if name not in taken}
    parts = split(read(settings.train), shares, recipe.seed, taken=taken)
    findings = run_checks(Data(parts.train, parts.validation, parts.test).named())
    if recipe.rollout:  # a row that is only asked needs no reply
        findings = [finding for finding in findings if finding.message != EMPTY_REPLY]
    pool = _pool(recipe, parts)
    findings += pool.findings() if pool else []
    training = _without_repeats(parts.train) if settings.duplicates == "drop" else parts.train
    counts = {
        **parts.counts,
        "train": len(training),
        "groups": parts.groups,
        "leaks": len(parts.leaks),
        "dropped_duplicates": len(parts.train) - len(training),
        "notes": list(parts.notes),
        **({"replay": pool.counts()} if pool else {}),
    }
    return Data(training, parts.validation, parts.test, pool.rows if pool else ()), counts, findings


def _pool(recipe: Recipe, parts: Split) -> Pool | None:
    """What may be replayed; an instruction that the recipe has for its own rows is not for these."""
    path = recipe.data.replay
    if path is None:
        return None
    pool = build_pool(read_examples(Path(path)), {"validation": parts.validation, "test": parts.test}, recipe.seed)
    if not pool.rows:
        raise DataError("no row of it can be replayed: each asks what a held-out row asks", path)
    return pool


def _without_repeats(examples: Sequence[Example]) -> list[Example]:
    """The examples without exact repeats of an earlier one; ids and extra fields apart."""
    seen: dict[str, Example] = {}
    for example in examples:
        seen.setdefault(exact_content(example), example)
    return list(seen.values())


def _require_no_errors(findings: Sequence[Finding]) -> None:
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        lines = [f"  {f.check}: {f.message} ({f.where[0] if f.where else 'everywhere'}) {f.advice}" for f in errors]
        raise DataError(f"the data checks found {len(errors)} error(s):\n" + "\n".join(lines))


def _sources(recipe: Recipe, data: Data, digests: Mapping[str, str]) -> dict[str, Any]:
    found = {
        name: {
            "path": path or f"a share of {recipe.data.train}",
            "sha256": digests.get(name),
            "rows": len(data.named()[name]),
        }
        for name, path in _files(recipe).items()
    }
    if recipe.data.replay:
        found["replay"] = {"path": recipe.data.replay, "sha256": digests["replay"], "rows": len(data.replay)}
    return found


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
    with progress.stage("rows", "pre-flight over the rows"), folder.timed("preflight"):
        subject = row_subject(recipe, data, loaded, template)
        _tell_replay(recipe, data, len(subject.examples) - len(data.train), folder, progress)
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
class Prepared:
    """A run whose adapter is in its model and was proven there; nothing is trained yet."""

    opened: Opened
    run: Run
    found: checkpoint.Found | None
    """Where training goes on; None: it begins."""

    def base(self) -> AbstractContextManager[None]:
        """The base alone while open, until `train_stage`; where every weight trains, that is still the model itself."""
        overwrites = assemble.adapter_of(self.opened.recipe).overwrites_base
        return nullcontext() if overwrites else self.run.injected.disabled()


def prepare_training(opened: Opened, progress: Progress, prove: bool = True, available: int | None = None) -> Prepared:
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
    asked = asked_of(opened)
    fingerprint = assemble.fingerprint_of(recipe, loaded, opened.template, opened.units, files, asked)
    trainable = replace(assemble.make_trainable(recipe, loaded, start), asked=asked)
    for note in trainable.notes:
        progress.say(f"  {note}")
    settled = _settled(recipe, folder)
    run = assemble.build_run(settled, loaded, trainable, opened.units, fingerprint, folder.path, available)
    _tell_fit(run, folder, progress)
    with folder.timed("train"):
        keep(run, folder.path, progress)
    found = _newest(run, progress)
    if found is None and subject is not None:
        if observe(run):  # before the gates: what they prove is the start that is trained from
            progress.say("  the adapter begins from what the model does with the first rows")
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


def asked_of(opened: Opened) -> Asked:
    """What an online objective asks: the rows that others train on."""
    named = opened.data.named() if opened.subject is None else opened.subject.splits
    template = assemble.template_for(opened.recipe, opened.loaded)
    runs = runs_asked(opened.recipe)
    judges = {run: assemble.artifact_record(Path(run) / "adapter")["files"] for run in runs}
    host = Host(judge=Judges() if runs else None)
    return Asked(template, named["train"], named["validation"], host, judges)


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
    if first["dead"] > 0.5:
        progress.say(
            "  ! most prompts teach nothing: raise rollout.group_size or rollout.temperature, set rollout.resample, or "
            "give part of the reward for a part of the task"
        )


def train_stage(prepared: Prepared, progress: Progress, on_step: Callable[[Step], None] | None = None) -> Run:
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
    with tracked(opened.recipe, opened.folder, progress) as tracking:
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


def _settled(recipe: Recipe, folder: RunFolder) -> Recipe:
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


def _newest(run: Run, progress: Progress) -> checkpoint.Found | None:
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
    opened: Opened,
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


def _finish(run: Run, opened: Opened, progress: Progress) -> None:
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


def keep_artifact(opened: Opened, run: Run, folder: Path) -> None:
    """Write what the run trained so far as `folder/adapter`, whole or not at all, so that it can be served.

    Raises:
        StorageError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_artifact(run, opened, folder, run.checkpoints)


def _save_artifact(run: Run, opened: Opened, source: Path) -> None:
    """Write the artifact of the run itself; `source` is the checkpoint that its weights came from."""
    _write_artifact(run, opened, opened.folder.path, source)


def _write_artifact(run: Run, opened: Opened, folder: Path, source: Path) -> None:
    final, temporary = folder / "adapter", folder / ".adapter.tmp"
    started_from = None if opened.start is None else opened.start.noted
    shutil.rmtree(temporary, ignore_errors=True)
    settle_head(run)
    try:
        assemble.save_artifact(
            temporary, opened.recipe, opened.loaded, run.injected, opened.template, run.fingerprint, started_from
        )
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{final}: the trained weights could not be written: {checkpoint.write_failure(error)}. They are safe in "
            f"{source}: mend this and run the same command again."
        ) from error


def _summary(run: Run, opened: Opened, stopped: str) -> dict[str, Any]:
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
