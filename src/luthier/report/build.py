"""A run's folder in, a `Report` out: read the parts, work out cost, verdict and compared rows, and write both files."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

from luthier import config
from luthier.data.write import atomic_text
from luthier.errors import StorageError
from luthier.evaluation.task import HEAD_TASKS, TEXT_HEAD_TASKS
from luthier.prices import Book, open_book
from luthier.recipe import CostSettings, DecisionSettings
from luthier.report.assumptions import sensitivity
from luthier.report.baking import build_baking
from luthier.report.cost import build_cost, monthly
from luthier.report.folder import Metrics, RunParts, read_run
from luthier.report.ladder import Facts
from luthier.report.page import render_page
from luthier.report.rows import compare_rows
from luthier.report.schema import ComparedRows, Data, LossPoint, Missing, Report, Run, Training, ValidationPoint
from luthier.report.verdict import contest, decide

CURVE_POINTS = 300
"""A longer run is shown as the means of this many groups of steps."""
PRICES = "prices.toml"
SEVERITIES = ("error", "warning", "note")


def build_report(folder: Path, today: date | None = None) -> Report:
    """The report of a run, as far as the run has come; nothing is written.

    `today` is what the age of a price is counted to; None: the day it is.

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
        forgetting_with_passages=parts.forgetting_with_passages,
        findings=findings,
        split=parts.split,
        preflight=tuple(parts.preflight or ()),
        training=training,
        curve=parts.curve,
        assumptions=config.build(DecisionSettings, parts.recipe.get("decision") or {}, ["decision"]),
    )
    settings = config.build(CostSettings, parts.recipe.get("cost") or {}, ["cost"])
    run = build_run(parts)
    cost = build_cost(settings, _open_book(parts, settings), facts, run, today or date.today())
    facts = replace(facts, monthly_usd=monthly(cost, settings, facts.systems))
    return Report(
        verdict=decide(facts, cost).model_copy(update={"sensitivity": sensitivity(facts)}),
        evaluation=parts.evaluation,
        systems=parts.systems,
        differences=parts.differences,
        forgetting=parts.forgetting,
        forgetting_with_passages=parts.forgetting_with_passages,
        retrieval=parts.retrieval,
        frontier=parts.frontier,
        grounding=parts.grounding,
        style=parts.style,
        abstention=parts.abstention,
        baking=build_baking(facts, parts.recipe),
        cost=cost,
        data=Data(split=parts.split, findings=findings, checked=parts.findings is not None),
        training=training,
        curve=parts.curve,
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
    return write_text(folder / "report.json", report_json(report)), write_text(
        folder / "report.html", render_page(report)
    )


def report_json(report: Report) -> str:
    """The text of `report.json`: ASCII only, so that no character of the data acts on a terminal that shows it."""
    # delete is ASCII, and stands only inside strings
    return report.model_dump_json(indent=2, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all, and its folder if there is none.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}. Name another place with --out.") from None
    with atomic_text(path) as file:
        file.write(text)
    return path


def _open_book(parts: RunParts, settings: CostSettings) -> Book:
    """The price book, with the user's own as the run's folder keeps it."""
    own = parts.folder / PRICES
    if own.is_file():
        return open_book(settings, own)
    if settings.prices is not None:
        remedy = "`luthier run` copies the book of cost.prices into the folder; until then only shipped prices count"
        parts.missing.append(Missing(part=PRICES, reason="is not there", remedy=remedy))
    return open_book(settings.model_copy(update={"prices": None}))


def _forgive_what_was_not_asked(parts: RunParts) -> None:
    """Forgetting that the recipe leaves out is not missing, nor that of a model that writes nothing, nor is retrieval
    that the recipe does not ask for."""
    asked = (parts.recipe.get("evaluation") or {}).get("forgetting") or {}
    is_asked_nothing = asked.get("multiple_choice") == "none" and asked.get("text") == "none"
    writes_nothing = parts.evaluation is not None and parts.evaluation.task in HEAD_TASKS.values()
    writes_nothing = writes_nothing or (parts.recipe.get("objective") or {}).get("type") in TEXT_HEAD_TASKS
    if is_asked_nothing or writes_nothing:
        parts.missing = [m for m in parts.missing if m.part != "forgetting.json"]
    if parts.recipe and not parts.recipe.get("retrieval"):
        parts.missing = [m for m in parts.missing if m.part != "retrieval.json"]


def _compare(parts: RunParts, pair: tuple[str | None, str | None]) -> ComparedRows:
    if parts.evaluation is None:
        return ComparedRows()
    names = [system.name for system in parts.systems]
    return compare_rows(parts.folder, names, parts.evaluation, *pair, parts.missing)


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
    measured_too = {
        "curve": build_curve(metrics.losses),
        "validation": validation,
        "slow_seconds": metrics.slow_seconds,
    }
    return training.model_copy(update=measured_too)


def build_curve(losses: Mapping[int, float | None]) -> tuple[LossPoint, ...]:
    """Training loss by step, grouped into at most CURVE_POINTS means, with a centered moving average.

    The average is over the finite losses of the steps within a fortieth of the run (at least 2 steps) on either side:
    unlike a trailing one, it does not lag behind a loss that falls fast at the start.
    """
    steps = list(losses)
    values = [losses[step] for step in steps]
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))

    def mean(start: int, stop: int) -> float | None:
        start, stop = max(0, start), min(len(values), stop)
        seen = counts[stop] - counts[start]
        return (sums[stop] - sums[start]) / seen if seen else None

    reach = max(2, len(steps) // 40)
    group = max(1, -(-len(steps) // CURVE_POINTS))
    points = []
    for start in range(0, len(steps), group):
        stop = min(start + group, len(steps))
        middle = (start + stop - 1) // 2
        points.append(
            LossPoint(step=steps[stop - 1], loss=mean(start, stop), smoothed=mean(middle - reach, middle + reach + 1))
        )
    return tuple(points)


def build_run(parts: RunParts) -> Run:
    """What was run, from the manifest and the recipe."""
    stages = {name: stage.seconds for name, stage in parts.manifest.stages.items() if stage.seconds is not None}
    joules = {name: stage.joules for name, stage in parts.manifest.stages.items() if stage.joules is not None}
    recorded = parts.manifest.model_dump(exclude={"stages"})
    return Run(name=parts.folder.resolve().name, recipe=parts.recipe, stages=stages, joules=joules, **recorded)
