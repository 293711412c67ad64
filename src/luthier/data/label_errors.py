"""Rows whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

A plain classifier (tf-idf of words and pairs of words, multinomial logistic regression) learns from some of the rows
and says what it expects of the others, so that no row is judged by what was learned from it. From these probabilities
the library `cleanlab` estimates how many labels of each class are wrong; so many rows of a class, those whose own label
is the least likely, are named (its filter `low_self_confidence`, the one that found most at the highest precision on
seeded errors, see docs/checks.md).

Only for labels: few different answers, each given often. What is named is a suspicion, to be looked at.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks._text import view
from luthier.errors import DataError
from luthier.examples import Conversation, Example

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FOLDS = 5
MIN_ROWS = 5
"""Rows of a label from which it can be learned; rows of rarer ones are not judged."""
LEARNED_FROM = 20_000
"""Rows from which one classifier learns at most; bounds the time."""
MOST_FEATURES, MOST_WEIGHTS = 20_000, 2_000_000
"""Words and pairs of words, the commonest first, and weights of a classifier; bounds its memory."""
INSTALL = "pip install 'luthier[data]'"


class LabelError(NamedTuple):
    """A row, by number, that probably has the wrong label.

    `confidence` is the probability of the label that it has, `likelier_confidence` that of the likeliest one.
    """

    row: int
    label: str
    confidence: float
    likelier: str
    likelier_confidence: float


def label_of(example: Example) -> str | None:
    """The label of a row: what is answered, if it is one short line of text."""
    if not isinstance(example, Conversation):
        return None
    label = view(example).reply.strip()
    return label if 0 < len(label) <= _LONGEST and "\n" not in label and label[0] not in "{[" else None


_LONGEST = 64


def are_labels(labels: Sequence[str | None]) -> bool:
    """Are the answers of these rows labels: short, nearly all given several times, and at least two of them so?"""
    known = Counter(label for label in labels if label is not None)
    often = [count for count in known.values() if count >= MIN_ROWS]
    return len(often) > 1 and known.total() >= 0.99 * len(labels) and sum(often) >= 0.9 * len(labels)


def label_errors(texts: Sequence[str], labels: Sequence[str | None], seed: int = 0) -> list[LabelError]:
    """The rows that probably have the wrong label, the least believable first.

    Args:
        texts: what is labeled, a text a row.
        labels: of each row; None for a row without one. Rows without label, and of labels with fewer than 5 rows, are
            not judged.
        seed: which rows are judged by which classifier.

    Raises:
        DataError: the library is not installed, or fewer than two labels have enough rows.
    """
    if (missing := missing_packages()) is not None:
        raise DataError(missing)
    counts = Counter(labels)
    judged = [row for row, label in enumerate(labels) if label is not None and counts[label] >= MIN_ROWS]
    names = sorted({str(labels[row]) for row in judged})
    if len(names) < 2:
        raise DataError(
            f"label errors: {len(names)} label(s) with {MIN_ROWS} rows or more; expected at least two. "
            "Answers that differ from row to row are no labels"
        )
    number = {name: at for at, name in enumerate(names)}
    given: I64 = np.array([number[str(labels[row])] for row in judged])
    expected = _out_of_sample([texts[row] for row in judged], given, seed)
    return [
        LabelError(
            judged[at],
            names[given[at]],
            float(expected[at, given[at]]),
            names[int(expected[at].argmax())],
            float(expected[at].max()),
        )
        for at in _suspected(given, expected)
    ]


def missing_packages() -> str | None:
    """What to install before label errors can be found; None if all is there."""
    if find_spec("cleanlab") is None or find_spec("sklearn") is None:
        return f"labels were not looked at: that needs the packages `cleanlab` and `scikit-learn` ({INSTALL})"
    return None


def _suspected(given: I64, expected: F64) -> list[int]:
    from cleanlab.filter import find_label_issues

    found = find_label_issues(
        given, expected, return_indices_ranked_by="self_confidence", filter_by="low_self_confidence", n_jobs=1
    )
    return [int(at) for at in found if expected[at].argmax() != given[at]]


def _out_of_sample(texts: Sequence[str], given: I64, seed: int) -> F64:
    """(N, C) the probability of each label in each row, from rows of other folds only."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import StratifiedKFold

    chance = np.random.default_rng(seed)
    expected = np.zeros((len(texts), int(given.max()) + 1))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2,
        token_pattern=r"(?u)\b\w+\b",
        max_features=max(min(MOST_FEATURES, MOST_WEIGHTS // expected.shape[1]), 1),
        dtype=np.float32,
    )
    seen = range(0, len(texts), max(-(-len(texts) // LEARNED_FROM), 1))
    try:
        vectorizer.fit([texts[row] for row in seen])
    except ValueError:  # not a word occurs twice
        raise DataError("label errors: the rows have no words in common to learn from") from None
    features: Any = vectorizer.transform(texts)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for learned, judged in folds.split(features, given):
        if len(learned) > LEARNED_FROM:
            learned = _some_of(learned, given, chance)
        model = _fitted(features[learned], given[learned])
        expected[np.ix_(judged, model.classes_)] = model.predict_proba(features[judged])
    return expected


def _some_of(rows: I64, given: I64, chance: np.random.Generator) -> I64:
    """Rows drawn at random, and those whose labels were not drawn at all: a label that was never seen is expected of
    no row, and whoever has it would look wrong."""
    drawn = chance.choice(rows, LEARNED_FROM, replace=False)
    unseen = rows[~np.isin(given[rows], given[drawn])]
    return np.sort(np.concatenate([drawn, unseen]))


def _fitted(features: Any, given: I64) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a rough fit ranks rows as well as a fine one
        return LogisticRegression(C=10.0, max_iter=100, tol=1e-3).fit(features, given)
