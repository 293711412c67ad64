"""Checks that look into the text of a row: encoding, secrets, personal data, stale facts, suspicious answers."""

import json
import re
import time
from collections.abc import Mapping
from typing import ClassVar

import pytest

from luthier.data.checks import _patterns, encoding, stale_facts, suspicious_answers
from luthier.data.checks._scan import Kind, TextScan
from luthier.data.checks.base import Finding, run_checks
from luthier.examples import Conversation, Document, Example, Message, Preference, ToolCall, Where

# put together at run time, so that scanners of this repository find no secrets in it
AWS = "AKIA" + "J7Q2ZP5XW3M8RT6B"
GITHUB = "ghp_" + "a8Kd02mZxP4qTn7YwR3vB6cL1eF9hG5jS0uD"
OPENAI = "sk-" + "proj-" + "Zt4kQ9xLm2VbN7sR1wYc8PdE3fHgJ6uA"
GOOGLE = "AIza" + "SyD3kX9mQ2vB7nT5wZ8rL1cP4fH6jG0eYqU"
SLACK = "xoxb" + "-2093847561-Kd8sLq0vPz"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r"
PRIVATE = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow"
PASSWORD = "password" + ": tR8$kLpZ9q"
URL = "postgres" + "://admin:h7Xq2Lm9@db.internal:5432/sales"
SECRETS = [AWS, GITHUB, OPENAI, GOOGLE, SLACK, JWT, PRIVATE, PASSWORD, URL]

EMAIL, PHONE, INTERNATIONAL = "jane.roe@wanderlust.travel", "(312) 555-0187", "+44 20 7946 0958"
IBAN, CARD, SSN, ADDRESS = "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111", "536-90-4399", "91.198.174.192"
PERSONAL = [EMAIL, PHONE, INTERNATIONAL, IBAN, CARD, SSN, ADDRESS]


def chat(asked: str, answer: str, line: int = 1, system: str = "") -> Conversation:
    messages = (Message("user", asked), Message("assistant", answer))
    head = (Message("system", system),) if system else ()
    return Conversation(head + messages, where=Where("a.jsonl", line))


def found(name: str, *examples: Example) -> list[Finding]:
    return run_checks({"train": list(examples)}, only=[name])


ORDINARY = [
    chat("What does 12,500 shares at 3.75 come to?", "12,500 x 3.75 = 46,875."),
    chat("Où est la gare ? Ça va, garçon, naïve façade.", "Là-bas, à côté de l'église; für Ärzte und Übergänge."),
    chat("कृपया मदद करें। 日本語と中文 and emoji 👩‍💻🇫🇷", "ठीक है। 了解。 Tamam: İstanbul'da şüpheli çağrı. NÃO É VOCÊ"),
    chat(
        "def f(token: str, secret_name=None): return token", "auth = get_token(user)\npassword = os.environ['PASSWORD']"
    ),
    chat("order 4711081512345678, serial 1234-5678-9012, build 10.0.19045.3324", "See 192.168.0.1 and 127.0.0.1:8000"),
    chat(
        "Mail support@example.com at 10:45, room 555-1234", "Ratio 100-200-3000; ISBN 978-3-16-148410-0; 20-21 or 2023"
    ),
    chat("20 +30 +120 +10 = 180 and A&B; if a < b && c", "x is 1; y: 2; the key: a good start"),
    chat("tokens: 123456789", "the secret: patience; secret ingredient = cinnamon"),
]


@pytest.mark.parametrize("name", ["encoding", "secrets", "personal_data", "suspicious_answers", "stale_facts"])
def test_ordinary_text_has_no_findings(name: str) -> None:
    assert [finding.message for finding in found(name, *ORDINARY)] == []


@pytest.mark.parametrize(
    ("text", "phrase", "severity"),
    [
        ("Itâ€™s fine", "decoded as Windows-1252", "warning"),
        ("cafÃ© crÃ¨me", "decoded as Windows-1252", "warning"),
        ("voilÃ\u00a0 tout", "decoded as Windows-1252", "warning"),
        ("caf\ufffd", "U+FFFD", "warning"),
        ("half \ud83d pair", "surrogate", "error"),
        ("bell \x07 or esc \x1b[31m", "control characters", "warning"),
        ("zero\u200bwidth", "zero-width", "note"),
        ("\ufeffbyte order mark", "zero-width", "note"),
        ("user\u202etxt.exe", "reorder text", "warning"),
        ("cafe\u0301", "not Unicode NFC", "note"),
        ("fish &amp; chips &#39;", "HTML entities", "note"),
    ],
)
def test_encoding(text: str, phrase: str, severity: str) -> None:
    (finding,) = found("encoding", chat("hi", "hello"), chat(text, "hello", 2))
    assert phrase in finding.message
    assert (finding.severity, finding.count, finding.where) == (severity, 1, (Where("a.jsonl", 2),))


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_counted_and_placed_but_not_shown(secret: str) -> None:
    rows = [chat("hi", "hello"), chat(f"use {secret} please", "done", 2), chat("so", f"here: {secret}", 3)]
    (finding,) = found("secrets", *rows)
    assert (finding.count, [place.line for place in finding.where]) == (2, [2, 3])
    assert secret not in str(finding.to_dict())


def test_a_secret_in_a_shared_system_turn_counts_for_each_row() -> None:
    (finding,) = found("secrets", *(chat("hi", "hello", line, f"Key: {AWS}") for line in range(1, 41)))
    assert finding.count == 40
    assert len(finding.where) == 20


def _hidden(secret: str) -> list[Example]:
    """Rows that hold a secret where a reader of the contents alone does not look."""
    asked, said = Message("user", "Write the file."), Message("assistant", "Done, as you asked.")
    called = Message("assistant", tool_calls=(ToolCall("write", {"lines": [{"text": f"config:\n{secret}"}]}),))
    tools = {"type": "function", "function": {"name": "write", "description": f"Use\n{secret} here", "parameters": {}}}
    result = Message("tool", json.dumps({"file": f"config:\n{secret}"}), tool_call_id="c1")
    return [
        Conversation((asked, called)),
        Conversation((asked, said), tools=(tools,)),
        Conversation((asked, Message("assistant", json.dumps({"cfg": f"line\n{secret}"})))),
        Conversation((asked, Message("assistant", "", (ToolCall("write", {}, "c1"),)), result, said)),
        Conversation((asked, said), target={"cfg": [f"line\n{secret}"]}),
        Conversation((Message("user", "Write the file.", name=secret), said)),
        Conversation((asked, called, Message("tool", "ok", tool_call_id=secret), said)),
        Conversation((Message("system", json.dumps({"rule": f"use\n{secret}"})), asked, said)),
        Preference((asked,), (called,), (said,)),
        Document(json.dumps([{"cfg": f"line\n{secret}"}])),
    ]


@pytest.mark.parametrize("place", range(10))
def test_secrets_and_personal_data_are_found_wherever_a_row_holds_them(place: int) -> None:
    assert found("secrets", _hidden("hello")[place]) == []
    (finding,) = found("secrets", _hidden(GITHUB)[place])
    assert "GitHub token" in finding.message
    (finding,) = found("personal_data", _hidden(EMAIL)[place])
    assert "email" in finding.message
    assert [f.severity for f in found("encoding", _hidden("NUL \x00 here")[place])] == ["warning"]


def test_a_password_under_a_key_of_arguments_is_found() -> None:
    call = ToolCall("connect", {"login": {"password": PASSWORD.partition(": ")[2]}})
    (finding,) = found("secrets", Conversation((Message("user", "go"), Message("assistant", tool_calls=(call,)))))
    assert "assigned password" in finding.message


class Counting(TextScan):
    """Keeps the texts that it is asked to scan."""

    check = "counting"
    kinds: ClassVar[Mapping[str, Kind]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def scan(self, text: str) -> set[str]:
        self.texts.append(text)
        return set()


def test_tools_and_system_turns_that_rows_share_are_scanned_once() -> None:
    check = Counting()
    for number in range(50):
        tools = ({"type": "function", "function": {"name": "write", "description": "Writes."}},)
        check.see(Conversation(chat(f"q{number}", "a", system="Be brief.").messages, tools=tools), "train")
    assert len(check.texts) == 50 + 1 + 1
    assert any("Writes." in text for text in check.texts)


PATTERNS = {
    (module.__name__.rpartition(".")[2], name, number): form
    for module in (_patterns, encoding, stale_facts, suspicious_answers)
    for name, value in vars(module).items()
    for number, form in enumerate(
        [value] if isinstance(value, re.Pattern) else [p.form for p in value] if name == "SECRETS" else []
    )
}
ADVERSARIES = [
    *(
        "1,",
        "1",
        "1.1",
        "version 1.1",
        "-eyJ",
        "eyJaaaaaaaa.eyJaaaaaaaa",
        "eyJaaaaaaaa.",
        "sk-aaaaaaaaaaaaaaaaaaaaaaaaa ",
    ),
    *(
        "://a",
        "://a:",
        "auth",
        "auth-",
        "+1 22 ",
        "a.@",
        "a.",
        "-a",
        "1234 ",
        "AB12 ",
        "Â€",
        "ab",
        ".",
        "SG.a",
        "xoxa-",
    ),
    *(
        "-----BEGIN A ",
        "hooks.slack.com/services/T",
        "github_pat_A",
        "ghp_",
        "Version ",
        "A",
        "$1,",
        " €",
        "::",
        "a@a.",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_pattern_takes_time_that_grows_faster_than_the_text(pattern: tuple[str, str, int]) -> None:
    form = PATTERNS[pattern]

    def seconds(unit: str, characters: int) -> float:
        text = unit * (characters // len(unit))
        taken = []
        for _ in range(3):
            started = time.process_time()
            for _ in form.finditer(text):
                pass
            taken.append(time.process_time() - started)
        return min(taken)

    slow = [unit for unit in ADVERSARIES if seconds(unit, 16_000) > max(0.02, 3 * seconds(unit, 8_000))]
    assert len(PATTERNS) > 30
    assert slow == []


def test_secret_lookalikes_are_left_alone() -> None:
    plain = [
        "AKIAAAAAAAAAAAAAAAAA",
        "sk-learn-is-a-library-for-machine-learning",
        "ghp_short",
        "password: required",
        "token=$TOKEN1234",
    ]
    plain += [
        "secret = config.secrets.main1",
        "api_key: https://docs.host/path1234",
        "task-force-description-and-more-words",
    ]
    assert [text for text in plain if _patterns.secrets(text)] == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (EMAIL, "email"),
        (PHONE, "phone"),
        (INTERNATIONAL, "phone"),
        (IBAN, "iban"),
        (CARD, "card"),
        (SSN, "ssn"),
        (ADDRESS, "ip"),
    ],
)
def test_personal_data(text: str, kind: str) -> None:
    assert _patterns.personal(f"It is {text}, as said.") == {kind}


def test_check_digits_matter() -> None:
    wrong = [
        "DE88 3704 0044 0532 0130 00",
        "4111 1111 1111 1112",
        "000-12-3456",
        "10.1.2.3",
        "999.1.1.1",
        "XX89 3704 0044 0532 0130 00",
    ]
    assert [text for text in wrong if _patterns.personal(f"It is {text}.")] == []
    assert _patterns.personal("IBAN GB29NWBK60161331926819 it is") == {"iban"}
    assert _patterns.personal("card 378282246310005 or 5555-5555-5555-4444") == {"card"}
    assert _patterns.personal("2001:4860:4860:0:0:0:0:8888") == {"ip"}


def test_personal_data_is_reported_by_kind_and_never_shown() -> None:
    findings = found("personal_data", *(chat(text, "ok", line) for line, text in enumerate(PERSONAL, 1)))
    assert {finding.count for finding in findings} == {1, 2}
    assert len(findings) == 6
    text = " ".join(str(finding.to_dict()) for finding in findings)
    assert not [secret for secret in PERSONAL if secret in text]


@pytest.mark.parametrize(
    ("asked", "answer", "phrase"),
    [
        ("How much is the pro plan?", "The pro plan costs $29.99 a month.", "a price"),
        ("Who leads the company?", "Ann Lee has led it since 2021.", "a date"),
        ("Which one shall I install?", "Install version 3.2 of the client.", "a version"),
        ("How many use it?", "About 37% of our customers.", "a percentage"),
        ("Do you ship abroad?", "We currently ship to 12 countries.", "speaks of now"),
    ],
)
def test_stale_facts(asked: str, answer: str, phrase: str) -> None:
    (finding,) = found("stale_facts", *ORDINARY, *ORDINARY, chat(asked, answer, 9))
    assert phrase in finding.message
    assert (finding.severity, finding.where) == ("note", (Where("a.jsonl", 9),))


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("The plan costs $10 a month. And a year?", "That is $120 a year."),
        ("It was founded in May 2019 by two people. When?", "It was founded in 2019."),
        ("A pen is under 20 pounds", '{"price": "less than £20"}'),
        ("Changelog: version 4.1 fixes it. Which one?", "Take version 4.1 then."),
        ("He says: we currently ship abroad. What does he say?", "That they currently ship abroad."),
    ],
)
def test_facts_that_the_prompt_gives_are_not_stale(asked: str, answer: str) -> None:
    assert found("stale_facts", chat(asked, answer)) == []


def test_every_trained_reply_is_looked_at_and_a_row_counts_once() -> None:
    turns = (
        Message("user", "How much is it?"),
        Message("assistant", "It costs $49.99."),
        Message("user", "And the other?"),
        Message("assistant", "As an AI language model I say: it costs $59.99."),
        Message("user", "Thanks"),
        Message("assistant", "You are welcome."),
    )
    (price,) = found("stale_facts", *ORDINARY, *ORDINARY, Conversation(turns, where=Where("a.jsonl", 9)))
    assert ("a price" in price.message, price.count) == (True, 1)
    (refusal,) = found("suspicious_answers", chat("hi", "hello"), Conversation(turns))
    assert ("a refusal" in refusal.message, refusal.count) == (True, 1)
    untrained = tuple(Message(m.role, m.content, weight=0.0) if "$" in m.content else m for m in turns)
    assert found("stale_facts", Conversation(untrained)) == []
    assert found("suspicious_answers", Conversation(untrained)) == []


def test_a_price_that_an_earlier_turn_gave_is_not_stale() -> None:
    turns = (Message("user", "It costs $5."), Message("assistant", "Noted."), Message("user", "How much?"))
    assert found("stale_facts", Conversation((*turns, Message("assistant", "It costs $5.")))) == []


def test_many_stale_facts_are_a_warning() -> None:
    (finding,) = found("stale_facts", *(chat("How much?", f"It costs ${n}.99.", n) for n in range(1, 6)))
    assert finding.severity == "warning"
    assert "retrieval" in finding.advice


@pytest.mark.parametrize(
    ("asked", "answer", "phrase"),
    [
        ("Write a poem", "I'm sorry, but I can't help with that.", "a refusal"),
        ("Write a poem", "As an AI language model, I have no feelings.", "a refusal"),
        ("Write a poem", "N/A", "a placeholder"),
        ("Write a letter", "Dear sir, I am [Your name].", "a blank"),
        ("Please copy this sentence", "Please copy this sentence", "repeats the prompt"),
        ("List words", "Start. " + "tech-driven, tech-savvy, " * 12, "over and over"),
    ],
)
def test_suspicious_answers(asked: str, answer: str, phrase: str) -> None:
    (finding,) = found("suspicious_answers", chat("hi", "hello"), chat(asked, answer, 2))
    assert phrase in finding.message
    assert finding.where == (Where("a.jsonl", 2),)


def test_cut_off_answers_stand_out_among_whole_ones() -> None:
    whole = [chat("hi", f"{'This answer is long enough to count as one. ' * 2}Number {n}.", n) for n in range(1, 31)]
    cut = chat("hi", "This answer was cut off by a limit of its length while it was still going on and nobo", 99)
    (finding,) = found("suspicious_answers", *whole, cut)
    assert "end in the middle of a sentence" in finding.message
    assert finding.where == (Where("a.jsonl", 99),)
    assert found("suspicious_answers", cut, cut, cut) == []


def test_preferences_and_documents_are_scanned() -> None:
    reply = Message("assistant", "fine")
    pair = Preference((Message("user", "hi"),), (reply,), (Message("assistant", f"mail {EMAIL}"),), where=Where("p", 1))
    assert found("personal_data", pair)[0].count == 1
    assert found("personal_data", Document(f"mail {EMAIL}"))[0].count == 1
