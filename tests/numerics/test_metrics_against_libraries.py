"""Our metrics against the libraries that people compare with."""

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from luthier.evaluation.metrics.base import Metric, Prediction
from luthier.evaluation.metrics.chrf import Chrf
from luthier.evaluation.metrics.rouge_l import RougeL

pytestmark = pytest.mark.numerics

WORDS = """
the a cat dog sat ran on under mat tree, quickly. slowly! 42 3.5 über naïve 北京 don't e-mail x
"""


def sentences(seed: int, count: int = 60) -> list[str]:
    draw, words = random.Random(seed), WORDS.split()
    return [" ".join(draw.choice(words) for _ in range(draw.randint(0, 12))) for _ in range(count)]


def whole(
    metric: Metric, outputs: list[str], targets: list[str], extra: "list[dict[str, object]] | None" = None
) -> float:
    rows = [
        Prediction(str(i), (), o, t, extra=extra[i] if extra else {})
        for i, (o, t) in enumerate(zip(outputs, targets, strict=True))
    ]
    return metric.value(np.array([metric.statistics(row) for row in rows], dtype=np.float64))


@pytest.mark.parametrize("seed", range(5))
def test_chrf_is_sacrebleus(seed: int) -> None:
    outputs, targets = sentences(seed), sentences(seed + 100)
    assert 100 * whole(Chrf(), outputs, targets) == pytest.approx(
        sacrebleu.corpus_chrf(outputs, [targets]).score, abs=1e-9
    )
    for output, target in zip(outputs[:20], targets[:20], strict=True):
        expected = sacrebleu.sentence_chrf(output, [target]).score
        assert 100 * whole(Chrf(), [output], [target]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_chrf_with_several_references_is_sacrebleus(seed: int) -> None:
    outputs, first, second = sentences(seed), sentences(seed + 100), sentences(seed + 200)
    extra: list[dict[str, object]] = [{"references": [a, b]} for a, b in zip(first, second, strict=True)]
    expected = sacrebleu.corpus_chrf(outputs, [first, second]).score
    assert 100 * whole(Chrf(), outputs, first, extra) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_the_librarys_on_ascii_text(seed: int) -> None:
    outputs = [s.encode("ascii", "ignore").decode() for s in sentences(seed)]
    targets = [s.encode("ascii", "ignore").decode() for s in sentences(seed + 100)]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = np.mean([scorer.score(t, o)["rougeL"].fmeasure for o, t in zip(outputs, targets, strict=True)])
    assert whole(RougeL(), outputs, targets) == pytest.approx(float(expected), abs=1e-12)
