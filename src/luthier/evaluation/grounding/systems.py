"""What share of each system's answers their passages support: records in, `grounding.json` out.

Rows whose prompt or data carries no passages are not judged, and how many is told. Systems are compared in pairs on the
rows that both have judged, the later rung first, as everywhere; every share stands there twice, as counted and with
the checker's own errors taken out.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.carried_passages import passages_of
from luthier.data.split import group_keys
from luthier.data.templates import build_template
from luthier.evaluation.grounding.calibration import LEXICAL, Calibration, calibration_of
from luthier.evaluation.grounding.check import Grounding, judge_answers
from luthier.evaluation.grounding.item import VERDICTS, Item, Verdict
from luthier.evaluation.grounding.judge import Judge
from luthier.evaluation.grounding.prevalence import Corrected
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.share import Share
from luthier.evaluation.significance import (
    Groups,
    clopper_pearson,
    compare,
    finite,
    metric_interval,
    number_groups,
)
from luthier.examples import Example
from luthier.models.catalog import resolve
from luthier.models.load import load

FORMAT = 1
EXAMPLES = 5
"""Unsupported answers of each system that are shown."""


@dataclass(frozen=True)
class Options:
    """How answers are judged."""

    judge: str = LEXICAL
    """A calibrated model, or `none`."""
    device: str = "auto"
    """Where the judge runs."""
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class _Judged:
    """One system's rows that carry passages."""

    grounding: Grounding
    carried: "Carried"
    groups: Groups

    def given(self, among: Sequence[int]) -> Array:
        """(N, V) 1 at the verdict that each of these test rows was given."""
        place = {row: at for at, row in enumerate(self.carried.rows)}
        return self.grounding.given()[[place[row] for row in among]]


def require_judge(name: str) -> None:
    """Check, before anything is answered, that the judge is one whose error is known.

    Raises:
        EvaluationError: it is not.
    """
    calibration_of(name)


@dataclass(frozen=True)
class Carried:
    """The recorded answers of one system to rows with passages."""

    items: tuple[Item, ...]
    rows: tuple[int, ...]
    """Which test rows they answer."""
    without: int
    """Rows that carry no passages."""


def carried(folder: Path, rows: Sequence[Example], names: Sequence[str]) -> dict[str, Carried]:
    """What can be judged, by system; systems that answered no row with passages are left out.

    Args:
        folder: the run's, with `records/`.
        rows: the test rows that were answered, in the records' order.
        names: the systems, the ladder's first rung first.
    """
    found = {name: _carried(folder / "records" / f"{name}.jsonl", rows) for name in names}
    return {name: one for name, one in found.items() if one.items}


def ground_systems(found: Mapping[str, Carried], rows: Sequence[Example], options: Options) -> dict[str, Any]:
    """Judge what the systems answered; plain values, as `grounding.json` holds them.

    Raises:
        EvaluationError: the judge was not calibrated, or a row does not fit its context.
        ModelError: the judge cannot be loaded.
    """
    judge = None if options.judge == LEXICAL else _open(options)
    groups = number_groups(group_keys(rows))
    judged = {
        name: _Judged(judge_answers(one.items, judge), one, _renumbered(groups, one.rows))
        for name, one in found.items()
    }
    return _dump(judged, groups, calibration_of(options.judge), options)


def _renumbered(groups: Groups, rows: Sequence[int]) -> Groups:
    """The groups of some of the rows, without gaps."""
    return np.unique(groups[list(rows)], return_inverse=True)[1].astype(np.intp)


def _open(options: Options) -> Judge:
    loaded = load(resolve(options.judge), "auto", options.device)
    return Judge(options.judge, loaded, build_template(loaded, "model"))


def _carried(path: Path, rows: Sequence[Example]) -> Carried:
    items, at, without = [], [], 0
    for row, record in enumerate(_records(path)):
        question, passages = passages_of(record["prompt"], rows[row].extra)
        if passages:
            items.append(Item(record["id"], question, record["output"], passages))
            at.append(row)
        else:
            without += 1
    return Carried(tuple(items), tuple(at), without)


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _dump(judged: Mapping[str, _Judged], groups: Groups, checker: Calibration, options: Options) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "judge": checker.judge,
        "confidence": options.confidence,
        "calibration": {
            "rows": int(np.array(checker.confusion).sum()),
            "provenance": checker.provenance,
            "errors": {verdict: _errors(checker, verdict, options.confidence) for verdict in VERDICTS},
        },
        "systems": [_system(name, one, options) for name, one in judged.items()],
        "differences": [
            difference
            for b, a in itertools.combinations(judged, 2)
            for difference in _differences(a, b, judged, groups, options)
        ],
        "verdicts": {
            name: {one.id: one.verdict for one in system.grounding.judgements} for name, system in judged.items()
        },
    }


def _errors(checker: Calibration, verdict: Verdict, confidence: float) -> dict[str, Any]:
    """Sensitivity and specificity with their exact intervals."""
    found = {}
    for name, (part, whole) in zip(("sensitivity", "specificity"), checker.rates(verdict), strict=True):
        low, high = clopper_pearson(part, whole, confidence)
        found[name] = {"value": part / whole, "low": low, "high": high}
    return found


def _system(name: str, judged: _Judged, options: Options) -> dict[str, Any]:
    given_NV = judged.grounding.given()
    corrected = _corrected(judged, options).shares(given_NV, judged.groups)
    shares = {}
    for at, verdict in enumerate(VERDICTS):
        counted = metric_interval(Share(), given_NV[:, [at]], options.confidence, options.seed, judged.groups)
        shares[verdict] = {"counted": counted.dump(), "corrected": corrected[at].dump()}
    return {
        "system": name,
        "n": len(judged.carried.items),
        "without_passages": judged.carried.without,
        "shares": shares,
        "examples": _examples(judged),
    }


def _corrected(judged: _Judged, options: Options) -> Corrected:
    return Corrected(judged.grounding.checker.confusion, options.confidence, options.seed)


def _examples(judged: _Judged) -> list[dict[str, Any]]:
    """The answers that are least likely supported."""
    pairs = [
        (one, item)
        for one, item in zip(judged.grounding.judgements, judged.carried.items, strict=True)
        if one.verdict == "unsupported" and one.probability is not None
    ]
    pairs.sort(key=lambda pair: pair[0].probability or 0.0)
    return [
        {"id": item.id, "question": item.question, "answer": item.answer, "probability": one.probability}
        for one, item in pairs[:EXAMPLES]
    ]


def _differences(
    a: str, b: str, judged: Mapping[str, _Judged], groups: Groups, options: Options
) -> Iterator[dict[str, Any]]:
    """`a` minus `b` on the rows that both have judged."""
    both = sorted(set(judged[a].carried.rows) & set(judged[b].carried.rows))
    if not both:
        return
    own = _renumbered(groups, both)
    a_NV, b_NV = judged[a].given(both), judged[b].given(both)
    all_counted = [
        compare(Share(), a_NV[:, [at]], b_NV[:, [at]], options.confidence, options.seed, own)
        for at in range(len(VERDICTS))
    ]
    all_corrected = _corrected(judged[a], options).differences(a_NV, b_NV, all_counted, own)
    for verdict, counted, corrected in zip(VERDICTS, all_counted, all_corrected, strict=True):
        yield {
            "a": a,
            "b": b,
            "n": len(both),
            "verdict": verdict,
            "counted": {"value": finite(counted.difference), "low": finite(counted.low), "high": finite(counted.high)},
            "p_value": finite(counted.p_value),
            "corrected": corrected.dump(),
        }
