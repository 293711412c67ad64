"""Label errors found among seeded ones, and what selected rows are worth beside random ones.

    python -m benchmarks.quality TRAIN TEST

TRAIN and TEST are files of texts and labels. Labels of 5 and 10 % of the training rows are changed at random, and
counted again among the rows that are named; rows that were wrong before count as false here. Then a tenth is
mislabeled and a tenth repeated with a word more, and a plain classifier learns from K rows: chosen at random, or by
`luthier data select`; its accuracy on TEST is shown against K, the mean of three seeds.
"""

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.formats.base import read_examples
from luthier.data.label_errors import label_errors, label_of
from luthier.data.quality import measure
from luthier.data.selection import select
from luthier.examples import Conversation, Message

SHARES = (0.0, 0.05, 0.1)
KEPT = (250, 500, 1000, 1500)
SEEDS = 3


def read(path: Path) -> list[Conversation]:
    return [row for row in read_examples(path) if isinstance(row, Conversation)]


def text(row: Conversation) -> str:
    return row.prompt[-1].content


def mislabeled(labels: list[str], share: float, seed: int) -> tuple[list[str], set[int]]:
    chance, names = random.Random(seed), sorted(set(labels))
    at = set(chance.sample(range(len(labels)), round(share * len(labels))))
    return [chance.choice([n for n in names if n != x]) if i in at else x for i, x in enumerate(labels)], at


def found(rows: list[Conversation]) -> None:
    print("| labels changed | rows named | precision | recall |\n|---|---|---|---|")
    for share in SHARES:
        labels, at = mislabeled([str(label_of(row)) for row in rows], share, 0)
        named = {error.row for error in label_errors([text(row) for row in rows], labels)}
        both = len(named & at)
        shown = f"{both / len(named):.2f} | {both / len(at):.2f}" if at else "- | -"
        print(f"| {len(at)} ({share:.0%}) | {len(named)} | {shown} |", flush=True)


def damaged(rows: list[Conversation], seed: int) -> list[Conversation]:
    """A tenth mislabeled, and a tenth again with a word changed."""
    chance = random.Random(seed)
    labels, _ = mislabeled([str(label_of(row)) for row in rows], 0.1, seed)
    made = [replace(r, messages=(*r.prompt, Message("assistant", x))) for r, x in zip(rows, labels, strict=True)]
    again = [replace(r, messages=(Message("user", text(r) + " thanks"), r.messages[-1])) for r in made[::10]]
    made += again
    chance.shuffle(made)
    return made


def accuracy(train: list[Conversation], test: list[Conversation]) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words: Any = TfidfVectorizer(sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=200).fit(
        words.fit_transform([text(row) for row in train]), [label_of(row) for row in train]
    )
    wanted = np.array([label_of(row) for row in test])
    return float((model.predict(words.transform([text(row) for row in test])) == wanted).mean())


def worth(rows: list[Conversation], test: list[Conversation]) -> None:
    scores: dict[tuple[str, int], list[float]] = {}
    for seed in range(SEEDS):
        train = damaged(rows, seed)
        quality = measure(train)
        for keep in KEPT:
            chosen = select(quality, keep).kept.tolist()
            ways = {"at random": train[:keep], "selected": [train[row] for row in chosen]}
            for name, part in ways.items():
                scores.setdefault((name, keep), []).append(accuracy(part, test))
        scores.setdefault(("at random", len(train)), []).append(accuracy(train, test))
    print("\n| rows | at random | selected |\n|---|---|---|")
    for keep in KEPT:
        print(f"| {keep:,} | {np.mean(scores['at random', keep]):.3f} | {np.mean(scores['selected', keep]):.3f} |")
    (everything,) = {count for _, count in scores} - set(KEPT)
    print(f"| all {everything:,} | {np.mean(scores['at random', everything]):.3f} | |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    arguments = parser.parse_args()
    rows, test = read(arguments.train), read(arguments.test)
    found(rows)
    worth(rows, test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
