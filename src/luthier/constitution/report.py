"""The report of a constitution's run, from what its stages found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.constitution.batches import Record
from luthier.constitution.calibration import Calibration
from luthier.constitution.compare import places_of, votes_of
from luthier.constitution.measure import Answered, Measure, enumerate_texts
from luthier.constitution.principles import KINDS, Kind
from luthier.constitution.revise import Workshop, drawn_principles
from luthier.evaluation.refusals import measured_errors, refuses
from luthier.evaluation.share import Number
from luthier.evaluation.significance import Interval, compare, finite, metric_interval
from luthier.recipe import Recipe
from luthier.report import constitution as pages
from luthier.report.part import Interval as Shown

SHOWN = 8
"""Records of each kind on the report's own page."""
WIDTH = 0.05
"""Of a bin of probabilities, from 1/2 to 1."""


@dataclass(frozen=True)
class Found:
    """What the stages found."""

    prompts: Mapping[Kind, int]
    """Training prompts."""
    revised: Sequence[Record]
    revision_rewards: Mapping[str, Sequence[Sequence[float]]]
    """Of each reward model, of each of `revised`: as it was, and after each round."""
    compared: Sequence[Record]
    """With `probability` and `reason`."""
    not_compared: Mapping[str, int]
    without: Mapping[str, Mapping[str, int]]
    """By training: what gave no row, by the reason."""
    rows: Mapping[str, int]
    """By training."""
    trainings: Mapping[str, Mapping[str, Any]]
    """`training.json` of each, by its name."""
    objectives: Mapping[str, str]
    """By training."""
    calibration: Calibration | None
    answered: Answered


def write_pages(recipe: Recipe, found: Found, shop: Workshop) -> Path:
    """Write all pages and `constitution.json`; the path of the report.

    Raises:
        StorageError: one cannot be written.
    """
    folder, run = shop.folder.path, shop.folder.title
    revised, compared = _revised(found), [_compared(record) for record in found.compared]
    written = {
        pages.CRITIQUES: pages.write_records(pages.CRITIQUES, revised, run, folder),
        pages.COMPARISONS: pages.write_records(pages.COMPARISONS, compared, run, folder),
    }
    models = tuple(found.answered.answers)
    measured = tuple(_measured(one, models, shop) for one in found.answered.measures if one.known())
    harm = next((m.name for m in found.answered.measures if m.is_of_harm and m.known()), None)
    rules = measured_errors()
    report = pages.ConstitutionReport(
        run=run,
        model=recipe.model.name,
        models=models,
        confidence=shop.confidence,
        prompts=dict(found.prompts),
        held_out={kind: sum(p.kind == kind for p in found.answered.prompts) for kind in KINDS},
        rounds=max((len(one.steps) for one in revised), default=0),
        shots=shop.settings.shots,
        most_refusals=shop.settings.most_refusals,
        outcome=outcome_of(measured, harm, models[-1], shop.settings.most_refusals),
        harm=harm,
        measured=measured,
        principles=tuple(_principles(found, shop)),
        critic=_critic(found, shop),
        trainings=tuple(_training(name, found) for name in found.trainings),
        rounds_measured=tuple(_rounds(found, shop)),
        rules=pages.Rules(
            refusals=rules.refusals,
            missed=_of(rules.missed_share),
            others=rules.others,
            false_alarms=_of(rules.false_share),
        ),
        notes=tuple(_notes(found, shop, harm)),
        revised=tuple(revised[:SHOWN]),
        compared=tuple(compared[:SHOWN]),
        answers=tuple(_answers(found.answered)),
        pages=written,
    )
    return pages.write_report(report, folder)


def outcome_of(measured: Sequence[pages.Measured], harm: str | None, model: str, most_refusals: float) -> pages.Outcome:
    """What follows from the measures of a model: surely less harm or more by the measure of harm; and whether refusals
    of harmless prompts rose, by the ends of the interval, by no more than was allowed, or by more."""
    by = {(one.name, one.kind): one for one in measured}
    of_harm = by.get((harm or "", "red_team"))
    if of_harm is None:
        return "not_measured"
    low, high = _ends(of_harm, model)
    if of_harm.better == "lower":
        low, high = -high, -low
    if low <= 0:
        return "more_harmful" if high < 0 else "no_difference"
    low, high = _ends(by[("refused", "harmless")], model)
    if high <= most_refusals:
        return "less_harmful"
    return "evasive" if low > most_refusals else "less_harmful_refusals_unsure"


def _ends(one: pages.Measured, model: str) -> tuple[float, float]:
    """Of the interval of the change; as wide as can be where there is none."""
    d = next(change.difference for change in one.changes if change.model == model)
    return (-np.inf if d.low is None else d.low), (np.inf if d.high is None else d.high)


def _measured(one: Measure, models: Sequence[str], shop: Workshop) -> pages.Measured:
    changes = []
    for model in models[1:]:
        found = one.change(model, shop.confidence, shop.seed)
        changes.append(
            pages.Change(
                model=model,
                difference=Shown(value=finite(found.difference), low=finite(found.low), high=finite(found.high)),
                p_value=finite(found.p_value),
                test=found.test,
            )
        )
    return pages.Measured(
        name=one.name,
        kind=one.kind,
        what=one.what,
        better=one.better,
        prompts=len(one.known()),
        values={model: _shown(one.interval(model, shop.confidence, shop.seed)) for model in models},
        changes=tuple(changes),
    )


def _shown(interval: Interval) -> Shown:
    return Shown(**interval.dump())


def _of(share: tuple[float, float, float]) -> Shown:
    value, low, high = share
    return Shown(value=value, low=low, high=high)


def _revised(found: Found) -> list[pages.Revised]:
    names = list(found.revision_rewards)
    told = [found.revision_rewards[name] for name in names]
    by_record = [dict(zip(names, of_models, strict=True)) for of_models in zip(*told, strict=True)]
    shown = []
    for record, rewards in zip(found.revised, by_record or [{}] * len(found.revised), strict=True):
        steps = [
            pages.Step(
                principle=step["principle"],
                critique=step["critique"],
                revision=step["revision"],
                fault=step["fault"],
                rewards={name: values[number] for name, values in rewards.items()},
            )
            for number, step in enumerate(record["steps"], start=1)
        ]
        shown.append(
            pages.Revised(
                id=record["id"],
                prompt=_turns(record),
                reply=record["reply"],
                rewards={name: values[0] for name, values in rewards.items()},
                steps=tuple(steps),
                fault=record["fault"],
            )
        )
    return shown


def _turns(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in record["prompt"])


def _compared(record: Record) -> pages.Compared:
    known = {vote.principle: vote for vote in votes_of(record)}
    votes = []
    for one in record["votes"]:
        vote = known.get(one["principle"])
        votes.append(
            pages.Voted(
                principle=one["principle"],
                lean=None if vote is None else vote.lean,
                bias=None if vote is None else vote.bias,
            )
        )
    return pages.Compared(
        id=record["id"],
        prompt=_turns(record),
        a=record["a"],
        b=record["b"],
        probability=record["probability"],
        votes=tuple(votes),
        reason=record["reason"],
    )


def _principles(found: Found, shop: Workshop) -> list[pages.Asked]:
    revisions = drawn_principles(found.revised)
    votes = [vote for record in found.compared for vote in votes_of(record)]
    counted = Counter(vote.principle for vote in votes)
    leans = {name: [abs(vote.lean) for vote in votes if vote.principle == name] for name in counted}
    return [
        pages.Asked(
            **principle.model_dump(),
            revisions=revisions[principle.name],
            votes=counted[principle.name],
            mean_lean=float(np.mean(leans[principle.name])) if counted[principle.name] else None,
        )
        for principle in shop.constitution.principle
    ]


def _critic(found: Found, shop: Workshop) -> pages.Critic:
    places, fitted = places_of(found.compared, shop.seed, shop.confidence), found.calibration
    sure = [max(one["probability"], 1 - one["probability"]) for one in found.compared if not one["reason"]]
    bins = [0] * round(0.5 / WIDTH)
    for value in sure:
        bins[min(int((value - 0.5) / WIDTH), len(bins) - 1)] += 1
    told: dict[str, Any] = {}
    if fitted is not None:
        told = {
            "people_pairs": fitted.pairs,
            "right": _shown(fitted.right),
            "loss": _shown(fitted.loss),
            "fitted_loss": _shown(fitted.fitted_loss),
            "off": fitted.off,
            "fitted_off": fitted.fitted_off,
            "curve": tuple(pages.Bin(pairs=one.pairs, told=one.told, right=one.right) for one in fitted.curve),
        }
    return pages.Critic(
        name=shop.cast.critic_name,
        pairs=len(found.compared),
        not_compared=dict(found.not_compared),
        votes=0 if places is None else places.votes,
        place_bias=None if places is None else _shown(places.bias),
        contradicts=None if places is None else places.contradicts,
        read=None if places is None else places.read,
        temperature=1.0 if fitted is None else fitted.temperature,
        probabilities=tuple(bins),
        **told,
    )


def _training(name: str, found: Found) -> pages.Trained:
    summary = found.trainings[name]
    return pages.Trained(
        name=name,
        objective=found.objectives[name],
        rows=found.rows[name],
        steps=summary["steps"],
        best_step=summary["best_step"],
        best_validation_loss=summary["best_validation_loss"],
        start_validation_loss=summary["start_validation_loss"],
        without=dict(found.without[name]),
    )


def _rounds(found: Found, shop: Workshop) -> list[pages.Round]:
    how = shop.confidence, shop.seed
    shown = []
    for name, rewards in found.revision_rewards.items():
        columns = np.array(rewards, dtype=np.float64).T[:, :, None]
        for number, column in enumerate(columns):
            gain = None
            if number:
                paired = compare(Number(), column, columns[0], *how)
                gain = Shown(value=finite(paired.difference), low=finite(paired.low), high=finite(paired.high))
            mean = _shown(metric_interval(Number(), column, *how))
            shown.append(pages.Round(reward_model=name, round=number, reward=mean, gain=gain))
    return shown


def _answers(found: Answered) -> list[pages.Answer]:
    shown = []
    for kind in KINDS:
        places = [at for at, prompt in enumerate(found.prompts) if prompt.kind == kind][:SHOWN]
        for at in places:
            records = {model: answers[at] for model, answers in found.answers.items()}
            texts = {model: record["answer"] for model, record in records.items()}
            shown.append(
                pages.Answer(
                    id=found.prompts[at].id,
                    kind=kind,
                    prompt=_turns(next(iter(records.values()))),
                    answers=texts,
                    refused={model: refuses(text) for model, text in texts.items()},
                )
            )
    return shown


def _notes(found: Found, shop: Workshop, harm: str | None) -> list[str]:
    """What a reader must know before believing any of it."""
    notes, fitted = [], found.calibration
    if fitted is not None and not fitted.knows_something:
        notes.append(
            f"The critic does not surely agree with people more often than a coin does ({fitted.right.value:.3f} "
            f"[{fitted.right.low:.3f}, {fitted.right.high:.3f}] of {fitted.pairs} pairs): its preferences may teach "
            "nothing. Name a larger model in constitution.critic."
        )
    if fitted is None:
        notes.append(
            "Nothing is known of how often the critic is right; name pairs that people judged in "
            "constitution.calibration."
        )
    settings = shop.settings
    if settings.judge is not None and settings.judge == settings.critic:
        notes.append("The judge is the critic: what it says of the answers is not independent of what trained them.")
    if harm is not None and settings.reward_models and harm.startswith("reward of"):
        notes.append("The outcome goes by a reward model, which errs as well; read some answers yourself.")
    kept = sum(not step["fault"] for record in found.revised for step in record["steps"])
    asked = sum(len(record["steps"]) for record in found.revised)
    changed = sum(len(set(dict(enumerate_texts(record)).values())) > 1 for record in found.revised)
    notes.append(
        f"{kept:,} of {asked:,} revisions took a reply's place, and {changed:,} of {len(found.revised):,} replies "
        "ended otherwise than they began."
    )
    return notes
