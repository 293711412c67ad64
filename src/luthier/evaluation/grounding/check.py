"""Answers and their passages in, verdicts and shares out.

items -> abstains? -> words of the answer in the passages, and a judge's signals -> logistic -> verdict
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.errors import EvaluationError
from luthier.evaluation.grounding.calibration import LEXICAL, Calibration, calibration_of
from luthier.evaluation.grounding.entailment import Evidence
from luthier.evaluation.grounding.item import VERDICTS, Item, Verdict
from luthier.evaluation.grounding.judge import Judge
from luthier.evaluation.metrics.base import Array


@dataclass(frozen=True, slots=True)
class Judgement:
    """One item, judged."""

    id: str
    verdict: Verdict
    probability: float | None
    """That it is supported; None where it abstains."""
    evidence: Evidence | None
    """What its words showed; None where it abstains."""


@dataclass(frozen=True)
class Grounding:
    """All items of one system, judged by one checker."""

    judgements: tuple[Judgement, ...]
    """In the order of the items."""
    checker: Calibration

    def given(self) -> Array:
        """(N, V) for each item 1 at its verdict, in the order of `VERDICTS`, and 0 at the others."""
        given = [[one.verdict == verdict for verdict in VERDICTS] for one in self.judgements]
        return np.array(given, dtype=np.float64).reshape(len(given), len(VERDICTS))

    def share(self, verdict: Verdict) -> float:
        """Of the items with this verdict, as counted; nan for none."""
        return float(self.given()[:, VERDICTS.index(verdict)].mean()) if self.judgements else float("nan")


def judge_answers(items: Sequence[Item], judge: Judge | None = None) -> Grounding:
    """Judge each answer beside its passages.

    Args:
        items: what is judged; ids are told back.
        judge: a model that was calibrated; None: the words alone decide.

    Raises:
        EvaluationError: an item has no passage, the judge was not calibrated, or an item does not fit its context.
    """
    for item in items:
        if not any(passage.strip() for passage in item.passages):
            raise EvaluationError(f"row {item.id}: an answer is judged beside its passages, and it has none")
    checker = calibration_of(judge.name if judge else LEXICAL)
    judged = judge.signals(items) if judge else [()] * len(items)
    found = [checker.verdict(item, signals) for item, signals in zip(items, judged, strict=True)]
    return Grounding(
        tuple(Judgement(item.id, *parts) for item, parts in zip(items, found, strict=True)),
        checker,
    )
