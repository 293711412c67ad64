"""What the checker weighs its evidence with, and how often it is wrong: fitted and measured on hand-checked rows.

The weights are a logistic regression, p(supported) = sigmoid(b + w . x), with both classes weighing alike and an L2
penalty, because a hundred rows say little about each weight. Its errors are those of cross-validation in which rows of
one passage are never on both sides. `calibration.json` ships what `python -m benchmarks.grounding --write` fitted; the
rows themselves, their passages and their labels lie beside that benchmark.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from scipy import optimize

from luthier.config import did_you_mean
from luthier.errors import EvaluationError
from luthier.evaluation.grounding.abstention import abstains
from luthier.evaluation.grounding.entailment import FEATURES, Evidence, evidence
from luthier.evaluation.grounding.item import SIGNALS, VERDICTS, Item, Verdict
from luthier.evaluation.metrics.base import Array

LEXICAL = "none"
"""The name of the judge when there is none: the words alone decide."""
PENALTY = 1.0
"""Of the squared weights, beside a sum of log-losses over rows that weigh one on average."""


@dataclass(frozen=True)
class Calibration:
    """One checker: its weights and its measured errors."""

    judge: str
    """The model that judges beside the words; `none` for words alone."""
    bias: float
    weights: tuple[float, ...]
    """Of `entailment.FEATURES`, then of `item.SIGNALS` if there is a judge."""
    confusion: tuple[tuple[int, int, int], ...]
    """Rows by hand-checked label (first index) and by verdict, in the order of `VERDICTS`."""
    provenance: str = ""
    """What it was fitted on."""

    def probability(self, seen: Evidence, judged: Sequence[float] = ()) -> float:
        """Of being supported, for an answer that does not abstain."""
        total = self.bias + float(np.dot(self.weights, [*seen.features(), *judged]))
        return float(1 / (1 + np.exp(-total)))

    def verdict(self, item: Item, judged: Sequence[float] = ()) -> tuple[Verdict, float | None, Evidence | None]:
        """What an item is, how probable it is that it is supported, and what its words showed; the last two are None
        where it abstains."""
        if abstains(item.answer, item.question):
            return "abstained", None, None
        seen = evidence(item.question, item.answer, item.passages)
        probability = self.probability(seen, judged)
        return decide(seen, probability), probability, seen

    def rates(self, verdict: Verdict) -> tuple[tuple[int, int], tuple[int, int]]:
        """((found, there), (rightly not found, not there)): sensitivity and specificity for a verdict, as counts."""
        table = np.array(self.confusion)
        at = VERDICTS.index(verdict)
        there = int(table[at].sum())
        others = int(table.sum()) - there
        return (int(table[at, at]), there), (others - int(table[:, at].sum() - table[at, at]), others)


def decide(seen: Evidence, probability: float) -> Verdict:
    """A number that stands nowhere, or a sentence turned into its opposite, makes an answer unsupported, whatever else
    speaks for it."""
    return "unsupported" if seen.wrong_numbers or seen.negation or probability < 0.5 else "supported"


def fit(features_NF: Array, supported_N: Array) -> tuple[float, tuple[float, ...]]:
    """Bias and weights of the logistic regression.

    Args:
        features_NF: what is known of each answer that does not abstain.
        supported_N: 1 where it is supported, else 0; both must occur.

    Raises:
        ValueError: only one class occurs.
    """
    positive = float(supported_N.sum())
    rows = len(supported_N)
    if not 0 < positive < rows:
        raise ValueError("a fit needs supported and unsupported rows")
    spread_F = features_NF.std(axis=0)
    spread_F[spread_F == 0] = 1.0
    scaled_NF = features_NF / spread_F
    weight_N = np.where(supported_N > 0, rows / (2 * positive), rows / (2 * (rows - positive)))
    sign_N = np.where(supported_N > 0, 1.0, -1.0)

    def loss(parameters: Array) -> tuple[float, Array]:
        margin_N = sign_N * (parameters[0] + scaled_NF @ parameters[1:])
        push_N = -weight_N * sign_N / (1 + np.exp(margin_N))
        gradient = np.concatenate([[push_N.sum()], scaled_NF.T @ push_N + PENALTY * parameters[1:]])
        total = float((weight_N * np.logaddexp(0, -margin_N)).sum() + PENALTY / 2 * (parameters[1:] ** 2).sum())
        return total, gradient

    found = optimize.minimize(loss, np.zeros(1 + features_NF.shape[1]), jac=True, method="L-BFGS-B").x
    return float(found[0]), tuple(float(weight) for weight in found[1:] / spread_F)


@cache
def _shipped() -> Mapping[str, Calibration]:
    text = (resources.files("luthier.evaluation.grounding") / "calibration.json").read_text(encoding="utf-8")
    return {name: _read(name, values) for name, values in json.loads(text).items()}


def names_of(judge: str) -> tuple[str, ...]:
    """What the weights of a checker with this judge belong to."""
    return FEATURES if judge == LEXICAL else (*FEATURES, *SIGNALS)


def _read(judge: str, values: Mapping[str, Any]) -> Calibration:
    weights = values["weights"]
    names = names_of(judge)
    confusion: Sequence[Sequence[int]] = values["confusion"]
    rows = tuple((row[0], row[1], row[2]) for row in confusion)
    return Calibration(judge, values["bias"], tuple(weights[name] for name in names), rows, values["provenance"])


def dump(calibration: Calibration) -> dict[str, Any]:
    """As `calibration.json` holds it."""
    return {
        "provenance": calibration.provenance,
        "bias": round(calibration.bias, 6),
        "weights": {
            name: round(weight, 6)
            for name, weight in zip(names_of(calibration.judge), calibration.weights, strict=True)
        },
        "confusion": [list(row) for row in calibration.confusion],
    }


def judges() -> tuple[str, ...]:
    """Names of the judges that a checker was calibrated with; `none` first."""
    return tuple(_shipped())


def calibration_of(judge: str = LEXICAL) -> Calibration:
    """The checker with this judge.

    Raises:
        EvaluationError: nobody measured how often it is wrong.
    """
    if judge not in _shipped():
        raise EvaluationError(
            f"evaluation.grounding.judge = {judge!r}: it was not calibrated, so its error is unknown"
            f"{did_you_mean(judge, judges())}; choose one of {', '.join(judges())}, or calibrate it: "
            f"`python -m benchmarks.grounding --judge {judge} --write`"
        )
    return _shipped()[judge]
