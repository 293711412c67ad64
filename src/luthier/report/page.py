"""`report.html` from a `Report`: one page without network, script or picture files, safe to open and to forward.

Every value that reaches the page passes `visible` and then Jinja's escaping; there is no `safe` filter in the template
and no markup made in Python, so a row of data can only ever be text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from luthier.evaluation.retrieval import how_judged, label
from luthier.report import plot, text
from luthier.report.cost_schema import Cost, PriceUsed, price_of
from luthier.report.frontier import frontier_plot
from luthier.report.frontier_parts import Frontier
from luthier.report.ladder import FEWEST_ROWS, cut_share, is_loss, rung, seconds_of_one
from luthier.report.phrases import promise_text
from luthier.report.schema import Evaluation, Report, System, Trial
from luthier.report.verdict import forgetting_sentence

BADGES = {
    "prompt": "Use a plain prompt",
    "few_shot": "Use a prompt with examples",
    "rag": "Retrieve, do not train",
    "fine_tune": "Fine-tune",
    "fine_tune+rag": "Fine-tune and retrieve",
    "external": "No language model needed",
    "not_yet": "Not yet",
}
FOLD = 420
"""Texts longer than this many characters are folded."""


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of the page."""

    name: str
    value: str
    note: str


def render_page(report: Report) -> str:
    """The whole page as text."""
    primary = report.evaluation.primary_metric if report.evaluation else ""
    return template("page.html.jinja").render(
        report=report,
        badges=BADGES,
        badge=BADGES[report.verdict.recommendation],
        tiles=tiles(report),
        ladder=plot.ladder_plot(report),
        differences=plot.difference_plot(report),
        curve=plot.curve_plot(report.training),
        by_rows=plot.rows_plot(report.curve),
        tradeoff_plot=frontier_plot(report.frontier),
        metrics=metric_names(report.systems, primary),
        best=best_values(report),
        competitions=competitions(report.systems),
        failures=[(s.name, m, f) for s in report.systems for m, f in s.failures.items()],
        assumed=report.verdict.assumptions,
        tipping=[s for s in report.verdict.sensitivity if s.changes],
        steady=list(dict.fromkeys(s.assumption for s in report.verdict.sensitivity)),
        fewest_rows=FEWEST_ROWS,
    )


def render_frontier(frontier: Frontier, name: str) -> str:
    """A page of its own for the remedies against forgetting of the run of this name."""
    return template("remember.html.jinja").render(frontier=frontier, plot=frontier_plot(frontier), name=name)


@cache
def template(name: str) -> Template:
    """A template of this folder, in which every value is shown as text."""
    environment = Environment(
        loader=PackageLoader("luthier.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "p_value": text.p_value,
        "usd": text.usd,
        "count": text.count,
        "compact": text.compact,
        "duration": text.duration,
        "memory": text.memory,
        "percent": text.percent,
        "label": text.label,
        "toml": text.toml,
        "as_text": text.as_text,
        "file_name": text.file_name,
        "without_folders": text.without_folders,
        "assumed": lambda value: text.number(value, 2) if isinstance(value, float) else str(value),
        "shortened": shortened,
        "first_line": text.first_line,
        "factor": text.factor,
        "price": text.price,
    }
    environment.globals |= {
        "interval": text.interval,
        "difference": text.difference,
        "before_after": plot.before_after,
        "is_loss": is_loss,
        "forgetting_sentence": forgetting_sentence,
        "cut_share": cut_share,
        "promise_text": promise_text,
        "seconds_of_one": seconds_of_one,
        "retrieval_label": label,
        "how_judged": how_judged,
        "hosted_remarks": hosted_remarks,
        "ages": ages,
        "fold": FOLD,
    }
    return environment.get_template(name)


def _finalize(value: Any) -> Any:
    # markup is what a macro of the template returned: its data went through here already
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def shortened(tree: Any) -> Any:
    """A copy of plain values in which every absolute path is its last two parts."""
    if isinstance(tree, Mapping):
        return {key: shortened(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [shortened(value) for value in tree]
    return text.file_name(tree) if isinstance(tree, str) else tree


def hosted_remarks(cost: Cost) -> list[str]:
    """What must be known of hosted prices, each place with the systems that it is true of."""
    found: dict[tuple[str, str], list[str]] = {}
    for paid in cost.systems:
        for hosted in paid.hosted:
            if hosted.note and not paid.seconds_include:
                found.setdefault((hosted.name, hosted.note), []).append(paid.system)
    return [f"{name}, {', '.join(systems)}: {note}." for (name, note), systems in found.items()]


def ages(cost: Cost) -> list[str]:
    """Each entry of the price book with the age of its oldest price."""
    found: dict[str, PriceUsed] = {}
    for used in cost.prices:
        oldest = found.setdefault(used.name, used)
        if (used.read or "") < (oldest.read or ""):
            found[used.name] = used
    return [f"{name}: {used.age}" for name, used in found.items()]


def metric_names(systems: Sequence[System], primary: str) -> list[str]:
    """Every measured metric, the primary one first, then in the order of the systems."""
    seen = dict.fromkeys([primary, *(m for s in systems for m in s.metrics)])
    return [m for m in seen if any(m in s.metrics for s in systems)]


@dataclass(frozen=True)
class Competition:
    """The ways to ask that one system tried on validation rows, the winner marked."""

    system: str
    rows: int
    trials: tuple[tuple[Trial, bool], ...]
    """Each with whether it won."""
    winner: Trial
    mean_shots: float | None
    mean_passages: float | None

    @property
    def has_examples(self) -> bool:
        """Whether some of the ways show solved examples."""
        return any(trial.examples for trial, _ in self.trials)


def competitions(systems: Sequence[System]) -> list[Competition]:
    """Of every system that chose between ways to ask."""
    found = []
    for system in systems:
        chosen = system.details
        won = [
            (t.addition, t.place, t.examples, t.passages)
            == (chosen.addition, chosen.place, chosen.examples, chosen.passages)
            for t in chosen.tried
        ]
        if any(won):
            winner = chosen.tried[won.index(True)]
            trials = tuple(zip(chosen.tried, won, strict=True))
            means = chosen.mean_shots, chosen.mean_passages
            found.append(Competition(system.name, winner.rows, trials, winner, *means))
    return found


def best_values(report: Report) -> dict[str, float]:
    """The best value of each metric among the held-out systems."""
    down = report.evaluation.lower_is_better if report.evaluation else ()
    found: dict[str, list[float]] = {}
    for system in report.systems:
        for metric, measured in system.metrics.items():
            if system.held_out and measured.value is not None:
                found.setdefault(metric, []).append(measured.value)
    return {metric: min(values) if metric in down else max(values) for metric, values in found.items()}


def tiles(report: Report) -> list[Tile]:
    """The key numbers, as far as they were measured."""
    return [*_score_tiles(report), *_failure_tiles(report), *_forgetting_tiles(report), *_cost_tiles(report)]


def _score_tiles(report: Report) -> list[Tile]:
    verdict, evaluation = report.verdict, report.evaluation
    shown = next((s for name in (verdict.system, verdict.fine_tuned) for s in report.systems if s.name == name), None)
    if evaluation is None or shown is None:
        return []
    m = shown.metrics[evaluation.primary_metric]
    known = "" if m.low is None or m.high is None else text.interval(m.value, m.low, m.high).partition(" ")[2] + ", "
    found = [
        Tile(
            f"{text.label(evaluation.primary_metric)}, {shown.name}",
            text.number(m.value),
            f"{known}{_rows(shown, evaluation)}",
        )
    ]
    d = verdict.difference
    if d is not None and d.difference is not None:
        value, _, bounds = text.difference(d.difference, d.low, d.high).partition(" ")
        found.append(Tile(f"{d.a} minus {d.b}", value, bounds or "no interval"))
    return found


def _rows(system: System, evaluation: Evaluation) -> str:
    """`200 rows`, or `200 rows, 40 different`."""
    different = system.n if evaluation.groups is None else evaluation.groups
    return f"{text.count(system.n)} rows" + (f", {text.count(different)} different" if different < system.n else "")


def _failure_tiles(report: Report) -> list[Tile]:
    name = report.verdict.system or report.verdict.fine_tuned
    system = next((s for s in report.systems if s.name == name), None)
    if system is None or not system.failures:
        return []
    metric, worst = max(system.failures.items(), key=lambda item: item[1].per_million)
    note = f"{text.label(metric)}; at most {text.count(worst.per_million_high)}"
    return [Tile("Failures per million", text.count(worst.per_million), note)]


def _forgetting_tiles(report: Report) -> list[Tile]:
    name = report.verdict.system or report.verdict.fine_tuned
    second = any(s.name == name and rung(s) == "fine_tune+rag" for s in report.systems)
    forgetting = report.forgetting_with_passages if second else report.forgetting
    if forgetting is None or not forgetting.measures:
        return []
    measures = forgetting.measures
    shown = next((m for m in measures if is_loss(m)), measures[0])
    d = shown.difference
    value, _, bounds = text.difference(d.value, d.low, d.high).partition(" ")
    return [Tile("Forgetting", value, f"{bounds} {text.label(shown.name)}".strip())]


def _cost_tiles(report: Report) -> list[Tile]:
    cost, found = report.cost, []
    if cost.run_usd is not None:
        seconds = report.training.seconds if report.training else None
        found.append(
            Tile(
                "This run cost",
                text.usd(cost.run_usd),
                f"{text.duration(seconds)} of training" if seconds else "this machine",
            )
        )
    name = report.verdict.system or report.verdict.fine_tuned
    paid = next((c for c in cost.systems if c.system == name), None)
    if paid is not None and paid.here_usd_per_thousand is not None:
        known = [h for h in paid.hosted if h.usd_per_thousand is not None]
        best = min(known, key=lambda h: h.usd_per_thousand or 0.0, default=None)
        hosted = "" if best is None else f"; {text.usd(best.usd_per_thousand)} at {best.name}"
        found.append(Tile("A thousand answers", text.usd(paid.here_usd_per_thousand), f"here{hosted}"))
    elif paid is not None and price_of(paid) is not None:
        found.append(Tile("A thousand answers", text.usd(price_of(paid)), "there; none here"))
    return found
