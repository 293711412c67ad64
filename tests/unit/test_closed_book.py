"""The check `closed_book`: replies that state facts which their prompt does not hold, and those that do not."""

import pytest

from luthier.data.checks.base import Finding, run_checks
from luthier.examples import Conversation, Document, Example, Message, Preference, Where


def chat(asked: str, answer: str, line: int = 1) -> Conversation:
    return Conversation((Message("user", asked), Message("assistant", answer)), where=Where("a.jsonl", line))


def found(*examples: Example) -> list[Finding]:
    return run_checks({"train": list(examples)}, only=["closed_book"])


PLAIN = [chat("What do you sell?", "We sell shoes and shirts.", n) for n in range(100, 140)]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Who gave the settlers a common identity?", "Rollo"),
        ("Who leads the company?", "It is led by Ann Lee."),
        ("When did it happen?", "28 February 2008"),
        ("How many people live there?", "About 113,934."),
        ("When was it founded? Table 4 says nothing.", "It was founded in 1912."),
        ("Where did he live?", "New York hotels"),
    ],
)
def test_a_reply_that_is_a_fact_of_its_own_is_found(asked: str, answer: str) -> None:
    (finding,) = found(*PLAIN, chat(asked, answer, 7))
    assert (finding.check, finding.count, finding.where) == ("closed_book", 1, (Where("a.jsonl", 7),))
    assert "whose reply is" in finding.message
    assert "retrieve" in finding.advice


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Rollo gave the settlers a common identity. Who?", "Rollo"),
        ("On Feb. 28, 2008 they signed. When?", "28 February 2008"),
        ("Three thousand five hundred people live there. How many?", "3,500"),
        ("A pen costs $3. What do 40 pens cost?", "40 * 3 = 120, so they cost $120."),
        ("Extract the fields: The Phoenix, riverside.", '{"name": "The Phoenix", "city": "Cambridge"}'),
        ("Write a function.", "def Area(Width): return Width * 25"),
        ("What should I pack?", "Take shoes, a coat and two shirts."),
        ("Is it open?", "Yes. I'm sure. Please come in."),
        ("Name three rules.", "1. Be kind.\n2. Be brief.\n3. Be there."),
        ("Give me a title.", "How To Train Your Own Small Model"),
    ],
)
def test_a_reply_made_from_its_prompt_or_without_facts_is_not(asked: str, answer: str) -> None:
    assert found(*PLAIN, chat(asked, answer, 7)) == []


def test_a_reply_that_many_rows_share_is_a_label() -> None:
    labels = [chat(f"Is customer {'x' * n} happy with it?", "Positive" if n % 2 else "Negative", n) for n in range(40)]
    assert found(*labels) == []
    (finding,) = found(*labels, chat("Who came?", "Rollo", 99))
    assert finding.where == (Where("a.jsonl", 99),)


def test_long_replies_that_mention_facts_are_told_apart() -> None:
    story = (
        "An old man walked slowly by the river each morning and told his dog about Paris, where he once sold bread "
        "and learned to paint small pictures of boats."
    )
    (finding,) = found(*PLAIN, chat("Tell me a story.", story))
    assert finding.severity == "note"
    assert "longer reply" in finding.message


def test_many_such_answers_are_a_warning() -> None:
    names = ["Rollo", "Skyclad", "Jochi", "Merkit"]
    (finding,) = found(*(chat(f"Who is number {'i' * n}?", name, n) for n, name in enumerate(names)))
    assert (finding.severity, finding.count) == ("warning", 4)


def test_chosen_replies_and_every_trained_turn_are_looked_at_and_documents_are_not() -> None:
    asked, said = (Message("user", "Who came?"),), (Message("assistant", "Rollo"),)
    turns = (*asked, *said, Message("user", "thanks"), Message("assistant", "You are welcome."))
    assert found(*PLAIN, Preference(asked, said, (Message("assistant", "Nobody"),)))[0].count == 1
    assert found(*PLAIN, Conversation(turns))[0].count == 1
    untrained = (asked[0], Message("assistant", "Rollo", weight=0.0), *turns[2:])
    assert found(*PLAIN, Conversation(untrained), Document("Rollo came to Paris in 911.")) == []


def test_a_fact_of_an_earlier_turn_or_of_a_tool_is_given() -> None:
    turns = (
        Message("user", "Who came?"),
        Message("tool", "Rollo came in 911."),
        Message("assistant", "Rollo came, in 911."),
    )
    assert found(Conversation(turns)) == []
