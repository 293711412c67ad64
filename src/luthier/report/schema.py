"""What a report says, as data: `report.json` is this, and `report.html` is drawn from nothing else.

The parts that come straight from a run's folder (systems, differences, findings, gates, forgetting, training) have the
shape of the files they are read from; the verdict, the cost and the picked rows are worked out here. Numbers that were
not finite where they were measured are null. Money is US dollars, time is seconds, shares are 0 to 1.
"""

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field

from luthier.evaluation.rungs import Rung
from luthier.report.abstention_parts import Abstention as Abstention
from luthier.report.baking_parts import Baking as Baking
from luthier.report.cost_schema import Cost as Cost
from luthier.report.frontier_parts import Frontier as Frontier, Replay as Replay
from luthier.report.grounding_parts import Grounding as Grounding
from luthier.report.measured import Retrieval as Retrieval
from luthier.report.part import Interval as Interval, Part as Part
from luthier.report.style_parts import Style as Style

Recommendation = Literal["external", "prompt", "few_shot", "rag", "fine_tune", "fine_tune+rag", "not_yet"]
Severity = Literal["error", "warning", "note"]


class Tokens(Part):
    """Tokens of all answers of one system."""

    prompt: int = 0
    """Tokens read."""
    completion: int = 0
    """Tokens written."""


class Failures(Part):
    """How often an answer did not have the wanted form."""

    count: int
    """Failed answers among the test rows."""
    per_million: float
    """The same share, per million answers."""
    per_million_high: float
    """Upper bound of that share that n rows allow: with none seen in n rows, it is far from zero."""


class Trial(Part):
    """A way to ask that competed on validation rows."""

    addition: str = ""
    """What it adds to the row's own prompt; empty: nothing."""
    place: str = ""
    """Where: in the `system` message or after what the `user` asked."""
    examples: str = ""
    """How examples are chosen; empty for a prompt without examples."""
    passages: int | None = None
    """Retrieved passages before a question, at most; null for a prompt without passages."""
    validation_score: float | None = None
    """Its value of the primary metric on these rows; null if it was not finite, or if nothing was answered."""
    rows: int = 0
    """Validation rows that were answered."""
    perplexity: float | None = None
    """Of the wanted replies, where ways to ask raced by that."""
    perplexity_rows: int = 0
    """On so many validation rows."""


class Details(Part):
    """What a system says about how it answered; keys that are not named here are kept as they are."""

    model_config = ConfigDict(extra="allow")

    answers_cut_off: int = 0
    """Answers that ran into the longest answer allowed."""
    tried: tuple[Trial, ...] = ()
    """The ways to ask that competed; the winner is the one with the next four values."""
    addition: str = ""
    """Of the winner."""
    place: str = ""
    """Of the winner."""
    examples: str = ""
    """Of the winner."""
    passages: int | None = None
    """Of the winner."""
    mean_passages: float | None = None
    """Retrieved passages before a question, on average; null for a prompt without passages."""
    mean_shots: float | None = None
    """Solved examples before a question, on average; null for a prompt without examples."""
    usd: float | None = None
    """What an endpoint asks for the answers to all rows, by its own prices; null without an endpoint or prices."""
    usd_paid: float | None = None
    """What the run has paid the endpoint, attempts without an answer included."""


class System(Part):
    """What was evaluated: a model with its prompt, or an external program."""

    name: str
    """The name of its table in the recipe."""
    type: str
    """The file in `luthier/evaluation/systems` that ran it."""
    rung: Rung | None = None
    """Where it stands on the ladder; null in runs of versions that did not note it."""
    note: str | None = None
    """What a reader must know of it."""
    held_out: bool = True
    """False: it may have seen the test rows, so it is shown, never chosen, and never a baseline."""
    baseline: bool = False
    """True: the model with a prompt alone, held out, so that the fine-tuned model must beat it. A program is none."""
    n: int = Field(ge=0)
    """Test rows it answered."""
    metrics: dict[str, Interval] = {}
    """Metric name to value and interval."""
    tokens: Tokens | None = None
    """Tokens read and written over all rows; null for a program that has no tokens."""
    seconds: float | None = None
    """Seconds it took to answer all rows, on the machine of `run.machine`."""
    alone_seconds: tuple[float, ...] = ()
    """Seconds of some rows that were answered once more, each alone; empty if that was not measured."""
    failures: dict[str, Failures] = {}
    """Format failures by metric."""
    details: Details = Details()
    """How it answered."""


class Difference(Part):
    """`a` minus `b` on the same rows."""

    a: str
    """The system that the difference favors when it is positive (for a metric where higher is better)."""
    b: str
    """The system it is compared with."""
    metric: str
    """What is compared."""
    difference: float | None = None
    """Value of `a` minus value of `b`."""
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    p_value: float | None = None
    """Probability of a difference at least this large if there were none."""
    test: str | None = None
    """How interval and p-value were computed."""
    minimum_detectable_effect: float | None = None
    """The smallest true difference of these two that this many rows would show four times in five."""


class Evaluation(Part):
    """How the systems were measured."""

    task: str
    """What kind of answer was expected."""
    primary_metric: str
    """The metric that decides."""
    confidence: float = 0.95
    """Coverage of every interval."""
    n: int = 0
    """Test rows."""
    groups: int | None = None
    """Test rows that ask something different: what intervals and tests count. Null if it was not worked out."""
    lower_is_better: tuple[str, ...] = ("perplexity",)
    """Metrics for which a smaller value is the better one."""
    bounds: dict[str, tuple[float, float]] = {}
    """Worst and best value of each metric that has both; a difference is judged as a share of what lies between."""


class Evidence(Part):
    """One fact that the verdict rests on."""

    text: str
    """The fact, in a sentence."""
    source: str
    """The file of the run's folder that it comes from."""


class OtherAssumption(Part):
    """One assumption at another value, everything measured as it is."""

    assumption: str
    """A key of the recipe's `[decision]`."""
    now: Any
    """Its value in this verdict."""
    other: Any
    """The value that was tried."""
    recommendation: Recommendation
    """What would then be recommended."""
    system: str | None = None
    """The system that would then be recommended."""
    changes: bool = False
    """Whether that is another recommendation, or another system, than now."""


class Verdict(Part):
    """What to do, and why."""

    recommendation: Recommendation
    """The rung of the ladder to take; `not_yet` when the run cannot tell."""
    sentence: str
    """The whole of it for someone who reads nothing else: what to do, by how much, at what cost, and what to mind."""
    headline: str
    """The start of `sentence`: what to do, and by how much."""
    rule: str
    """The rule of `luthier/report/decision.py` that decided."""
    system: str | None = None
    """The system that is recommended; null for `not_yet`."""
    fine_tuned: str | None = None
    """The best fine-tuned system that counts."""
    baseline: str | None = None
    """The best held-out language model without training: what fine-tuning had to beat."""
    difference: Difference | None = None
    """Fine-tuned minus best baseline on the primary metric."""
    warnings: tuple[str, ...] = ()
    """What could make the verdict misleading."""
    evidence: tuple[Evidence, ...] = ()
    """The facts, each with its source."""
    would_change: tuple[str, ...] = ()
    """What would lead to another recommendation."""
    assumptions: dict[str, Any] = {}
    """The recipe's `[decision]`, which the rules were asked with."""
    sensitivity: tuple[OtherAssumption, ...] = ()
    """Each assumption of the recipe's `[decision]` at other values, and what would then be recommended."""


class Change(Part):
    """The paired change of a forgetting measure, after minus before."""

    value: float | None = None
    """After minus before."""
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    p_value: float | None = None
    """Probability of a change at least this large if there were none."""


class Measure(Part):
    """One measure of general ability, before and after training."""

    name: str
    """Such as multiple choice accuracy."""
    unit: str = ""
    """Such as share or perplexity."""
    n: int = 0
    """Questions, or windows of text: what intervals and tests count."""
    tokens: int | None = None
    """Tokens in the windows of text; null for questions."""
    higher_is_better: bool = True
    """Which direction is a loss of ability."""
    before: Interval
    """The base model."""
    after: Interval
    """The fine-tuned model."""
    difference: Change
    """After minus before, paired."""
    minimum_detectable_effect: float | None = None
    """The smallest true change that this many units would show four times in five."""


class Forgetting(Part):
    """What general ability the training cost."""

    measures: tuple[Measure, ...] = ()
    """Each with before, after and change."""
    verdict: str = ""
    """`none measured`, `slight` or `clear`, or a sentence."""


class Place(Part):
    """A line of a data file."""

    path: str
    """The file."""
    line: int
    """1-based line, or row number in CSV and Parquet."""
    row: int = 0
    """Number of the row in a JSON array, from 1; 0 where the line tells all."""


class Finding(Part):
    """What a data check reports."""

    check: str
    """The check's name."""
    severity: Severity
    """Errors stop a run."""
    message: str
    """What was found."""
    advice: str = ""
    """What to do about it."""
    where: tuple[Place, ...] = ()
    """The first places; `count` says how many there are."""
    count: int = 0
    """How often."""


class Split(Part):
    """How the rows were divided."""

    train: int = 0
    """Rows trained on."""
    validation: int = 0
    """Rows that chose the checkpoint."""
    test: int = 0
    """Rows that nothing was chosen on."""
    groups: int = 0
    """Groups of rows that were kept on one side."""
    dropped_duplicates: int = 0
    """Repeated training rows left out."""
    leaks: int = 0
    """Rows found on both sides of the split."""
    notes: tuple[str, ...] = ()
    """Where a share could not be kept, and why."""
    replay: Replay | None = None
    """Null if nothing was replayed."""


class Data(Part):
    """The rows: how they were split, and what the checks found."""

    split: Split | None = None
    """Null if the run has no split yet."""
    findings: tuple[Finding, ...] = ()
    """Errors first, then warnings, then notes."""
    checked: bool = False
    """False: no data check has run, so no finding means nothing."""


class Gate(Part):
    """A pre-flight proof."""

    gate: str
    """Its name."""
    proves: str = ""
    """What it proves when it passes."""
    passed: bool
    """False stops a run."""
    message: str = ""
    """What it found."""
    details: Any = None
    """The numbers behind it."""


class LossPoint(Part):
    """A point of the training curve: the mean over a few steps when the run is long."""

    step: int
    """Last step of the point."""
    loss: float | None
    """Mean loss over the steps of the point; null if it was not finite."""
    smoothed: float | None
    """Mean loss of the steps around it, a fortieth of the run on either side; null if none was finite."""


class ValidationPoint(Part):
    """One validation."""

    step: int
    """After this step."""
    loss: float | None
    """Validation loss; null if it was not finite."""


class Training(Part):
    """How the training went."""

    steps: int | None = None
    """Steps taken."""
    planned_steps: int | None = None
    """Steps asked for."""
    stopped: Literal["finished", "early", "interrupted", "unknown"] = "unknown"
    """Why it ended; unknown while it runs or if it was killed."""
    best_step: int | None = None
    """The step whose weights were kept."""
    best_validation_loss: float | None = None
    """Its validation loss."""
    start_validation_loss: float | None = None
    """Before the first step; null in runs of older versions."""
    seconds: float | None = None
    """Seconds of training."""
    tokens: int | None = None
    """Tokens in all rows of all steps, prompts included: what a hosted service bills."""
    trained_tokens: int | None = None
    """Tokens that the loss was computed on."""
    trainable_parameters: int | None = None
    """Numbers that were trained."""
    total_parameters: int | None = None
    """Numbers in the model."""
    peak_memory_bytes: int | None = None
    """Most memory held."""
    slow_seconds: float = 0.0
    """Seconds beyond the median step of steps that took over ten times as long: pauses, most likely."""
    curve: tuple[LossPoint, ...] = ()
    """Training loss, at most a few hundred points."""
    validation: tuple[ValidationPoint, ...] = ()
    """Validation losses."""


class Turn(Part):
    """One message of a prompt."""

    role: str
    """Who speaks."""
    text: str
    """What is said; tool calls as JSON."""


class Answer(Part):
    """What one system answered to a row."""

    system: str
    """The system."""
    text: str
    """Its answer."""
    score: float | None
    """Its score on `score_metric` of the rows; null if the record has none."""
    mark: Literal["right", "partly", "wrong", "unscored"]
    """Best score, some, worst, or no score that has bounds."""


class ComparedRow(Part):
    """A test row on which the systems differ."""

    id: str
    """The row's id."""
    prompt: tuple[Turn, ...]
    """What the fine-tuned system (else the first) was asked."""
    target: str
    """The wanted answer."""
    answers: tuple[Answer, ...]
    """One for each system."""


class ComparedRows(Part):
    """Rows where the systems differ: the widest disagreements, wins and losses in turn."""

    score_metric: str | None = None
    """The score by which rows were picked."""
    compared: int = 0
    """Rows that every system answered."""
    differ: int = 0
    """Rows on which the scores differ."""
    better: int = 0
    """Rows where the fine-tuned system scores above the best baseline."""
    worse: int = 0
    """Rows where it scores below."""
    rows: tuple[ComparedRow, ...] = ()
    """At most ten."""


class StartedFrom(Part):
    """The artifact that a training began with."""

    run: str
    """The earlier run's folder, as the recipe named it."""
    training: str | None = None
    """Digest of all that decided that run's weights."""
    files: dict[str, str] = {}
    """sha256 of each file of its artifact."""


class Recorded(Part):
    """What a run writes down about itself, in `manifest.json`."""

    luthier: str | None = None
    """Version that ran it."""
    created: str | None = None
    """When, as ISO 8601."""
    machine: dict[str, Any] = {}
    """Processor, cores, memory, GPU."""
    versions: dict[str, str] = {}
    """Package versions."""
    model: dict[str, Any] = {}
    """Name, origin, license, digests, parameters."""
    template: dict[str, Any] = {}
    """Name and digest of the chat template."""
    data: dict[str, Any] = {}
    """Data files with digest and rows."""
    git: str | None = None
    """Commit, if the run started in a repository."""
    recipe_sha256: str | None = None
    """Digest of the effective recipe."""
    started_from: StartedFrom | None = None
    """The earlier run whose trained adapter the training continued; null if it began with a fresh one."""


class Run(Recorded):
    """What was run: enough to run it again and to tell whether it is the same."""

    name: str
    """Name of the run's folder."""
    recipe: dict[str, Any] = {}
    """The effective recipe, defaults included."""
    stages: dict[str, float] = {}
    """Seconds by stage."""
    joules: dict[str, float] = {}
    """Energy by stage, where it was measured."""


class CurvePoint(Interval):
    """The trained model's score after a training on so many rows."""

    rows: int
    """Training rows."""


class Promise(Part):
    """What more rows would bring, by the fitted curve; positive is better, whichever way the metric points."""

    more_rows: int
    """How many more."""
    gain: float
    """On the scale of the metric."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""


class LearningCurve(Part):
    """`curve.json`: the same training on fewer rows."""

    metric: str
    """What was measured."""
    points: tuple[CurvePoint, ...]
    """In ascending order; the last one is the run itself."""
    fit: dict[str, float] = {}
    """error = floor + scale * rows^-exponent, where the error is the distance to the metric's best value."""
    training_noise: float = 0.0
    """Standard deviation of a training's score around the curve."""
    promises: tuple[Promise, ...] = ()
    """By number of further rows."""


class Missing(Part):
    """A part that the run's folder does not have, or not whole."""

    part: str
    """The file."""
    reason: str
    """What is wrong."""
    remedy: str
    """What to do."""


class Report(Part):
    """A whole report."""

    verdict: Verdict
    """What to do."""
    evaluation: Evaluation | None = None
    """How it was measured; null if nothing was."""
    systems: tuple[System, ...] = ()
    """In the order of the recipe."""
    differences: tuple[Difference, ...] = ()
    """Paired."""
    forgetting: Forgetting | None = None
    """Null if it was not measured."""
    forgetting_with_passages: Forgetting | None = None
    """Of the second training, on rows with passages; null if there was none, or it was not measured."""
    retrieval: Retrieval | None = None
    """Null if nothing is retrieved, or it was not measured."""
    frontier: Frontier | None = None
    """The remedies against forgetting that were tried; null if none was."""
    grounding: Grounding | None = None
    """Null if no row carries passages."""
    style: Style | None = None
    """Null unless answers are free text."""
    abstention: Abstention | None = None
    """Null where no system tells how sure it is."""
    baking: Baking | None = None
    """Null unless the model was taught to do without a prompt."""
    cost: Cost
    """Money."""
    data: Data
    """Rows."""
    training: Training | None = None
    """Null if there was none."""
    curve: LearningCurve | None = None
    """Null if `luthier curve` was not asked."""
    preflight: tuple[Gate, ...] = ()
    """Gates; empty if none has run."""
    compared_rows: ComparedRows = ComparedRows()
    """Rows where systems differ."""
    run: Run
    """What was run."""
    missing: tuple[Missing, ...] = ()
    """Parts that are absent; empty for a whole run."""


def schema_text() -> str:
    """The JSON schema of `report.json` as the text of `docs/report.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=2) + "\n"
