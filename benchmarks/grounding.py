"""How often the checker of grounded answers is wrong, on hand-checked rows.

    python -m benchmarks.grounding [--judge NAME ...] [--data ../shared/data/rag_qa] [--rows FILE] [--wrong] [--write]

`benchmarks/grounding.jsonl` holds answers, written by a small model or made by hand, and the label that a person gave
each after reading its passages; questions and passages are looked up by id in the data set. For the words alone, each
judge alone and both together: a confusion matrix, error rates with exact intervals (Clopper and Pearson 1934) and
errors by kind of answer. All are cross-validated: rows of one passage are never fitted on and measured with at once.
`--wrong` lists the rows judged wrongly. `--write` writes weights and errors to `calibration.json`, which the product
reads. `--rows` measures what ships on other rows instead, which nothing was fitted on.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.templates import build_template
from luthier.evaluation.grounding import calibration
from luthier.evaluation.grounding.abstention import abstains
from luthier.evaluation.grounding.calibration import LEXICAL, Calibration, decide, dump, fit
from luthier.evaluation.grounding.entailment import FEATURES, Evidence, evidence
from luthier.evaluation.grounding.item import SIGNALS, VERDICTS, Item, Verdict
from luthier.evaluation.grounding.judge import Judge
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import clopper_pearson
from luthier.models.catalog import resolve
from luthier.models.load import load

FOLDER = Path(__file__).parent
ROWS = FOLDER / "grounding.jsonl"
HELD_OUT = FOLDER / "grounding_held_out.jsonl"
"""Answers to other draws of questions, labeled after the checker was finished; nothing is fitted on them."""
DATA = FOLDER.parent.parent / "shared" / "data" / "rag_qa"
FOLDS = 10
JUDGES = ("smollm2-135m-instruct",)
SHIPPED = Path(calibration.__file__).with_name("calibration.json")


@dataclass(frozen=True)
class Checked:
    """A row with the label that a person gave it."""

    item: Item
    kind: str
    label: Verdict
    doubt: str
    group: str
    """The passage that its question is about."""


def read_checked(rows: Path = ROWS, data: Path = DATA) -> list[Checked]:
    """The hand-checked rows with their questions and passages."""
    corpus = {row["id"]: row["text"] for row in _lines(data / "corpus.jsonl")}
    questions = {row["id"]: row for name in ("train", "test") for row in _lines(data / f"{name}.jsonl")}
    found = []
    for row in _lines(rows):
        question = questions[row["question"]]
        passages = tuple(corpus[name] for name in row["passages"])
        item = Item(row["id"], question["question"], row["answer"], passages)
        group = str(question["gold_passage_ids"][0])
        found.append(Checked(item, row["kind"], row["label"], row.get("doubt", ""), group))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Seen:
    """What the parts of a checker see of all rows."""

    abstains: Sequence[bool]
    evidence: Sequence[Evidence]
    judged: Mapping[str, Sequence[Sequence[float]]]
    """By judge."""


def see(rows: Sequence[Checked], judges: Sequence[str]) -> Seen:
    """Look at every row once; loads one judge after the other."""
    judged = {}
    for name in judges:
        loaded = load(resolve(name), "bfloat16", "cpu")
        start = time.perf_counter()
        judged[name] = Judge(name, loaded, build_template(loaded, "model")).signals([row.item for row in rows])
        seconds = time.perf_counter() - start
        print(f"{name} judged {len(rows)} rows in {seconds:.0f} s, {seconds / len(rows):.2f} s a row")
    return Seen(
        [abstains(row.item.answer, row.item.question) for row in rows],
        [evidence(row.item.question, row.item.answer, row.item.passages) for row in rows],
        judged,
    )


def show_signals(rows: Sequence[Checked], seen: Seen) -> None:
    """Print how well each number by itself tells supported from unsupported answers: the area under the ROC curve,
    which is the share of pairs that it puts in order (0.5: a coin)."""
    answered = [i for i, row in enumerate(rows) if row.label != "abstained" and not seen.abstains[i]]
    supported = [i for i in answered if rows[i].label == "supported"]
    others = [i for i in answered if rows[i].label != "supported"]
    found = {name: [-one.features()[at] for one in seen.evidence] for at, name in enumerate(FEATURES)}
    for judge, signals in seen.judged.items():
        found |= {f"{judge} {name}": [one[at] for one in signals] for at, name in enumerate(SIGNALS)}
    for name, values in found.items():
        ordered = [(values[a] > values[b]) + (values[a] == values[b]) / 2 for a in supported for b in others]
        print(f"  area under the curve {sum(ordered) / len(ordered):.2f}  {name}")


def columns(seen: Seen, words: bool, judge: str) -> Array:
    """(N, F) what a checker knows of each row."""
    parts = [np.array([one.features() for one in seen.evidence])] if words else []
    parts += [np.array(seen.judged[judge])] if judge != LEXICAL else []
    return np.concatenate(parts, axis=1)


def folds(rows: Sequence[Checked]) -> list[int]:
    """A fold for each row; rows of one passage are in one fold, and the folds are of like size."""
    sizes = Counter(row.group for row in rows)
    filled = [0] * FOLDS
    fold_of = {}
    for group, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += size
    return [fold_of[row.group] for row in rows]


def cross_validated(rows: Sequence[Checked], seen: Seen, words: bool, judge: str) -> list[Verdict]:
    """The verdict on each row of a checker that was fitted on the other folds."""
    features_NF = columns(seen, words, judge)
    fold_N = np.array(folds(rows))
    answered_N = ~np.array(seen.abstains)
    supported_N = np.array([row.label == "supported" for row in rows], dtype=np.float64)
    labelled_N = np.array([row.label != "abstained" for row in rows])
    verdicts: dict[int, Verdict] = {}
    for fold in range(FOLDS):
        known_N = (fold_N != fold) & answered_N & labelled_N
        bias, weights = fit(features_NF[known_N], supported_N[known_N])
        logits_N = bias + features_NF @ np.array(weights)
        for index in np.flatnonzero(fold_N == fold).tolist():
            verdicts[index] = _verdict(seen, index, float(logits_N[index]), words)
    return [verdicts[index] for index in range(len(rows))]


def _verdict(seen: Seen, index: int, logit: float, words: bool) -> Verdict:
    if seen.abstains[index]:
        return "abstained"
    probability = float(1 / (1 + np.exp(-logit)))
    return decide(seen.evidence[index], probability) if words else "supported" if probability >= 0.5 else "unsupported"


def confusion(rows: Sequence[Checked], verdicts: Sequence[Verdict]) -> tuple[tuple[int, int, int], ...]:
    """Rows by label and verdict."""
    counts = Counter((row.label, verdict) for row, verdict in zip(rows, verdicts, strict=True))
    return tuple(
        (counts[label, VERDICTS[0]], counts[label, VERDICTS[1]], counts[label, VERDICTS[2]]) for label in VERDICTS
    )


def show(title: str, rows: Sequence[Checked], verdicts: Sequence[Verdict], kinds: bool) -> None:
    """Print one checker's errors."""
    table = confusion(rows, verdicts)
    checker = Calibration("", 0.0, (), table)
    wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if row.label != verdict]
    print(f"\n{title}: wrong on {_rate(len(wrong), len(rows))}")
    sure = [row for row in wrong if not row.doubt]
    print(f"  without the rows whose label is doubtful: {_rate(len(sure), sum(not row.doubt for row in rows))}")
    print(f"  {'label':<14}" + "".join(f"{name:>13}" for name in VERDICTS) + "   (verdicts)")
    for label, counts in zip(VERDICTS, table, strict=True):
        print(f"  {label:<14}" + "".join(f"{count:>13}" for count in counts))
    for verdict in VERDICTS:
        sensitivity, specificity = checker.rates(verdict)
        print(f"  {verdict:<12} sensitivity {_rate(*sensitivity)}, specificity {_rate(*specificity)}")
    if kinds:
        totals = Counter((row.kind, row.label) for row in rows)
        missed = Counter((row.kind, row.label) for row in wrong)
        for (kind, label), total in totals.items():
            print(f"    {kind:<24} {label:<12} wrong {missed[kind, label]:>2} of {total}")


def _rate(part: int, whole: int) -> str:
    low, high = clopper_pearson(part, whole)
    return f"{part}/{whole} = {part / whole:.3f} [{low:.3f}, {high:.3f}]"


def calibrated(rows: Sequence[Checked], seen: Seen, judge: str) -> Calibration:
    """The checker that ships: fitted on all rows, with the errors of cross-validation."""
    use_N = ~np.array(seen.abstains) & np.array([row.label != "abstained" for row in rows])
    supported_N = np.array([row.label == "supported" for row in rows], dtype=np.float64)
    bias, weights = fit(columns(seen, True, judge)[use_N], supported_N[use_N])
    table = confusion(rows, cross_validated(rows, seen, True, judge))
    about = (
        f"{len(rows)} hand-checked rows about {len({row.group for row in rows})} passages of rag_qa "
        f"(benchmarks/grounding.jsonl), errors by {FOLDS}-fold cross-validation over passages; "
        "python -m benchmarks.grounding"
    )
    return Calibration(judge, bias, weights, table, about)


def measure_shipped(rows: Sequence[Checked], seen: Seen, judges: Sequence[str], options: argparse.Namespace) -> None:
    """What ships, on rows that it was not fitted on."""
    for judge in (LEXICAL, *judges):
        checker = calibration.calibration_of(judge)
        judged = seen.judged[judge] if judge != LEXICAL else [()] * len(rows)
        verdicts = [checker.verdict(row.item, signals)[0] for row, signals in zip(rows, judged, strict=True)]
        show(f"shipped, judge {judge}", rows, verdicts, kinds=True)
        if options.wrong:
            list_wrong(rows, verdicts, seen)


def list_wrong(rows: Sequence[Checked], verdicts: Sequence[Verdict], seen: Seen) -> None:
    """The rows judged wrongly, without their passages."""
    for row, verdict, one in zip(rows, verdicts, seen.evidence, strict=True):
        if row.label != verdict:
            print(f"    {row.item.id} {row.kind}: {row.label}, judged {verdict}: {row.item.answer[:120]!r}")
            print(f"         {one}")


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="append", default=None, metavar="NAME")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = read_checked(options.rows, options.data)
    judges = tuple(JUDGES if options.judge is None else [name for name in options.judge if name != LEXICAL])
    print(f"{len(rows)} rows: " + ", ".join(f"{sum(r.label == v for r in rows)} {v}" for v in VERDICTS), end="")
    print(f"; {sum(bool(row.doubt) for row in rows)} with a doubtful label")
    seen = see(rows, judges)
    show_signals(rows, seen)
    if options.rows != ROWS:
        measure_shipped(rows, seen, judges, options)
        return
    checkers = [("words", True, LEXICAL)]
    for judge in judges:
        checkers += [(f"{judge} alone", False, judge), (f"words and {judge}", True, judge)]
    for title, words, judge in checkers:
        verdicts = cross_validated(rows, seen, words, judge)
        show(title, rows, verdicts, kinds=True)
        if options.wrong:
            list_wrong(rows, verdicts, seen)
    if options.write:
        shipped = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else {}
        shipped |= {judge: dump(calibrated(rows, seen, judge)) for judge in (LEXICAL, *judges)}
        SHIPPED.write_text(json.dumps(shipped, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
