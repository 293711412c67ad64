"""A run's folder in, a `Report` out: read the parts, work out cost, verdict and compared rows, and write both files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier import config
from luthier.errors import StorageError
from luthier.recipe import CostSettings
from luthier.report.cost import build_cost
from luthier.report.decision import Facts, contest, decide
from luthier.report.folder import Metrics, RunParts, read_run
from luthier.report.page import render_page
from luthier.report.rows import compare_rows
from luthier.report.schema import ComparedRows, Data, LossPoint, Report, Run, Training, ValidationPoint

CURVE_POINTS = 300
"""A longer run is shown as the means of this many groups of steps."""
SEVERITIES = ("error", "warning", "note")


def build_report(folder: Path) -> Report:
    """The report of a run, as far as the run has come; nothing is written.

    Raises:
        DataError: `folder` is not a run's folder, or a file in it is damaged.
        RecipeError: the recorded prices are not those of a recipe.
    """
    parts = read_run(folder)
    _forgive_what_was_not_asked(parts)
    findings = tuple(sorted(parts.findings or (), key=lambda f: SEVERITIES.index(f.severity)))
    training = build_training(parts.training, parts.metrics)
    facts = Facts(
        evaluation=parts.evaluation,
        systems=parts.systems,
        differences=parts.differences,
        forgetting=parts.forgetting,
        findings=findings,
        split=parts.split,
        preflight=tuple(parts.preflight or ()),
        training=training,
    )
    prices = config.build(CostSettings, parts.recipe.get("cost") or {}, ["cost"])
    run = build_run(parts)
    cost = build_cost(prices, parts.systems, training, run.stages, contest(facts))
    return Report(
        verdict=decide(facts, cost),
        evaluation=parts.evaluation,
        systems=parts.systems,
        differences=parts.differences,
        forgetting=parts.forgetting,
        cost=cost,
        data=Data(split=parts.split, findings=findings, checked=parts.findings is not None),
        training=training,
        preflight=facts.preflight,
        compared_rows=_compare(parts, contest(facts)),
        run=run,
        missing=tuple(parts.missing),
    )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all, and return their paths.

    Raises:
        StorageError: the folder cannot be written.
    """
    return write_text(folder / "report.json", report_json(report)), write_text(folder / "report.html", render_page(report))


def report_json(report: Report) -> str:
    """The text of `report.json`: ASCII only, so that no character of the data acts on a terminal that shows it."""
    return report.model_dump_json(indent=2, ensure_ascii=True) + "\n"


def write_text(path: Path, text: str) -> Path:
    """Write a file by way of a temporary one beside it, so that a reader never sees half of it.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}. Free space, or name another place with --out.") from None
    return path


def _forgive_what_was_not_asked(parts: RunParts) -> None:
    """Forgetting that the recipe leaves out is not missing."""
    asked = (parts.recipe.get("evaluation") or {}).get("forgetting") or {}
    if asked.get("multiple_choice") == "none" and asked.get("text") == "none":
        parts.missing = [m for m in parts.missing if m.part != "forgetting.json"]


def _compare(parts: RunParts, pair: tuple[str | None, str | None]) -> ComparedRows:
    if parts.evaluation is None:
        return ComparedRows()
    names = [system.name for system in parts.systems]
    return compare_rows(parts.folder, names, parts.evaluation.primary_metric, *pair, parts.missing)


def build_training(training: Training | None, metrics: Metrics | None) -> Training | None:
    """The training with its curves; of a training that has not ended, what its metrics tell."""
    if metrics is None:
        return training
    if training is None:
        steps = list(metrics.losses)
        measured = {step: loss for step, loss in metrics.validation.items() if loss is not None}
        best = min(measured, key=lambda step: measured[step], default=None)
        training = Training(
            steps=max(steps) if steps else None,
            best_step=best,
            best_validation_loss=None if best is None else measured[best],
            seconds=metrics.seconds,
            tokens=metrics.tokens,
            trained_tokens=metrics.trained_tokens,
        )
    validation = tuple(ValidationPoint(step=step, loss=loss) for step, loss in metrics.validation.items())
    return training.model_copy(update={"curve": build_curve(metrics.losses), "validation": validation})


def build_curve(losses: Mapping[int, float | None]) -> tuple[LossPoint, ...]:
    """Training loss by step, grouped into at most CURVE_POINTS means, with a moving average.

    smoothed_t = m_t / (1 - a^t), m_t = a m_(t-1) + (1 - a) loss_t, over steps; its memory 1 / (1 - a) is a twentieth of
    the run and at least 4 steps. A step whose loss was not finite is skipped by the average.
    """
    steps = list(losses)
    keep = 1 - 1 / max(4.0, len(steps) / 20)
    group = max(1, -(-len(steps) // CURVE_POINTS))
    points, average, seen = [], 0.0, 0
    for start in range(0, len(steps), group):
        chunk = steps[start : start + group]
        finite = [loss for step in chunk if (loss := losses[step]) is not None]
        for loss in finite:
            average, seen = keep * average + (1 - keep) * loss, seen + 1
        mean = sum(finite) / len(finite) if finite else None
        points.append(LossPoint(step=chunk[-1], loss=mean, smoothed=average / (1 - keep**seen) if seen else None))
    return tuple(points)


def build_run(parts: RunParts) -> Run:
    """What was run, from the manifest and the recipe."""
    m = parts.manifest
    stages = m.get("stages") or {}
    return Run(
        name=parts.folder.resolve().name,
        luthier=m.get("luthier"),
        created=m.get("created"),
        machine=m.get("machine") or {},
        versions=m.get("versions") or {},
        model=m.get("model") or {},
        template=m.get("template") or {},
        data=m.get("data") or {},
        git=m.get("git"),
        recipe_sha256=m.get("recipe_sha256"),
        recipe=parts.recipe,
        stages={name: seconds for name, stage in stages.items() if (seconds := _seconds(stage)) is not None},
    )


def _seconds(stage: Any) -> float | None:
    seconds = stage.get("seconds") if isinstance(stage, Mapping) else None
    return float(seconds) if isinstance(seconds, int | float) else None


