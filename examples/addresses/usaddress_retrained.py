"""The same kind of tagger, trained on this run's training rows alone: what an expert's features reach without leaks.

Features are those of usaddress; the conditional random field is fitted by python-crfsuite in seconds. The rows
are read from the file that LUTHIER_TRAIN names; `labels`, which the importer wrote, holds each word with its label.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pycrfsuite
import usaddress
from address_labels import to_json, user_text

# L1 and L2 penalties, the best of five tried on the validation rows of seed 0: no L1, a strong L2
SETTINGS = {"c1": 0.0, "c2": 1.0, "feature.minfreq": 0}


def labeled_rows(path: Path) -> Iterator[list[tuple[str, str]]]:
    """The words and labels of each training row."""
    with path.open(encoding="utf-8") as file:  # not splitlines(), which also cuts at U+2028 within a text
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            labels = row.get("labels") or row.get("extra", {}).get("labels")
            if labels is None:
                sys.exit(f"{path}, line {number}: no 'labels'; expected rows that `luthier data addresses` wrote")
            yield [(word, label) for word, label in labels]


def fit(rows: Iterator[list[tuple[str, str]]], model: Path) -> None:
    """Train a conditional random field on labeled rows and save it."""
    trainer = pycrfsuite.Trainer(verbose=False, params=SETTINGS)
    for row in rows:
        if row:
            trainer.append(usaddress.tokens2features([word for word, _ in row]), [label for _, label in row])
    trainer.train(str(model))


def main() -> None:
    """Train on LUTHIER_TRAIN, then tag the address of every line of standard input."""
    train = os.environ.get("LUTHIER_TRAIN")
    if not train:
        sys.exit("LUTHIER_TRAIN is not set; it names the JSONL file of the training rows")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "addresses.crfsuite"
        fit(labeled_rows(Path(train)), model)
        tagger = pycrfsuite.Tagger()
        tagger.open(str(model))
        for line in sys.stdin:
            row = json.loads(line)
            words = usaddress.tokenize(user_text(row["messages"]))
            labels = tagger.tag(usaddress.tokens2features(words)) if words else []
            output = to_json(zip(words, labels, strict=True))
            print(json.dumps({"id": row["id"], "output": output}, ensure_ascii=False), flush=True)
        tagger.close()


if __name__ == "__main__":
    main()
