"""A constitution's run as pages: `constitution.json`, `constitution.html` from nothing else, and all records to read.

    constitution.html           the verdict, measures before and after, principles, the critic, some records
    critiques/page-0001.html    every reply to a red-team prompt with every critique and revision
    comparisons/page-0001.html  every pair with what the critic says of it

What models and rows say passes `visible` and Jinja's escaping, as in every page of a report.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import computed_field

from luthier.report import plot, text
from luthier.report.build import write_text
from luthier.report.page import Tile, template
from luthier.report.part import Interval, Part

JSON, PAGE = "constitution.json", "constitution.html"
CRITIQUES, COMPARISONS = "critiques", "comparisons"
RECORDS_OF_A_PAGE = 50
Outcome: TypeAlias = Literal[
    "less_harmful", "less_harmful_refusals_unsure", "evasive", "more_harmful", "no_difference", "not_measured"
]
BADGES: dict[Outcome, str] = {
    "less_harmful": "Less harmful, and not evasive",
    "less_harmful_refusals_unsure": "Less harmful; refusals are unsure",
    "evasive": "Less harmful, but evasive",
    "more_harmful": "More harmful",
    "no_difference": "No difference shown",
    "not_measured": "Harm was not measured",
}
COLORS: dict[Outcome, str] = {
    "less_harmful": "fine_tune",
    "less_harmful_refusals_unsure": "prompt",
    "evasive": "external",
    "more_harmful": "external",
    "no_difference": "not_yet",
    "not_measured": "not_yet",
}
MODEL_COLORS = ("base", "tuned", "tuned")


class Change(Part):
    """What a model has more of than the one before training, on the same prompts."""

    model: str
    """Which one."""
    difference: Interval
    """After minus before, paired."""
    p_value: float | None
    """Probability of a difference at least this large if there were none."""
    test: str
    """How both were computed."""


class Measured(Part):
    """One measure of all models."""

    name: str
    """Of the measure."""
    kind: Literal["red_team", "harmless"]
    """Of the prompts."""
    what: str
    """In words."""
    better: Literal["higher", "lower", "neither"]
    """Which way is better."""
    prompts: int
    """Of which every model has a number."""
    values: dict[str, Interval]
    """By model, `before` first."""
    changes: tuple[Change, ...]
    """Of all others."""


class Asked(Part):
    """A principle, and how often it was used."""

    name: str
    """Its name."""
    critique: str
    """What it looks for."""
    revise: str
    """How it mends."""
    prefer: str
    """What it asks of two replies."""
    prompts: str
    """Of which prompts."""
    revisions: int
    """Replies that were criticized by it."""
    votes: int
    """Pairs that were compared by it."""
    mean_lean: float | None
    """Mean size of the critic's leaning by it, in nats; null: no pair was."""


class Bin(Part):
    """Pairs of people's of which the critic is about as sure."""

    pairs: int
    """How many."""
    told: float
    """Mean probability of what it prefers."""
    right: float
    """How often people chose that."""


class Critic(Part):
    """How the critic compares."""

    name: str
    """Which model."""
    pairs: int
    """That it was asked about."""
    not_compared: dict[str, int]
    """Pairs that it was not asked about, or that gave no row, by the reason."""
    votes: int
    """Comparisons by one principle, both orders."""
    place_bias: Interval | None
    """Mean log-odds for what stands first, in nats."""
    contradicts: float | None
    """Share of votes in which both orders name the same place."""
    read: float | None
    """Share of answers read from what was written."""
    temperature: float
    """What leanings are divided by."""
    people_pairs: int = 0
    """Pairs that people judged, and the critic as well; 0: none."""
    right: Interval | None = None
    """Share of these in which it prefers what people chose."""
    loss: Interval | None = None
    """Mean of -log p(what people chose), as the critic tells it."""
    fitted_loss: Interval | None = None
    """The same after fitting, cross-fitted."""
    off: float | None = None
    """Expected calibration error as it tells it."""
    fitted_off: float | None = None
    """The same after fitting, cross-fitted."""
    curve: tuple[Bin, ...] = ()
    """Cross-fitted."""
    probabilities: tuple[int, ...] = ()
    """Pairs learned from, by the probability of the chosen reply: ten bins from 1/2 to 1."""


class Step(Part):
    """One critique and one revision."""

    principle: str
    """By which."""
    critique: str
    """What the critic says."""
    revision: str
    """What it makes of the reply."""
    fault: str
    """Why the revision did not take the reply's place; empty: it did."""
    rewards: dict[str, float] = {}
    """What reward models say of what stands afterwards, by name."""


class Revised(Part):
    """A reply with all that was done to it."""

    id: str
    """Of the prompt."""
    prompt: tuple[tuple[str, str], ...]
    """Role and text of each turn."""
    reply: str
    """As it was."""
    rewards: dict[str, float] = {}
    """What reward models say of it, by name."""
    steps: tuple[Step, ...]
    """In their order."""
    fault: str
    """Why no row was made of what is left; empty: one was."""


class Voted(Part):
    """What one principle says of a pair."""

    principle: str
    """Which."""
    lean: float | None
    """For the first reply, in nats, mean of both orders; null: an order named nothing."""
    bias: float | None
    """For the first place."""


class Compared(Part):
    """A pair with what the critic says."""

    id: str
    """Of the pair."""
    prompt: tuple[tuple[str, str], ...]
    """Role and text of each turn."""
    a: str
    """One reply."""
    b: str
    """The other one."""
    probability: float
    """That `a` is the better one."""
    votes: tuple[Voted, ...]
    """By principle."""
    reason: str
    """Why no row was made of it; empty: one was."""


class Round(Part):
    """What a reward model says of replies to training prompts after so many rounds."""

    reward_model: str
    """Which."""
    round: int
    """0: as they were."""
    reward: Interval
    """Mean."""
    gain: Interval | None
    """Over round 0, paired; null in round 0."""


class Answer(Part):
    """A held-out prompt with the answers of all models."""

    id: str
    """Of the prompt."""
    kind: Literal["red_team", "harmless"]
    """What it is."""
    prompt: tuple[tuple[str, str], ...]
    """Role and text of each turn."""
    answers: dict[str, str]
    """By model."""
    refused: dict[str, bool]
    """Whether the rules take it for a refusal, by model."""


class Rules(Part):
    """What the lexical rules get wrong on replies that were labeled by hand."""

    refusals: int
    """Refusals among them."""
    missed: Interval
    """Share that they do not see."""
    others: int
    """Other replies among them."""
    false_alarms: Interval
    """Share that they take for refusals."""


class Trained(Part):
    """One of the trainings."""

    name: str
    """Its folder."""
    objective: str
    """What was minimized."""
    rows: int
    """That it was given."""
    steps: int
    """Taken."""
    best_step: int | None
    """Whose weights are kept."""
    best_validation_loss: float | None
    """There."""
    start_validation_loss: float | None
    """At step 0."""
    without: dict[str, int]
    """Prompts or pairs that gave no row, by the reason."""


class ConstitutionReport(Part):
    """All of it."""

    format: int = 1
    """Of this file."""
    run: str
    """The run's folder."""
    model: str
    """That was trained."""
    models: tuple[str, ...]
    """That were measured, `before` first."""
    confidence: float
    """Of every interval."""
    prompts: dict[str, int]
    """Training prompts by kind."""
    held_out: dict[str, int]
    """Held-out prompts by kind."""
    rounds: int
    """Critiques and revisions of each reply."""
    shots: int
    """Examples before each question."""
    most_refusals: float
    """By how much refusals of harmless prompts may rise."""
    outcome: Outcome
    """What follows."""
    harm: str | None
    """The measure that the outcome goes by."""
    measured: tuple[Measured, ...]
    """All measures."""
    principles: tuple[Asked, ...]
    """The constitution."""
    critic: Critic
    """Who compares."""
    trainings: tuple[Trained, ...]
    """In their order."""
    rounds_measured: tuple[Round, ...] = ()
    """Of the revisions."""
    rules: Rules
    """The refusal detector's own errors."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""
    revised: tuple[Revised, ...] = ()
    """The first replies to red-team prompts; all of them are in `critiques/`."""
    compared: tuple[Compared, ...] = ()
    """The first pairs; all of them are in `comparisons/`."""
    answers: tuple[Answer, ...] = ()
    """The first held-out prompts of each kind."""
    pages: dict[str, int]
    """Pages of records by folder."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sentence(self) -> str:
        """What came of it, in words."""
        after = self.models[-1]
        told = [_told(one, after) for one in (self._harm, self._refusals) if one is not None]
        start = {
            "less_harmful": "On held-out red-team prompts the model does less harm, and it refuses no more harmless "
            f"prompts than the {text.percent(self.most_refusals)} that were allowed",
            "less_harmful_refusals_unsure": "On held-out red-team prompts the model does less harm; whether it refuses "
            f"over {text.percent(self.most_refusals)} more of harmless prompts, so few cannot tell",
            "evasive": "On held-out red-team prompts the model does less harm, and it refuses more harmless prompts "
            f"than the {text.percent(self.most_refusals)} that were allowed",
            "more_harmful": "On held-out red-team prompts the model does more harm than before",
            "no_difference": "On held-out red-team prompts no difference in harm was shown",
            "not_measured": "Nothing independent of the critic measured harm: name constitution.reward_models or "
            "constitution.judge",
        }[self.outcome]
        return f"{start}{': ' if told else ''}{'; '.join(told)}."

    @property
    def _harm(self) -> Measured | None:
        return next((one for one in self.measured if one.name == self.harm), None)

    @property
    def _refusals(self) -> Measured | None:
        return next((one for one in self.measured if (one.name, one.kind) == ("refused", "harmless")), None)


def _told(one: Measured, model: str) -> str:
    d = next(change.difference for change in one.changes if change.model == model)
    return f"{one.name}, {one.kind.replace('_', '-')} prompts, {text.difference(d.value, d.low, d.high)}"


def write_report(report: ConstitutionReport, folder: Path) -> Path:
    """Write both files, each whole or not at all; the path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    # ASCII only: no character of the data acts on a terminal that shows it
    dumped = report.model_dump_json(indent=2, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"
    write_text(folder / JSON, dumped)
    return write_text(folder / PAGE, render(report))


def write_records(kind: str, records: Sequence[Revised] | Sequence[Compared], run: str, folder: Path) -> int:
    """Write pages of records, and return how many there are; those of an earlier report are replaced.

    Raises:
        StorageError: the folder cannot be written.
    """
    pages = [records[at : at + RECORDS_OF_A_PAGE] for at in range(0, len(records), RECORDS_OF_A_PAGE)]
    for number, shown in enumerate(pages, start=1):
        page = template("constitution_records.html.jinja").render(
            kind=kind,
            records=shown,
            number=number,
            pages=len(pages),
            first=(number - 1) * RECORDS_OF_A_PAGE + 1,
            run=run,
        )
        write_text(folder / kind / page_name(number), page)
    return len(pages)


def page_name(number: int) -> str:
    """The file of a page of records."""
    return f"page-{number:04d}.html"


def render(report: ConstitutionReport) -> str:
    """The page as text."""
    return template("constitution.html.jinja").render(
        r=report,
        badge=BADGES[report.outcome],
        color=COLORS[report.outcome],
        tiles=list(_tiles(report)),
        plots=[(one, dots) for one in report.measured if one.better != "neither" and (dots := _dots(one)) is not None],
        reliability=_reliability(report.critic),
        histogram=_histogram(report.critic),
        page_name=page_name,
        kinds={"red_team": "red-team", "harmless": "harmless"},
    )


def _tiles(report: ConstitutionReport) -> list[Tile]:
    found = []
    for one in report.measured:
        if one.name in (report.harm, "refused") and one.better != "neither":
            d = one.changes[-1].difference
            value, _, bounds = text.difference(d.value, d.low, d.high).partition(" ")
            kind = one.kind.replace("_", "-")
            found.append(Tile(f"{one.name}, {kind} prompts, after minus before", value, bounds or "no interval"))
    records = report.prompts.get("red_team", 0)
    found.append(Tile("Replies criticized and revised", text.count(records), f"{report.rounds} times each"))
    right = report.critic.right
    if right is not None:
        value, _, bounds = text.interval(right.value, right.low, right.high).partition(" ")
        found.append(Tile("The critic agrees with people", value, f"{bounds} of {report.critic.people_pairs} pairs"))
    return found


def _dots(one: Measured) -> plot.DotPlot | None:
    return plot.dot_plot(
        [(name, MODEL_COLORS[min(at, 2)], value) for at, (name, value) in enumerate(one.values.items())]
    )


def _reliability(critic: Critic) -> list[tuple[str, str, int]]:
    """Lines of a table: how sure, how often right, of how many pairs."""
    return [(text.number(one.told, 2), text.number(one.right, 2), one.pairs) for one in critic.curve]


def _histogram(critic: Critic) -> list[tuple[str, int, float]]:
    """Bins of probabilities: from where to where, how many pairs, and how long the bar is, in percent."""
    most = max(critic.probabilities, default=0)
    return [
        (f"{0.5 + at / 20:.2f} to {0.55 + at / 20:.2f}", pairs, 100 * pairs / most if most else 0.0)
        for at, pairs in enumerate(critic.probabilities)
    ]
