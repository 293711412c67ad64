"""The part of `report.json` that is about money. Amounts are US dollars; a month is a twelfth of a year.

`docs/cost.md` has the formula of each.
"""

from luthier.report.part import Part


class Expense(Part):
    """An amount and how it was worked out."""

    name: str
    """What it is for."""
    usd: float
    """The amount."""
    formula: str
    """The numbers it was worked out from, in words."""


class PriceUsed(Part):
    """A price that an amount of this report rests on."""

    name: str
    """Its entry in the price book, `provider/model`; `recipe` where the recipe itself says it."""
    what: str
    """What is paid for: training, input, output, tuned_input, tuned_output, hour or kwh."""
    usd: float
    """The price."""
    unit: str
    """For how much: per million tokens, an hour, a kWh."""
    read: str | None
    """The day on which the source said so, as ISO 8601; null for a price of the recipe."""
    age: str
    """The same in words, with its age when the report was made."""
    old: bool
    """Read more than a year before the report was made."""
    source: str
    """Where it stands."""
    note: str
    """What a reader must know of it."""


class MachineCost(Part):
    """An hour of the machine that ran, and how long it is paid for."""

    usd_per_hour: float
    """The price of an hour."""
    formula: str
    """How it was worked out, in words."""
    kept_hours_per_month: float
    """Hours a month that are paid for while it answers or waits."""
    watts: float | None
    """What it draws at work; null: neither measured nor set."""
    watts_from: str
    """Where that is from, in words."""


class Energy(Part):
    """What the run took from the socket, as far as it is known."""

    kwh: float
    """The energy."""
    usd: float
    """At the price of a kWh."""
    formula: str
    """Where it is from, in words."""


class HostedCost(Part):
    """Answers of one system at one entry of the price book."""

    name: str
    """The entry."""
    usd_per_thousand: float | None = None
    """A thousand answers, of as many tokens as the system read and wrote; null: the entry has no such price."""
    usd_per_month: float | None = None
    """At `cost.answers_per_month`."""
    note: str = ""
    """Why it is null, or what it rests on."""


class SystemCost(Part):
    """What answers of one system cost."""

    system: str
    """The system."""
    seconds_per_answer: float | None = None
    """Measured on this machine."""
    seconds_include: str | None = None
    """What these seconds hold besides answering; null: nothing."""
    prompt_tokens_per_answer: float | None = None
    """Measured."""
    completion_tokens_per_answer: float | None = None
    """Measured."""
    busy_usd_per_thousand: float | None = None
    """A thousand answers on this machine, the seconds of work alone."""
    hours_per_month: float | None = None
    """Hours that answering takes at `cost.answers_per_month`."""
    here_usd_per_thousand: float | None = None
    """A thousand answers on this machine at `cost.answers_per_month`, hours in which it waits included."""
    here_usd_per_month: float | None = None
    """The same, for a month."""
    hosted: tuple[HostedCost, ...] = ()
    """At each entry that the recipe compares with."""


def price_of(system: SystemCost) -> float | None:
    """A thousand answers here, or where they are not given here, at the first place that has a price."""
    known = (hosted.usd_per_thousand for hosted in system.hosted if hosted.usd_per_thousand is not None)
    return next(known, None) if system.here_usd_per_thousand is None else system.here_usd_per_thousand


class BreakEven(Part):
    """From how many answers on fine-tuning has paid for itself, against one cheaper rung."""

    name: str
    """Which two ways of answering are compared."""
    baseline: str
    """The system that it is compared with."""
    fine_tuned_at: str
    """Where the fine-tuned model answers: `here`, or an entry of the price book."""
    baseline_at: str
    """Where the baseline does."""
    once_usd: float
    """Paid once, for the fine-tuned model."""
    fine_tuned_usd_per_thousand: float
    """Then, for a thousand answers at `cost.answers_per_month`."""
    baseline_usd_per_thousand: float
    """For a thousand answers of the baseline."""
    answers: int | None
    """Answers, at this volume, at which both cost the same; null: never."""
    months: float | None
    """At `cost.answers_per_month`."""
    explanation: str
    """The same in a sentence."""
    again_answers_per_month: int | None
    """From this volume on it pays even if the training is done again as often as the recipe says; null: at none."""


class PromptSaving(Part):
    """Prompt tokens that the fine-tuned model does without."""

    baseline: str
    """The system whose prompt is longer."""
    name: str
    """The entry at whose price the tokens of the baseline are counted."""
    tokens_per_answer: float
    """Its prompt tokens minus those of the fine-tuned model."""
    usd_per_month: float
    """At `cost.answers_per_month` and the price of the entry's input."""


class Sensitivity(Part):
    """How much one assumption must change until another choice is the cheapest."""

    assumption: str
    """What changes, alone."""
    now: str
    """Its value."""
    factor: float | None
    """It is multiplied by this; null: no factor changes the choice."""
    then: str | None
    """Its value at that factor."""
    cheapest: str | None
    """The choice that is cheapest beyond it."""


class Cost(Part):
    """What the run cost, and what answers will."""

    machine: MachineCost
    """The machine that ran."""
    prices: tuple[PriceUsed, ...]
    """Every price of the book that an amount rests on."""
    warnings: tuple[str, ...]
    """What could make an amount misleading: old prices, seconds that look like pauses."""
    answers_per_month: int
    """The recipe's expected volume."""
    run: tuple[Expense, ...]
    """This run, by stage, on this machine."""
    run_usd: float | None
    """Their sum; null if no time was recorded."""
    energy: Energy | None
    """Of the run; null if nothing is known of it."""
    hosted_training: tuple[Expense, ...]
    """The same training tokens at each entry that trains."""
    systems: tuple[SystemCost, ...]
    """By system."""
    savings: tuple[PromptSaving, ...]
    """What the shorter prompt of the fine-tuned model saves."""
    break_even: tuple[BreakEven, ...]
    """Fine-tuned against each cheaper rung, the best baseline first; empty if either side is missing."""
    quarterly: tuple[Expense, ...]
    """Doing it again as often as the recipe says, each quarter unless it says otherwise, for a year."""
    choices: tuple[str, ...]
    """The ways to answer that sensitivity compares, the cheapest first, with what a month costs."""
    sensitivity: tuple[Sensitivity, ...]
    """By assumption."""
