"""Seeded leaks between training, validation, test, few-shot examples and a corpus: what is found and what is missed.

    python -m benchmarks.leaks FOLDER [--seeds 40]

FOLDER holds data sets, each a folder with `train.jsonl` and `test.jsonl` in any format that Luthier reads, or with
`question` and `answers` in each row; a `corpus.jsonl` (`id`, `title`, `text`) in one of them is the corpus of all.
Rows are copied from the held-out file into the other one, changed in one way at a time, one in 40 rows or so; found is
a row that the check names together with the row that leaked it. The clean files tell how often the check is wrong.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._edits import Edit, copied, dropped, reordered, replaced, retouched, reworded, wrapped
from luthier.data.checks.base import SEVERITIES
from luthier.data.checks.leakage import Leakage
from luthier.data.corpus_leaks import CHECK, ask, find_leaks
from luthier.data.formats.base import read_examples
from luthier.data.read import read_records
from luthier.evaluation.systems.few_shot import Retriever
from luthier.examples import Conversation, Message, Where

SETS = ("json_extraction", "intents", "rag_qa", "instructions")
EDITS: dict[str, Edit] = {
    "copy": copied,
    "case, spaces, punctuation": retouched,
    "one word replaced": replaced(1),
    "two words replaced": replaced(2),
    "two words dropped": dropped(2),
    "sentences or halves swapped": reordered,
    "10 % reworded": reworded(0.1),
    "20 % reworded": reworded(0.2),
    "30 % reworded": reworded(0.3),
    "50 % reworded": reworded(0.5),
    "10 % reworded, words around it": wrapped,
}
SHORTER = ("copy", "case, spaces, punctuation", "10 % reworded", "20 % reworded", "30 % reworded", "50 % reworded")


@dataclass(frozen=True)
class Rows:
    """A data set: what is trained on, and what is held out."""

    train: list[Conversation]
    test: list[Conversation]

    def words(self) -> list[str]:
        """Words of training questions, common ones more often."""
        return [word for row in self.train for word in asked(row).split()]


def asked(row: Conversation) -> str:
    return next(m.content for m in reversed(row.prompt) if m.role == "user")


def answer(row: Conversation) -> str:
    return row.completion.content if row.completion is not None else ""


def with_question(row: Conversation, text: str, number: int) -> Conversation:
    """The row with another question, as a training row that was not there before."""
    at = max(i for i, m in enumerate(row.prompt) if m.role == "user")
    messages = (*row.messages[:at], Message("user", text), *row.messages[at + 1 :])
    return replace(row, messages=messages, where=Where("seeded", number + 1), id=f"seeded-{number}", group=None)


def with_answer(row: Conversation, text: str) -> Conversation:
    return replace(row, messages=(*row.prompt, Message("assistant", text)))


def read(path: Path) -> list[Conversation]:
    first = next(iter(read_records(path))).values
    if "question" not in first:
        return [e for e in read_examples(path) if isinstance(e, Conversation) and e.prompt]
    return [
        Conversation(
            (Message("user", r.values["question"]), Message("assistant", r.values["answers"][0])), where=r.where
        )
        for r in read_records(path)
    ]


# Between rows


def named(splits: dict[str, list[Conversation]], held_out: str) -> dict[Where, tuple[Where, str]]:
    """For each row of `held_out` that the check names: the row it is said to be like, and the severity."""
    check = Leakage()
    order = [row.where for rows in splits.values() for row in rows]
    for split, rows in splits.items():
        for row in rows:
            check.see(row, split)
    found: dict[Where, tuple[Where, str]] = {}
    for split, kind, (leaked, source, _) in check.leaks():
        if split == held_out:
            pairs = zip(leaked.tolist(), source.tolist(), strict=True)
            found |= {order[a]: (order[b], kind.severity) for a, b in pairs}
    return found


def told(found: dict[Where, tuple[Where, str]], chosen: Sequence[Conversation], seeds: Sequence[Conversation]) -> str:
    """How many were found."""
    of = {seed.where for seed in seeds}
    severities = [found[row.where][1] for row in chosen if row.where in found and found[row.where][0] in of]
    noted = severities.count("note")
    return counted(len(severities) - noted, noted, len(chosen))


def counted(found: int, noted: int, of: int) -> str:
    return f"{found}{f' +{noted}' if noted else ''} of {of}"


def between_rows(rows: Rows, count: int, held_out: str) -> dict[str, str]:
    """What is found of leaks from `held_out` (a split) into training, by kind."""
    train, test = rows.train, rows.test
    if held_out == "validation":  # every sixth training row; the test file is left out of it
        train, test = [r for i, r in enumerate(rows.train) if i % 6], rows.train[::6]
    chance, words = random.Random(0), rows.words()
    chosen = chance.sample([row for row in test if len(asked(row).split()) > 3], min(count, len(test) // 2))

    def measure(make: Callable[[Conversation, int], Conversation]) -> str:
        seeds = [make(row, number) for number, row in enumerate(chosen)]
        return told(named({"train": train + seeds, held_out: test}, held_out), chosen, seeds)

    result = {
        name: measure(lambda row, n, edit=edit: with_question(row, edit(asked(row), chance, words), n))  # type: ignore[misc]
        for name, edit in EDITS.items()
    }
    fillers = chance.sample(train, len(chosen))
    inside = {
        row.where: f"{asked(filler)}\n{asked(row)}\n{asked(fillers[i - 1])}"
        for i, (row, filler) in enumerate(zip(chosen, fillers, strict=True))
    }
    result["copy inside of a longer row"] = measure(lambda row, n: with_question(row, inside[row.where], n))
    other = {row.where: answer(filler) for row, filler in zip(chosen, fillers, strict=True)}
    result["copy with another answer"] = measure(
        lambda row, n: with_answer(with_question(row, asked(row), n), other[row.where])
    )
    return result


def clean(rows: Rows, held_out: str = "test") -> str:
    """Rows named where nothing was seeded: errors, warnings, notes."""
    splits = {"train": rows.train, "test": rows.test}
    if held_out == "validation":
        splits = {"train": [r for i, r in enumerate(rows.train) if i % 6], "validation": rows.train[::6]}
    severities = [severity for _, severity in named(splits, held_out).values()]
    counts = [severities.count(severity) for severity in SEVERITIES]
    return f"{counts[0]} / {counts[1]} / {counts[2]} of {len(splits[held_out])}"


# Few-shot examples


def in_prompt(rows: Rows, count: int) -> dict[str, str]:
    """Test rows among the examples of a system turn that all share, and in the pool that examples are taken from."""
    chance, words = random.Random(1), rows.words()
    chosen = chance.sample([row for row in rows.test if len(asked(row).split()) > 3], min(5, count))
    result = {}
    for name in SHORTER:
        shown = [EDITS[name](asked(row), chance, words) for row in chosen]
        text = "\n\n".join(f"Question: {q}\nAnswer: {answer(row)}" for q, row in zip(shown, chosen, strict=True))
        head = Message("system", f"Answer like these examples.\n\n{text}")
        splits = {k: [replace(r, messages=(head, *r.messages)) for r in v] for k, v in vars(rows).items()}
        found = named(splits, "test")
        result[f"fixed, {name}"] = f"{sum(row.where in found for row in chosen)} of {len(chosen)}"
    chosen = chance.sample([row for row in rows.test if len(asked(row).split()) > 3], min(count, len(rows.test) // 2))
    for name in SHORTER:
        seeds = [with_question(row, EDITS[name](asked(row), chance, words), n) for n, row in enumerate(chosen)]
        retriever = Retriever(rows.train + seeds)
        shown_to = sum(
            any(s.where == seed.where for s in retriever.similar(row, 3))
            for row, seed in zip(chosen, seeds, strict=True)
        )
        found = named({"train": rows.train + seeds, "test": rows.test}, "test")
        result[f"pool, {name}"] = f"{told(found, chosen, seeds)}; {shown_to} shown"
    return result


# Corpus


def in_corpus(rows: Rows, corpus: list[str], count: int) -> dict[str, str]:
    """What is found of test questions in passages of a corpus."""
    chance, words = random.Random(2), rows.words()
    chosen = chance.sample([row for row in rows.test if len(asked(row).split()) > 3], min(count, len(rows.test) // 2))
    hosts = chance.sample(range(len(corpus)), len(chosen))

    places = {row.where: number for number, row in enumerate(rows.test)}
    test = [ask(row) for row in rows.test]

    def measure(make: Callable[[Conversation, str], str]) -> str:
        seeded = list(corpus)
        for row, host in zip(chosen, hosts, strict=True):
            seeded[host] = make(row, corpus[host])
        of = {(places[row.where], host) for row, host in zip(chosen, hosts, strict=True)}
        hard: set[tuple[int, int]] = set()
        noted: set[tuple[int, int]] = set()
        for kind, leaks in find_leaks(seeded, test):
            (noted if kind.severity == "note" else hard).update({(leak.row, leak.passage) for leak in leaks} & of)
        return counted(len(hard), len(noted - hard), len(chosen))

    def middle(question: str, row: Conversation, text: str) -> str:
        half = text.find(". ", len(text) // 2) + 1 or len(text)
        return f"{text[:half]} {question} {answer(row)} {text[half:]}"

    result = {}
    for name in SHORTER:
        edit = EDITS[name]
        result[f"passage of question and answer, {name}"] = measure(
            lambda row, text, edit=edit: f"{edit(asked(row), chance, words)} {answer(row)}"  # type: ignore[misc]
        )
        result[f"both inside of a passage, {name}"] = measure(
            lambda row, text, edit=edit: middle(edit(asked(row), chance, words), row, text)  # type: ignore[misc]
        )
    result["question without its answer"] = measure(lambda row, text: f"{text} {asked(row)}")
    result["answer without its question"] = measure(lambda row, text: f"{text} {answer(row)}")
    counts = dict.fromkeys(SEVERITIES, 0)
    for kind, leaks in find_leaks(corpus, test):
        counts[kind.severity] += len(leaks)
    result["clean: errors / warnings / notes"] = " / ".join(map(str, counts.values())) + f" of {len(test)}"
    return result


def table(title: str, columns: dict[str, dict[str, str]]) -> None:
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for kind in next(iter(columns.values())):
        print(f"| {kind} | " + " | ".join(values[kind] for values in columns.values()) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=40, help="leaks of each kind")
    arguments = parser.parse_args()
    data = {
        n: Rows(read(arguments.folder / n / "train.jsonl"), read(arguments.folder / n / "test.jsonl")) for n in SETS
    }
    for held_out in ("test", "validation"):
        columns = {name: between_rows(rows, arguments.seeds, held_out) for name, rows in data.items()}
        for name, rows in data.items():
            columns[name]["clean: errors / warnings / notes"] = clean(rows, held_out)
        table(f"train and {held_out}", columns)
    table("few-shot examples and test", {name: in_prompt(rows, arguments.seeds) for name, rows in data.items()})
    (path,) = [path for name in SETS if (path := arguments.folder / name / "corpus.jsonl").exists()]
    corpus = [f"{r.values['title']}\n{r.values['text']}" for r in read_records(path)]
    table("corpus and test", {name: in_corpus(rows, corpus, arguments.seeds) for name, rows in data.items()})
    print(
        f"\nfound by the checks `leakage` and `{CHECK}`; `+n`: noted, no warning; seed 0, {arguments.seeds} of a kind"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
