"""An old model's recorded answers beside a new model's: `parity.json`, and `parity.html` from nothing else."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, computed_field

from luthier.report import plot, text
from luthier.report.build import write_text
from luthier.report.page import Tile, template
from luthier.report.part import Part
from luthier.report.schema import Difference, Interval, LossPoint, Training, ValidationPoint

JSON, PAGE = "parity.json", "parity.html"
Outcome: TypeAlias = Literal["better", "as_good", "worse", "unknown"]
"""Of the new model: surely better; not worse by more than the margin; surely worse by some of it; none of these."""
BADGES: dict[Outcome, str] = {
    "better": "The new model is better",
    "as_good": "As good as the old one",
    "worse": "The new model is worse",
    "unknown": "The rows do not tell",
}
COLORS: dict[Outcome, str] = {"better": "fine_tune", "as_good": "prompt", "worse": "external", "unknown": "not_yet"}


class Compared(Part):
    """Both models by one metric or grader, on the same rows."""

    name: str
    """Of the metric, or of the grader."""
    kind: Literal["metric", "grader"]
    """Which of the two."""
    lower_is_better: bool = False
    """True: less is better."""
    rows: int
    """Rows that both were measured on."""
    old: Interval
    """Of the recorded answers."""
    new: Interval
    """Of the trained model."""
    difference: Difference
    """New minus old, paired."""
    margin: float
    """What the new model may be worse by and still be called as good (`decision.smallest_gain`)."""
    outcome: Outcome
    """What follows."""


class Spent(Part):
    """What one model's answers took, where it was recorded or measured."""

    rows_with_tokens: int = 0
    """Rows whose tokens are known."""
    prompt_tokens: float | None = None
    """Mean of an answer."""
    completion_tokens: float | None = None
    """Mean of an answer."""
    rows_with_seconds: int = 0
    """Rows whose time is known."""
    seconds: float | None = None
    """Median of an answer; of the new model, of one given alone."""
    usd_per_thousand: float | None = None
    """A thousand answers; of the new model on this machine."""


class Pair(Part):
    """One row with both answers."""

    id: str
    """Of the row."""
    asked: str
    """The last message of the prompt."""
    wanted: str
    """The answer of the validation file."""
    old: str
    """The recorded answer."""
    new: str
    """The trained model's."""
    old_score: float | None = None
    """By the primary metric; null where it has no meaning for a row."""
    new_score: float | None = None
    """The same of the new one."""


class Parity(Part):
    """The whole comparison."""

    format: int = 1
    """Of this file."""
    run: str
    """The run's folder."""
    system: str
    """Which system of the run is the new model."""
    old_model: str
    """As the answers name it."""
    new_model: str
    """The base that was trained."""
    confidence: float
    """Of every interval."""
    test_rows: int
    """That the run answered."""
    rows: int
    """Of these, with a recorded answer."""
    groups: int
    """Of these, how many ask something different."""
    compared: tuple[Compared, ...] = Field(min_length=1)
    """The primary metric first."""
    agreement: Interval
    """Share of rows that both answered alike, to the letter or as JSON."""
    both_right: float | None = None
    """Share of rows, where the primary metric is right or wrong; else null."""
    only_old_right: float | None = None
    """The same."""
    only_new_right: float | None = None
    """The same."""
    old_spent: Spent
    """Of the recorded answers."""
    new_spent: Spent
    """Of the trained model."""
    not_graded: tuple[str, ...] = ()
    """Graders that could not be asked, and rows that they could not grade, with why."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""
    pairs: tuple[Pair, ...] = ()
    """Rows whose answers differ most."""
    old_training: Training | None = None
    """The old job's result table."""
    new_training: Training | None = None
    """The run's."""

    @property
    def primary(self) -> Compared:
        """By the metric that decides."""
        return self.compared[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sentence(self) -> str:
        """What came of it, in words."""
        p = self.primary
        d = p.difference
        shown = f"{text.label(p.name)} {text.difference(d.difference, d.low, d.high)} on the same {self.rows:,} rows"
        margin = text.number(p.margin)
        return {
            "better": f"The new model answers better than {self.old_model}: {shown}.",
            "as_good": f"The new model is as good as {self.old_model}, up to {margin}: {shown}.",
            "worse": f"The new model answers worse than {self.old_model}: {shown}.",
            "unknown": (
                f"Whether the new model is as good as {self.old_model} cannot be told: {shown}; so many rows show "
                f"differences from {text.number(d.minimum_detectable_effect)} on."
            ),
        }[p.outcome]


def outcome_of(difference: Difference, margin: float, lower_is_better: bool) -> Outcome:
    """What follows from a paired interval of new minus old."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "unknown"
    if lower_is_better:
        low, high = -high, -low
    if low > 0:
        return "better"
    if low >= -margin:
        return "as_good"
    return "worse" if high < 0 else "unknown"


def write_parity(parity: Parity, folder: Path) -> Path:
    """Write both files, each whole or not at all; the path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    # ASCII only: no character of the data acts on a terminal that shows it
    dumped = parity.model_dump_json(indent=2, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"
    write_text(folder / JSON, dumped)
    return write_text(folder / PAGE, render_parity(parity))


def render_parity(parity: Parity) -> str:
    """The page as text."""
    return template("parity.html.jinja").render(
        p=parity,
        badge=BADGES[parity.primary.outcome],
        badges=BADGES,
        color=COLORS[parity.primary.outcome],
        tiles=list(_tiles(parity)),
        plots=[(one, _both(one)) for one in parity.compared],
        differences=_differences(parity),
        curves=[
            (name, plot.curve_plot(training))
            for name, training in (("The old job", parity.old_training), ("This run", parity.new_training))
            if training is not None
        ],
    )


def _tiles(parity: Parity) -> list[Tile]:
    p = parity.primary
    value, _, bounds = text.difference(p.difference.difference, p.difference.low, p.difference.high).partition(" ")
    found = [
        Tile(f"{text.label(p.name)}, new minus old", value, bounds or "no interval"),
        Tile("Answered alike", *_percents(parity.agreement)),
        Tile("Rows with both answers", text.count(parity.rows), f"of {text.count(parity.test_rows)} test rows"),
    ]
    if parity.new_spent.seconds is not None:
        old = parity.old_spent.seconds
        found.append(
            Tile(
                "One answer takes",
                text.duration(parity.new_spent.seconds),
                "here; not recorded of the old model" if old is None else f"here; {text.duration(old)} recorded",
            )
        )
    return found


def _percents(share: Interval) -> tuple[str, str]:
    """A share and its interval."""
    value, low, high = (
        text.NOT_MEASURED if v is None else text.percent(v) for v in (share.value, share.low, share.high)
    )
    return value, f"[{low}, {high}]"


def _both(one: Compared) -> plot.DotPlot | None:
    """Old and new on one axis."""
    return plot.dot_plot([("recorded answers", "base", one.old), ("new model", "tuned", one.new)])


def _differences(parity: Parity) -> plot.DotPlot | None:
    """New minus old by every metric and grader."""
    found = []
    for c in parity.compared:
        d = c.difference
        found.append((text.label(c.name), "tuned", Interval(value=d.difference, low=d.low, high=d.high)))
    return plot.dot_plot(found, is_difference=True)


def curve_training(steps: list[dict[str, float]]) -> Training:
    """A result table as the training that it tells of."""
    validated = [(s, s.get("full_validation_loss", s.get("validation_loss"))) for s in steps]
    best = min(((loss, int(s["step"])) for s, loss in validated if loss is not None), default=None)
    return Training(
        steps=int(steps[-1]["step"]) if steps else None,
        best_step=None if best is None else best[1],
        best_validation_loss=None if best is None else best[0],
        curve=tuple(LossPoint(step=int(s["step"]), loss=s.get("loss"), smoothed=None) for s in steps),
        validation=tuple(ValidationPoint(step=int(s["step"]), loss=loss) for s, loss in validated if loss is not None),
    )
