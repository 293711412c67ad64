"""Every check in `data/checks`, found by listing: what holds for all of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier import registry
from luthier.data.checks._text import render_findings
from luthier.data.checks.base import PACKAGE, PLACES_KEPT, SEVERITIES, Check, Finding, run_checks
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference, ToolCall, Where

CHECKS = registry.names(PACKAGE)
# put together at run time, so that scanners of this repository find no secrets in it
PRIVATE = {
    "key": "sk-" + "ant-api03-" + "Qm9vS2V5Rm9yVGVzdHM0MkFiQ2RFZg",
    "token": "ghp_" + "Zk3Qn8Xw5Tb2Lc7Vr9Yd4Hs6Jm1Pf0GaUeIo",
    "email": "ann.example-person@wanderlust.travel",
    "phone": "(415) 555-0132",
    "iban": "GB29NWBK60161331926819",
    "card": "5555-5555-5555-4444",
    "ssn": "536-90-4399",
}


def test_the_checks_that_the_issue_names_are_there() -> None:
    named = {
        "roles",
        "empty",
        "overlong",
        "exact_duplicates",
        "near_duplicates",
        "leakage",
        "contradictions",
        "encoding",
    }
    assert named | {"secrets", "personal_data", "balance", "stale_facts"} <= set(CHECKS)


def odd_rows(path: str) -> Iterator[Example]:
    """Rows of every kind with every text a check may quote made of private things, faults of all kinds among them."""
    where = (Where(path, line) for line in range(1, 10_000))
    for _ in range(3):
        for secret in PRIVATE.values():
            for text in (
                secret,
                f"It is {secret}. It is {secret}.",
                f"{secret}\x1b[31m\u202e\ud800",
                f"â€™ {secret} &amp; cafe\u0301",
            ):
                asked, said = Message("user", text), Message("assistant", text)
                yield Conversation((Message("system", text), asked, said), where=next(where))
                yield Conversation((said, asked), where=next(where))
                yield Conversation((asked, asked, Message("assistant", "")), where=next(where))
                call = Message("assistant", tool_calls=(ToolCall(text, {text: text}),))
                yield Conversation((asked, call, Message("tool", text)), where=next(where))
                yield Preference((asked,), (said,), (said,), where=next(where))
                yield Preference((), (said,), (Message("assistant", text * 400),), where=next(where))
                yield Judged((asked,), (said,), True, where=next(where))
                yield Document(text, where=next(where))
                fact = Message("assistant", f"As of 2024 {secret} costs $49.99, 12% more than version 1.2.3.")
                yield Conversation((asked, fact), where=next(where))
            yield Document(f"{secret} " * 1000, where=next(where))


def odd_labels(path: str) -> Iterator[Example]:
    """Labels that are private and lopsided: the balance check quotes labels."""
    labels = list(PRIVATE.values())
    for number in range(200):
        label = labels[number % 7 if number < 14 else 0]
        yield Conversation(
            (Message("user", f"q{number}"), Message("assistant", label)), where=Where(path, 20_000 + number)
        )


def odd_objects(path: str) -> Iterator[Example]:
    """Objects whose keys and values are private, and others in each file: the check of values quotes both."""
    values = list(PRIVATE.values())
    for number in range(200):
        answer = json.dumps({values[0]: values[number % 3 + (1 if path == "a.jsonl" else 4)]})
        yield Conversation(
            (Message("user", f"q{number}"), Message("assistant", answer)), where=Where(path, 30_000 + number)
        )


ODD = {"balance": odd_labels, "unseen_values": odd_objects}


@pytest.mark.parametrize("name", CHECKS)
def test_no_rows_no_findings(name: str) -> None:
    assert run_checks({"train": [], "validation": [], "test": []}, only=[name]) == []
    assert registry.load_class(PACKAGE, name, Check)().findings() == []  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", CHECKS)
def test_one_of_each_kind_passes(name: str) -> None:
    user, reply, other = (
        Message("user", "What is a luthier?"),
        Message("assistant", "A maker of lutes."),
        Message("assistant", "A lute."),
    )
    rows: list[Example] = [
        Conversation((user, reply)),
        Preference((user,), (reply,), (other,)),
        Judged((Message("user", "Who makes violins?"),), (Message("assistant", "A luthier does."),), True),
        Judged((Message("user", "Where is Cremona?"),), (Message("assistant", "In Spain, I believe."),), False),
        Document("Lutes have strings."),
    ]
    assert run_checks({"train": rows}, only=[name]) == []


@pytest.mark.parametrize("name", CHECKS)
def test_findings_are_whole_and_private_things_stay_private(name: str) -> None:
    rows = ODD.get(name, odd_rows)
    findings = run_checks({"train": rows("a.jsonl"), "test": rows("b.jsonl")}, only=[name])
    assert findings
    for finding in findings:
        assert finding.check == name
        assert finding.severity in SEVERITIES
        assert finding.message
        assert finding.advice or finding.severity == "note"
        assert finding.count >= 1
        assert len(finding.where) <= min(PLACES_KEPT, finding.count)
        assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding
    text = render_findings(findings) + json.dumps([finding.to_dict() for finding in findings])
    assert [kind for kind, secret in PRIVATE.items() if secret in text] == []
    assert not set(text) & {"\x1b", "\u202e", "\ud800"}
    text.encode("utf-8")


def test_private_labels_are_hidden() -> None:
    assert "hidden" in render_findings(run_checks({"train": odd_labels("a")}, only=["balance"]))


@pytest.mark.parametrize("name", CHECKS)
def test_the_same_rows_give_the_same_findings(name: str) -> None:
    once, again = (run_checks({"train": odd_rows("a"), "test": odd_rows("b")}, only=[name]) for _ in range(2))
    assert once == again


def test_every_check_is_named_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text(encoding="utf-8")
    assert [name for name in CHECKS if f"`{name}`" not in text] == []
