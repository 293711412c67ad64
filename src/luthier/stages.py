"""The stages of a run over its folder: data, pre-flight, training, evaluation, report.

Each can be run by itself and again: what is there and still true is kept, so a run that was stopped goes on where it
was. `luthier run` is these in order.
"""

import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from luthier import assemble
from luthier.config import canonical_hash
from luthier.data.checks._text import exact_content
from luthier.data.checks.base import Finding, run_checks
from luthier.data.formats.base import read_examples, sniff
from luthier.data.source import Unit
from luthier.data.split import split
from luthier.data.templates import Template
from luthier.data.write import atomic_text, write_examples
from luthier.engine import checkpoint
from luthier.engine.loop import Step, train
from luthier.engine.run import Run, State
from luthier.errors import DataError, PreflightError, StorageError
from luthier.examples import Example
from luthier.files import sha256_of
from luthier.models.load import LoadedModel
from luthier.preflight.base import RowSettings, Subject, require, run_gates
from luthier.preflight.tensors_moved import checksums
from luthier.progress import Progress, duration
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder

SPLITS = ("train", "validation", "test")  # keys of `data` in a recipe, too
PROVEN_AT = 3  # the step after which the gates of stage `steps` look


@dataclass(frozen=True)
class Data:
    """The rows of a run."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]

    def named(self) -> dict[str, Sequence[Example]]:
        """By split, train first."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


# Data


def prepare_data(recipe: Recipe, folder: RunFolder, progress: Progress) -> Data:
    """Read, split and check the rows; the result is kept in the run's folder.

    Raises:
        DataError: a row cannot be read, or a check found an error; `findings.json` then tells all of it.
    """
    digests = _digests(recipe)
    key = canonical_hash([recipe.data.model_dump(), recipe.seed, digests])
    kept = folder.read("data/split.json")
    if kept is not None and kept["key"] == key:
        _require_no_errors([Finding.from_dict(f) for f in folder.read("findings.json")])
        return Data(*(list(read_examples(folder / f"data/{name}.jsonl")) for name in SPLITS))
    if recipe.data.format == "auto":
        for path in filter(None, _files(recipe).values()):
            progress.say(f"  {path}: read as {sniff(Path(path))}")
    with progress.stage("check", "reading and checking the data"), folder.timed("check"):
        data, counts = divide(recipe)
        findings = run_checks(data.named())
        folder.write("findings.json", [finding.to_dict() for finding in findings])
        _require_no_errors(findings)
        for name, examples in data.named().items():
            write_examples(folder / f"data/{name}.jsonl", examples)
        folder.write("data/split.json", {**counts, "key": key})
        folder.record(data=_sources(recipe, data, digests))
    rows = ", ".join(f"{len(examples):,} {name}" for name, examples in data.named().items())
    worst = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in ("warning", "note"))
    progress.say(f"  rows: {rows}; findings: {worst} (in findings.json and the report)")
    return data


def _files(recipe: Recipe) -> dict[str, str | None]:
    """The file of each split, None where it is a share of the training rows."""
    return {name: path for name, path in recipe.data.model_dump().items() if name in SPLITS}


def _digests(recipe: Recipe) -> dict[str, str]:
    digests = {}
    for name, path in _files(recipe).items():
        try:
            if path is not None:
                digests[name] = sha256_of(Path(path))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path) from None
    return digests


def divide(recipe: Recipe) -> tuple[Data, dict[str, Any]]:
    """Read and split the rows of a recipe, and count; nothing is written.

    Raises:
        DataError: a row cannot be read, or there are too few to split.
    """
    settings = recipe.data

    def read(path: str) -> list[Example]:
        return list(read_examples(Path(path), settings.format, settings.instruction))

    given = {name: path for name, path in _files(recipe).items() if name != "train"}
    taken = {name: read(path) for name, path in given.items() if path is not None}
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    shares = {name: share for name, share in shares.items() if name not in taken}
    parts = split(read(settings.train), shares, recipe.seed, taken=taken)
    training = _without_repeats(parts.train) if settings.duplicates == "drop" else parts.train
    return Data(training, parts.validation, parts.test), {
        **parts.counts,
        "train": len(training),
        "groups": parts.groups,
        "leaks": len(parts.leaks),
        "dropped_duplicates": len(parts.train) - len(training),
        "notes": list(parts.notes),
    }


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
    return {
        name: {
            "path": path or f"a share of {recipe.data.train}",
            "sha256": digests.get(name),
            "rows": len(data.named()[name]),
        }
        for name, path in _files(recipe).items()
    }


# Model and rows


@dataclass(frozen=True)
class Opened:
    """A run with its base model in memory, before anything is trained."""

    recipe: Recipe
    folder: RunFolder
    data: Data
    loaded: LoadedModel
    template: Template
    units: dict[str, list[Unit]]
    subject: Subject | None
    """What the gates looked at, its rows rendered; None where nothing is to be trained."""


def open_run(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> Opened:
    """Load the model, render every row, and let the gates over rows prove that what is trained is what is meant.

    Raises:
        PreflightError: a gate refused the rows; `preflight.json` tells all of it.
    """
    with progress.stage("open", f"loading {recipe.model.name}"), folder.timed("open"):
        loaded = assemble.open_model(recipe)
        template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
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
    with progress.stage("rows", "pre-flight over the rows"), folder.timed("preflight"):
        subject = row_subject(recipe, data, loaded, template)
        results = run_gates(subject, "rows")
        folder.write("preflight.json", [r.dump() for r in results])
        require(results)
        named = {"train": data.train, "validation": data.validation}
        units = {name: assemble.units_of(recipe, examples, template) for name, examples in named.items()}
    return Opened(recipe, folder, data, loaded, template, units, subject)


def row_subject(recipe: Recipe, data: Data, loaded: LoadedModel, template: Template) -> Subject:
    """What the gates look at before a model is needed."""
    return Subject(
        examples=data.train,
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


# Training


def train_stage(opened: Opened, progress: Progress, on_step: Callable[[Step], None] | None = None) -> Run:
    """Train from the newest checkpoint, or prove the model's gates and begin; ends with the best weights in place.

    Raises:
        PreflightError: a gate refused the model before step 1, or the first three steps.
        NonFiniteStep, StorageError, CheckpointError: see there; what was saved is intact.
        KeyboardInterrupt: ctrl-C; the step was finished and everything saved.
    """
    recipe, folder, loaded = opened.recipe, opened.folder, opened.loaded
    fingerprint = assemble.fingerprint_of(recipe, loaded, opened.template, opened.units)
    trainable = assemble.make_trainable(recipe, loaded)
    run = assemble.build_run(recipe, loaded, trainable, opened.units, fingerprint, folder.path)
    subject = None
    if not _resume(run, progress):
        subject = opened.subject
        if subject is None:
            raise PreflightError("this run was opened for evaluation; open_run proves its rows before it trains")
        subject.injected, subject.models = trainable.injected, trainable.models
        subject.targets = assemble.adapter_of(recipe).named_targets
        with progress.stage("model", "pre-flight on the model"), folder.timed("preflight"):
            _gates(folder, subject, "model")
            subject.checksums = checksums(loaded.model, trainable.injected)
    with progress.stage("train", "training"), folder.timed("train"), _interruptible() as interrupted:
        _steps(run, opened, subject, progress, on_step, interrupted)
    _finish(run, opened)
    return run


def _gates(folder: RunFolder, subject: Subject, stage: Any) -> None:
    results = run_gates(subject, stage)
    before = [r for r in folder.read("preflight.json") if r["gate"] not in {x.gate for x in results}]
    folder.write("preflight.json", before + [r.dump() for r in results])
    require(results)


def _resume(run: Run, progress: Progress) -> bool:
    """Put the run where its newest whole checkpoint left it; False if it has to begin."""
    for leftover in run.checkpoints.glob(".*.tmp"):
        shutil.rmtree(leftover)
    found = checkpoint.latest(run.checkpoints)
    if found is None:
        return False
    for reason in found.skipped:
        progress.say(f"  passed over a damaged checkpoint: {reason}")
    if found.step < PROVEN_AT:  # the gates of the first steps have not spoken yet: begin again, it costs seconds
        shutil.rmtree(run.checkpoints)
        return False
    checkpoint.restore(run, found.folder)
    progress.say(f"  going on after step {found.step} ({found.folder})")
    return True


def _steps(
    run: Run,
    opened: Opened,
    subject: Subject | None,
    progress: Progress,
    on_step: Callable[[Step], None] | None,
    interrupted: threading.Event,
) -> None:
    if run.steps < PROVEN_AT:  # LoRA's A has no gradient at step 1, and a schedule may end at zero: nothing to show yet
        progress.say(f"  {run.steps} steps are too few to show that every trained tensor moves")
    path = opened.folder / "metrics.jsonl"
    _mend_log(path, run.state)
    progress.resume(run.state.step, run.steps)
    with path.open("a", encoding="utf-8") as log:
        for step in train(run):
            log.write(_metrics_line(run.state))
            log.flush()
            if subject is not None and step.number == PROVEN_AT:
                _gates(opened.folder, subject, "steps")
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


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """While open, the first SIGINT or SIGTERM sets the event, looked at between steps; a second one is as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _frame: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])
        # not print: a handler may come in the middle of another print, which its buffer refuses
        os.write(2, b"\nfinishing this step and saving (once more: stop at once)\n")

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics_line(state: State) -> str:
    return json.dumps(state.last) + "\n"


def _mend_log(path: Path, state: State) -> None:
    """Drop the lines of steps that will be done again and one that was cut off; add one that a kill came before."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] < state.step]
    if state.step:
        kept.append(_metrics_line(state))
    with atomic_text(path) as file:
        file.writelines(kept)


def _finish(run: Run, opened: Opened) -> None:
    """Put the best weights in place and write the artifact and `training.json`."""
    checkpoint.load_weights(run, checkpoint.best(run))
    run.model.eval()
    final, temporary = opened.folder / "adapter", opened.folder / ".adapter.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        assemble.save_artifact(temporary, opened.recipe, opened.loaded, run.injected, opened.template)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{final}: the trained weights could not be written: {checkpoint.write_failure(error)}. They are safe in "
            f"{checkpoint.best(run)}: mend this and run the same command again."
        ) from error
    stopped = "early" if run.state.stopped_early else "finished"
    opened.folder.write("training.json", _summary(run, opened, stopped))


def _summary(run: Run, opened: Opened, stopped: str) -> dict[str, Any]:
    state = run.state
    return {
        "steps": state.step,
        "planned_steps": run.steps,
        "stopped": stopped,
        "best_step": state.best_step,
        "best_validation_loss": state.best_loss,
        "seconds": round(state.seconds, 3),
        "tokens": state.tokens,
        "trained_tokens": state.trained_tokens,
        "trainable_parameters": sum(p.numel() for p in run.injected.trainable.values()),
        "total_parameters": sum(p.numel() for p in opened.loaded.model.parameters()),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held, as the operating system counts it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def training_line(summary: dict[str, Any]) -> str:
    """What training did, in a sentence."""
    return (
        f"{summary['steps']} steps ({summary['stopped']}) in {duration(summary['seconds'])}; best validation loss "
        f"{summary['best_validation_loss']:.4f} at step {summary['best_step']}; "
        f"{summary['tokens'] / max(summary['seconds'], 1e-9):.0f} tokens/s; "
        f"peak memory {summary['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
