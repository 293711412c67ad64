"""Leaks that no equal text betrays: reworded, inside of longer texts, among examples of a prompt, in a corpus."""

import random
from dataclasses import replace

import numpy as np
import pytest

from luthier.data.checks._containment import MOST_FINGERPRINTS, Contained
from luthier.data.checks._likeness import LEAST, MOST, MOST_WORDS, WordSets, limit
from luthier.data.checks._text import normalized
from luthier.data.checks._words import RUN, WINDOW, picked, triples, word_hashes
from luthier.data.checks.base import Finding, run_checks
from luthier.data.corpus_leaks import corpus_leaks
from luthier.examples import Conversation, Document, Example, Message, Where

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("len", "rin", "tos", "mak", "dul")]


def sentence(chance: random.Random, count: int = 14) -> str:
    return " ".join(chance.sample(WORDS, count))


def chat(asked: str, answer: str, line: int, path: str = "train.jsonl", system: str = "") -> Conversation:
    head = (Message("system", system),) if system else ()
    return Conversation((*head, Message("user", asked), Message("assistant", answer)), where=Where(path, line))


def sets(count: int = 200, seed: int = 0) -> tuple[list[Conversation], list[Conversation]]:
    """Rows whose questions have little in common, each with an answer of its own."""
    chance = random.Random(seed)
    train = [chat(sentence(chance), sentence(chance, 4), n + 1) for n in range(count)]
    test = [chat(sentence(chance), sentence(chance, 4), n + 1, "test.jsonl") for n in range(count // 4)]
    return train, test


def reworded(text: str, count: int, seed: int = 9) -> str:
    chance = random.Random(seed)
    words = text.split()
    for at in chance.sample(range(len(words)), count):
        words[at] = f"other{at}"
    chance.shuffle(words)
    return " ".join(words)


def leaks(train: list[Conversation], test: list[Conversation]) -> list[Finding]:
    return run_checks({"train": list[Example](train), "test": list[Example](test)}, only=["leakage"])


def test_rows_that_have_little_in_common_are_no_leaks() -> None:
    assert leaks(*sets()) == []


def asked(row: Conversation) -> str:
    return row.prompt[-1].content


def answer(row: Conversation) -> str:
    assert row.completion is not None
    return row.completion.content


def test_a_reworded_row_with_the_same_answer_is_found_and_placed() -> None:
    train, test = sets()
    train.append(chat(reworded(asked(test[7]), 3), answer(test[7]), 900))
    (finding,) = leaks(train, test)
    assert (finding.severity, finding.count, finding.where) == ("warning", 1, (Where("test.jsonl", 8),))
    assert "reworded" in finding.message
    assert "line 900" in finding.message


def test_a_reworded_row_with_another_answer_is_a_note() -> None:
    train, test = sets()
    train.append(chat(reworded(asked(test[7]), 3), "something else", 900))
    (finding,) = leaks(train, test)
    assert (finding.severity, finding.where) == ("note", (Where("test.jsonl", 8),))
    assert "another answer" in finding.message


def test_a_row_is_reported_once_for_the_gravest_kind() -> None:
    train, test = sets()
    train += [chat(asked(test[3]), answer(test[3]), 901), chat(reworded(asked(test[3]), 2), answer(test[3]), 902)]
    (finding,) = leaks(train, test)
    assert finding.severity == "error"


def test_a_question_inside_of_a_longer_row_is_found() -> None:
    train, test = sets()
    around = [sentence(random.Random(n), 30) for n in (50, 51)]
    train.append(chat(f"{around[0]}\n{asked(test[0])}\n{around[1]}", "yes", 900))
    (finding,) = leaks(train, test)
    assert "inside of a longer text" in finding.message
    assert finding.where == (Where("test.jsonl", 1),)


@pytest.mark.parametrize("edited", [0, 2])
def test_a_question_among_the_examples_of_a_system_turn_is_found(edited: int) -> None:
    train, test = sets()
    shown = reworded(asked(test[5]), edited) if edited else asked(test[5])
    system = f"Answer like this.\nQuestion: {shown}\nAnswer: {answer(test[5])}"
    train, test = (
        [replace(r, messages=(Message("system", system), *r.messages)) for r in rows] for rows in (train, test)
    )
    (finding,) = leaks(train, test)
    assert "system turn" in finding.message
    assert finding.where == (Where("test.jsonl", 6),)


def test_labels_are_no_evidence_and_alike_rows_stay_unnamed_where_all_rows_are_alike() -> None:
    chance = random.Random(4)
    few = WORDS[:24]  # every two questions share half of their words

    def rows(count: int, path: str) -> list[Conversation]:
        return [chat(" ".join(chance.sample(few, 12)), f"label_{n % 5}", n + 1, path) for n in range(count)]

    found = leaks(rows(300, "train.jsonl"), rows(100, "test.jsonl"))
    assert sum(finding.count for finding in found) <= 3


def test_a_leaked_majority_does_not_hide_itself() -> None:
    train, test = sets()
    train += [chat(reworded(asked(row), 4), "a label", 900 + n) for n, row in enumerate(test)]
    (finding,) = leaks(train, [replace(r, messages=(r.messages[0], Message("assistant", "b label"))) for r in test])
    assert finding.count > 0.9 * len(test)


# Parts


def test_the_limit_lies_between_its_bounds_and_follows_the_data() -> None:
    few, far, near = np.array([0.3] * 5), np.full(100, 0.05), np.linspace(0.3, 0.5, 100)
    assert limit(few) == MOST
    assert limit(far) == LEAST
    assert LEAST < limit(near) < MOST
    assert limit(near, far) == LEAST
    assert limit(np.linspace(0.5, 0.9, 100)) == MOST


def test_likeness_weighs_rare_words_more() -> None:
    words = WordSets()
    for common in range(40):
        words.add(word_hashes(f"the same words always own{common} mine{common}".encode()))
    words.add(word_hashes(b"the same words always own1 yours"))
    words.add(word_hashes(b"never these words own2 mine2"))
    near, _ = words.nearest_earlier(np.array([0] * 40 + [1, 1]), np.zeros(42, dtype=np.uint64))
    assert near.number.tolist()[40:] == [1, 2]
    assert near.likeness[41] > near.likeness[40]  # two rare words in common outweigh four common ones and a rare one


def test_long_texts_are_compared_by_a_sample() -> None:
    chance = random.Random(0)
    long = [f"word{n}" for n in range(4 * MOST_WORDS)]
    changed = [f"new{n}" if chance.random() < 0.1 else word for n, word in enumerate(long)]
    words = WordSets()
    for text in (long, *([f"far{n}", "and", "some", "more"] for n in range(900)), changed):
        words.add(word_hashes(" ".join(text).encode()))
    near, _ = words.nearest_earlier(np.array([0] * 901 + [1]), np.zeros(902, dtype=np.uint64))
    assert near.number[-1] == 0
    assert near.likeness[-1] == pytest.approx(0.9 / 1.1, abs=0.07)


def test_scripts_without_blanks_have_words() -> None:
    text = "\u4eca\u5929\u5929\u6c14\u5f88\u597d"
    assert len(word_hashes(normalized(text))) == 5
    assert word_hashes("caf\u00e9 d\u00e9j\u00e0".encode()) == [
        *word_hashes("caf\u00e9".encode()),
        *word_hashes("d\u00e9j\u00e0".encode()),
    ]


def test_a_shared_run_of_words_gives_a_shared_fingerprint() -> None:
    chance = random.Random(2)
    for _ in range(200):
        run = chance.sample(WORDS, WINDOW + RUN - 1)
        texts = [" ".join(chance.sample(WORDS, 9) + run + chance.sample(WORDS, 9)).encode() for _ in range(2)]
        kept = []
        for text in texts:
            hashes = triples(np.array(word_hashes(text), dtype=np.uint32))
            kept.append(set(hashes[picked(hashes)].tolist()))
        assert kept[0] & kept[1]


@pytest.mark.parametrize(
    ("words", "asked_words"), [(60, 12), (2 * MOST_FINGERPRINTS, 12), (3 * MOST_FINGERPRINTS, 40), (40_000, 300)]
)
def test_a_question_is_found_in_long_texts_if_it_is_long_itself(words: int, asked_words: int) -> None:
    chance = random.Random(1)
    question = [f"q{n}" for n in range(asked_words)]
    body = [f"w{chance.randrange(10**6)}" for _ in range(words)]
    texts = Contained()
    texts.add_text(word_hashes(" ".join(body).encode()), 0)
    texts.add_text(word_hashes(" ".join(body[: words // 2] + question + body[words // 2 :]).encode()), 1)
    texts.add_question(word_hashes(" ".join(question).encode()), 7)
    ((owner, holders, shares),) = list(texts.found())
    assert (owner, holders.tolist()) == (7, [1])
    assert shares[0] >= 0.9


# A corpus


def corpus(count: int = 60) -> list[tuple[str, Where]]:
    chance = random.Random(3)
    texts = (". ".join(sentence(chance, 12).capitalize() for _ in range(8)) for _ in range(count))
    return [(f"Title {n}\n{text}.", Where("corpus.jsonl", n + 1)) for n, text in enumerate(texts)]


def asked_of(passages: list[tuple[str, Where]]) -> list[Conversation]:
    """A question to each passage, made from words of one of its sentences; the answer is three words of that."""
    made = []
    for number, (text, _) in enumerate(passages):
        words = text.splitlines()[1].split(". ")[2].lower().split()
        question = f"What is it that {' '.join(words[8:])} has about {' '.join(words[:3])}?"
        made.append(chat(question, " ".join(words[4:7]), number + 1, "test.jsonl"))
    return made


def test_passages_that_answer_are_wanted() -> None:
    passages = corpus()
    test = asked_of(passages)
    assert all(answer(row) in passages[n][0].lower() for n, row in enumerate(test))
    assert corpus_leaks(passages, test) == []
    assert corpus_leaks([], test) == []
    assert corpus_leaks(passages, [Document("a text")]) == []


@pytest.mark.parametrize(
    ("make", "severity", "said"),
    [
        (lambda q, a, text: f"{text} {q} {a}", "error", "word for word, with its answer"),
        (lambda q, a, text: f"{text} {q.upper()}", "warning", "word for word, without its answer"),
        (lambda q, a, text: f"{text} {reworded(q, 2)}? {a}", "warning", "reworded, with its answer"),
        (lambda q, a, text: f"{reworded(q, 1)} {a}", "warning", "reworded, with its answer"),
    ],
)
def test_a_question_in_a_passage_is_a_leak(make: object, severity: str, said: str) -> None:
    assert callable(make)
    passages = corpus()
    row = replace(asked_of(passages)[4], where=Where("test.jsonl", 5))
    passages[20] = (make(asked(row).rstrip("?"), answer(row), passages[20][0]), Where("corpus.jsonl", 21))
    (finding,) = corpus_leaks(passages, [*asked_of(corpus())[:4], row, *asked_of(corpus())[5:]])
    assert (finding.check, finding.severity, finding.where) == ("corpus_leaks", severity, (Where("test.jsonl", 5),))
    assert said in finding.message
    assert "corpus.jsonl, line 21" in finding.message


@pytest.mark.parametrize(
    "make",
    [
        lambda q, text: (f"Context: {text}\nQuestion: {q}", {}),
        lambda q, text: (f"Question: {q}\nPassage:\n{text}\nAnswer:", {}),
        lambda q, text: (f"Passages:\n\n[1] {text}\n\nAnswer from these passages.\n\n{q}", {}),
        lambda q, text: (f"{text}\n\n{q}", {"context": text}),
        lambda q, text: (f"{q} {text.splitlines()[1]}", {"passages": [{"title": "A", "text": text.splitlines()[1]}]}),
    ],
)
def test_a_passage_that_a_prompt_carries_is_no_part_of_its_question(make: object) -> None:
    assert callable(make)
    passages, test = corpus(), []
    for number, row in enumerate(asked_of(passages)):
        prompt, extra = make(asked(row), passages[number][0])
        test.append(replace(chat(prompt, answer(row), number + 1, "test.jsonl"), extra=extra))
    assert corpus_leaks(passages, test) == []
    passages[20] = (f"{passages[20][0]} {asked(asked_of(corpus())[4])} {answer(test[4])}", passages[20][1])
    (finding,) = corpus_leaks(passages, test)
    assert (finding.severity, finding.count) == ("error", 1)


@pytest.mark.parametrize(
    ("given", "beside", "severity", "said"),
    [
        ("No.", "Nobody has known it.", "warning", "too short to tell"),
        ("No.", "No, it has not.", "warning", "too short to tell"),
        ("forest", "They are forested hills.", "warning", "without its answer"),
        ("forest", "A forest.", "error", "with its answer"),
        ("\u6771\u4eac\u90fd", "\u3053\u3053\u306f\u6771\u4eac\u90fd\u3067\u3059", "error", "with its answer"),
    ],
)
def test_an_answer_stands_beside_its_question_as_whole_words(given: str, beside: str, severity: str, said: str) -> None:
    passages = corpus()
    row = chat(asked(asked_of(passages)[4]), given, 5, "test.jsonl")
    passages[20] = (f"{passages[20][0]} {asked(row)} {beside}", passages[20][1])
    (finding,) = corpus_leaks(passages, [row])
    assert finding.severity == severity
    assert said in finding.message


def test_a_long_answer_that_stands_in_the_corpus_is_noted() -> None:
    passages = corpus()
    long = sentence(random.Random(77), 20)
    passages[3] = (f"{passages[3][0]} {long}", passages[3][1])
    (finding,) = corpus_leaks(passages, [chat("Tell me everything about it.", long, 1, "test.jsonl")])
    assert (finding.severity, finding.count) == ("note", 1)


def test_the_texts_are_called_what_the_caller_calls_them() -> None:
    passages = corpus()
    row = asked_of(passages)[0]
    (finding,) = corpus_leaks([(f"{asked(row)} {answer(row)}", Where("pool.jsonl", 1))], [row], "the pool of examples")
    assert "the pool of examples" in finding.message + finding.advice
