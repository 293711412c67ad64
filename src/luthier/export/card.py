"""The model card of an artifact (`README.md`): what the run's own record says, and what the gate measured."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.export.parity import both_scores, in_nats
from luthier.report import Report, build_report
from luthier.report.build import write_text
from luthier.report.schema import Interval, System
from luthier.report.text import visible, without_folders

CARD = "README.md"


def write_card(run: Path, folder: Path, parity: Mapping[str, Any]) -> None:
    """Write the card of the artifact in `folder`.

    Raises:
        DataError: a file of the run is damaged.
        StorageError: the disk is full.
    """
    write_text(folder / CARD, card_of(build_report(run), parity))


def card_of(report: Report, parity: Mapping[str, Any]) -> str:
    """The text of a card; no folder of whoever ran it is in it."""
    parts = (_front(report), _base(report), _training(report), _evaluation(report), _parity(parity))
    return without_folders(visible("\n".join(line for part in parts for line in part))) + "\n"


def _front(report: Report) -> Iterator[str]:
    """What hubs read; JSON strings are YAML strings, too."""
    model = report.run.model
    yield "---"
    yield f"base_model: {json.dumps(str(model.get('name')))}"
    if model.get("license"):
        yield "license: other"
        yield f"license_name: {json.dumps(str(model['license']))}"
    yield "pipeline_tag: text-generation"
    yield "tags: [luthier]"
    yield "---"
    yield ""
    yield f"# {report.run.name}"
    yield ""
    yield report.verdict.sentence
    yield ""


def _base(report: Report) -> Iterator[str]:
    run = report.run
    yield "## Base model and data"
    yield ""
    license = run.model.get("license") or "not stated where it came from"
    yield f"- base: {run.model.get('name')} ({run.model.get('origin')}); license: {license}"
    for name, split in run.data.items():
        digest = f", sha256 {split['sha256']}" if split.get("sha256") else ""
        yield f"- {name}: {split.get('rows'):,} rows ({split.get('path')}{digest})"
    yield f"- chat template: {run.template.get('name')}, sha256 {run.template.get('sha256')}"
    yield ""


def _training(report: Report) -> Iterator[str]:
    run, training = report.run, report.training
    yield "## Training"
    yield ""
    for part in ("adapter", "objective", "optimizer"):
        settings = run.recipe.get(part) or {}
        told = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "type")
        yield f"- {part}: {settings.get('type')}" + (f" ({told})" if told else "")
    if run.started_from is not None:
        digests = ", ".join(f"{name} {digest}" for name, digest in run.started_from.files.items())
        yield f"- began with the adapter that {run.started_from.run} trained (sha256: {digests})"
    if training is not None and training.steps is not None:
        loss = training.best_validation_loss
        best = (
            ""
            if loss is None
            else f"; validation loss {loss:.4f} at step {training.best_step}, whose weights these are"
        )
        yield f"- {training.steps} steps{best}"
    yield f"- Luthier {run.luthier}, recipe sha256 {run.recipe_sha256}, seed {run.recipe.get('seed')}"
    yield ""


def _evaluation(report: Report) -> Iterator[str]:
    evaluation = report.evaluation
    yield "## Evaluation"
    yield ""
    if evaluation is None:
        yield "The run was not evaluated."
        yield ""
        return
    metric = evaluation.primary_metric
    yield f"On {evaluation.n} test rows that were never trained on; intervals at {evaluation.confidence:.0%}."
    yield ""
    yield f"| system | {metric} | |"
    yield "|---|---|---|"
    for system in report.systems:
        yield f"| {system.name} | {_told(system.metrics.get(metric))} | {_remark(system)} |"
    yield ""
    for measure in report.forgetting.measures if report.forgetting is not None else ():
        yield f"- general ability, {measure.name}: {_told(measure.before)} before, {_told(measure.after)} after"
    yield ""


def _remark(system: System) -> str:
    return (system.note or "").replace("|", "/").replace("\n", " ")


def _told(interval: Interval | None) -> str:
    if interval is None or interval.value is None:
        return "not measured"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    probes, nats, task = parity["probes"], parity["logprob_difference_nats"], parity["task"]
    kind = f" ({parity['type']})" if parity["type"] else ""
    yield "## This artifact beside the trained model"
    yield ""
    yield (
        f"Format {parity['format']}{kind}, opened in {parity['program']}: {probes['rows']} of {probes['of']} test rows "
        f"were asked, {parity['tokens']:,} tokens answered. `parity.json` has every check."
    )
    yield ""
    for name, difference in nats.items():
        yield f"- {name.replace('_', ' ')}: {in_nats(difference)}"
    yield f"- tokens that are the trained model's first choice: {parity['greedy_agreement']['trained']:.2%}"
    if task is not None:
        yield f"- {task['metric']} on these rows: {both_scores(task)}"
