"""Checks that compare rows: roles, empty, lengths, duplicates, leakage, contradictions, balance."""

from collections.abc import Iterable, Sequence

import pytest

from luthier.data.checks.base import Finding, run_checks
from luthier.examples import Conversation, Document, Example, Message, Preference, ToolCall, Where

TOPICS = ("parcel", "refund", "password", "invoice", "delivery", "warranty", "address", "voucher", "battery", "screen")
VERBS = ("lost", "changed", "returned", "ordered", "broke", "forgot", "received", "cancelled", "updated", "sold")
PLACES = ("Lisbon", "Oslo", "Quito", "Dakar", "Perth", "Turin", "Lagos", "Hanoi", "Malmo", "Davao")


def question(number: int) -> str:
    """One of a thousand questions that differ in most of their words."""
    topic, verb, place = TOPICS[number % 10], VERBS[number // 10 % 10], PLACES[number // 100 % 10]
    code, street = number * 7919 % 9973, number * 6007 % 9973
    return (
        f"I {verb} my {topic} while moving from {place} number {code}; tell me what {topic} {verb} means now. "
        f"Order {code} of {street} went to {place} {street}, where {verb} {code} {topic} {street} is by {topic} {code}."
    )


def turn(role: str, text: str = "", **more: object) -> Message:
    return Message(role, text, **more)  # type: ignore[arg-type]


def chat(number: int, asked: str | None = None, answer: str | None = None, path: str = "train.jsonl") -> Conversation:
    asked = question(number) if asked is None else asked
    answer = f"It means that case {number} is being looked at by a colleague." if answer is None else answer
    messages = (turn("system", "Be brief."), turn("user", asked), turn("assistant", answer))
    return Conversation(messages, where=Where(path, number + 1))


def clean(count: int = 300, path: str = "train.jsonl", first: int = 0) -> list[Example]:
    return [chat(number, path=path) for number in range(first, first + count)]


def found(name: str, examples: Iterable[Example], **held_out: Iterable[Example]) -> list[Finding]:
    return run_checks({"train": examples, **held_out}, only=[name])


def lines(finding: Finding) -> list[int]:
    return [place.line for place in finding.where]


COMPARING = [
    "roles",
    "empty",
    "overlong",
    "exact_duplicates",
    "near_duplicates",
    "leakage",
    "contradictions",
    "balance",
]


@pytest.mark.parametrize("name", COMPARING)
def test_clean_rows_have_no_findings(name: str) -> None:
    assert found(name, clean(), test=clean(100, "test.jsonl", first=400)) == []


CALL = Message("assistant", tool_calls=(ToolCall("weather", {"city": "Oslo"}),))
WEATHER = ({"type": "function", "function": {"name": "weather"}},)
U, A, S, T = turn("user", "hi"), turn("assistant", "hello"), turn("system", "s"), turn("tool", "12 degrees")


@pytest.mark.parametrize(
    ("messages", "tools", "severity", "phrase"),
    [
        ((U,), (), "error", "no assistant turn"),
        ((), (), "error", "no messages"),
        ((U, A, U), (), "warning", "does not end with an assistant"),
        ((U, U, A), (), "warning", "two user turns"),
        ((U, A, A), (), "warning", "two assistant turns"),
        ((U, S, A), (), "warning", "not the first turn"),
        ((A, U, A), (), "warning", "begins with an assistant"),
        ((U, T, A), WEATHER, "warning", "no call precedes"),
        ((U, CALL, T, A), (), "warning", "offers no tools"),
        ((U, CALL, T, A), ({"type": "function", "function": {"name": "time"}},), "warning", "does not offer"),
    ],
)
def test_roles(messages: Sequence[Message], tools: tuple, severity: str, phrase: str) -> None:
    row = Conversation(tuple(messages), tools, where=Where("a.jsonl", 7))
    (finding,) = found("roles", [*clean(5), row])
    assert finding.severity == severity
    assert phrase in finding.message
    assert lines(finding) == [7]


def call(*ids: str | None, **arguments: object) -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall("weather", arguments, id=name) for name in ids))


def result(name: str | None) -> Message:
    return Message("tool", "12 degrees", tool_call_id=name)


STRICT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
STRICT_WEATHER = ({"type": "function", "function": {"name": "weather", "parameters": STRICT}},)


@pytest.mark.parametrize(
    ("messages", "tools", "phrase"),
    [
        ((U, call("c1"), U, A), WEATHER, "without a result"),
        ((U, call("c1", "c2"), result("c2"), A), WEATHER, "without a result"),
        ((U, call("c1"), result("c1"), result("c1"), call("c2"), A), WEATHER, "no open call"),
        ((U, call(None, None), result(None), A), WEATHER, "without a result"),
        ((U, call("c1", "c2"), result("c1"), result("c3")), WEATHER, "no open call"),
        ((U, call("c1", city=7), result("c1"), A), STRICT_WEATHER, "do not fit"),
        ((U, call("c1")), STRICT_WEATHER, "do not fit"),
    ],
)
def test_tool_calls_and_their_results(messages: Sequence[Message], tools: tuple, phrase: str) -> None:
    findings = found("roles", [*clean(5), Conversation(tuple(messages), tools, where=Where("a.jsonl", 7))])
    assert [finding.severity for finding in findings if phrase in finding.message] == [
        "error" if phrase == "no open call" else "warning"
    ]


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ((U, call("c1", "c2")), WEATHER),  # a row may end with its calls: that is what it teaches
        ((U, call("c1", "c2"), result("c2"), result("c1"), A), WEATHER),
        ((U, call("c1"), result(None), A), WEATHER),
        ((U, call(None), result("c9"), A), WEATHER),
        ((U, call("c1", city="Oslo"), result("c1"), call("c1", city="Rome"), result("c1"), A), STRICT_WEATHER),
        ((U, call("c1")), ({"name": "weather", "parameters": {"type": "no such type"}},)),
        ((U, call("c1")), ({"name": "weather", "parameters": {"$ref": "https://example.com/schema.json"}},)),
    ],
)
def test_tool_use_in_order_has_no_findings(messages: Sequence[Message], tools: tuple) -> None:
    assert found("roles", [Conversation(tuple(messages), tools)]) == []


def test_roles_accepts_tool_use_and_several_results() -> None:
    two = Message(
        "assistant", tool_calls=(ToolCall("weather", {"city": "Oslo"}), ToolCall("weather", {"city": "Rome"}))
    )
    flat = ({"name": "weather"},)
    rows = [Conversation((S, U, two, T, T, A, U, A), WEATHER), Conversation((U, CALL), flat)]
    assert found("roles", rows) == []


def test_roles_of_preferences() -> None:
    good = Preference((U,), (A,), (turn("assistant", "go away"),))
    assert found("roles", [good]) == []
    (finding,) = found("roles", [Preference((), (A,), (A,))])
    assert finding.severity == "error"
    assert "without a prompt" in finding.message


@pytest.mark.parametrize(
    ("row", "phrase"),
    [
        (Conversation((U, turn("assistant", " \n\t"))), "an empty reply"),
        (Conversation((turn("user", ""), A)), "an empty prompt"),
        (Conversation((U, turn("assistant", ""), U, A)), "an empty reply"),
        (Preference((U,), (A,), ()), "an empty reply"),
        (Preference((U,), (turn("assistant", ""),), (A,)), "an empty reply"),
        (Preference((U,), (turn("assistant", ""),), ()), "an empty reply"),
        (Document("  "), "no text"),
    ],
)
def test_empty(row: Example, phrase: str) -> None:
    (finding,) = found("empty", [*clean(5), row, row])
    assert (finding.severity, finding.count) == ("error", 2)  # each row once, though both have the same place
    assert phrase in finding.message


def test_an_assistant_turn_with_a_tool_call_alone_is_not_empty() -> None:
    assert found("empty", [Conversation((U, CALL), WEATHER)]) == []


def test_overlong_counts_and_tells_quantiles() -> None:
    rows = [*clean(99), chat(99, answer="word " * 3000)]
    (finding,) = found("overlong", rows)
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 1, [100])
    assert "1.0 %" in finding.message
    assert "the longest 15," in finding.message


def test_exact_duplicates_count_repeats_not_groups() -> None:
    rows = clean(50)
    rows += [chat(60 + n, question(3), "It means that case 3 is being looked at by a colleague.") for n in range(2)]
    rows += [chat(70, question(9), "It means that case 9 is being looked at by a colleague.")]
    (finding,) = found("exact_duplicates", rows)
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 3, [61, 62, 71])
    assert (
        "2 different rows occur more than once, up to 3 times; train.jsonl, line 61 repeats train.jsonl, line 4"
        in finding.message
    )


def test_exact_duplicates_look_at_roles_weights_and_tools() -> None:
    same = [
        Conversation((U, A)),
        Conversation((U, A), WEATHER),
        Conversation((U, turn("assistant", "hello", weight=0.0))),
    ]
    assert found("exact_duplicates", same) == []
    swapped = [Preference((U,), (A,), (T,)), Preference((U,), (T,), (A,))]
    assert found("exact_duplicates", swapped) == []


def test_the_advice_on_duplicates_is_that_of_the_split() -> None:
    train, test = found("exact_duplicates", [*clean(9), chat(3)], test=[chat(20, path="t"), chat(20, path="t")])
    assert train.advice.startswith("data.duplicates")
    assert test.advice.startswith("remove them")


def test_exact_duplicates_of_two_splits_are_leaks_not_repeats() -> None:
    assert found("exact_duplicates", clean(20), test=clean(20, "test.jsonl")) == []


def test_near_duplicates_find_case_punctuation_and_one_changed_word() -> None:
    rows = clean(200)
    variants = [
        chat(300, question(5).upper(), "It means that case 5 is being looked at by a colleague."),
        chat(301, question(6).replace(" my ", " my, "), "It means that case 6 is being looked at by a colleague!"),
        chat(302, question(7), "It means that case 7 is being looked at by some colleague."),
    ]
    (finding,) = found("near_duplicates", [*rows, *variants])
    assert (finding.severity, lines(finding), finding.count) == ("warning", [301, 302, 303], 3)
    assert "train.jsonl, line 301 is like train.jsonl, line 6 (1.00)" in finding.message


def test_near_duplicates_leave_exact_ones_to_their_check() -> None:
    assert found("near_duplicates", [*clean(50), chat(3)]) == []


def test_a_shared_instruction_in_the_user_turn_makes_no_near_duplicates() -> None:
    rules = " ".join(f"Rule {n}: a {TOPICS[n % 10]} from {PLACES[n // 10]} costs {n * 37} points." for n in range(60))
    rows = [chat(n, f"{rules} {question(n)}", TOPICS[n % 10]) for n in range(300)]
    assert found("near_duplicates", rows) == []
    (unlearned,) = found("near_duplicates", rows[:9])  # too few rows to tell the instruction from the rest
    assert unlearned.count == 8


def test_leakage_is_an_error_where_the_same_is_asked_and_else_a_warning() -> None:
    test = clean(100, "test.jsonl", first=500)
    test += [
        chat(900, f"  {question(5)}\n", "another answer", "test.jsonl"),
        chat(901, f"{question(6).upper()}!", path="test.jsonl"),
        chat(902, question(7).replace("; tell", " and tell"), path="test.jsonl"),
    ]
    same, alike, near = found("leakage", clean(), test=test)
    assert (same.severity, same.count, same.where) == ("error", 1, (Where("test.jsonl", 901),))
    assert "test.jsonl, line 901 and train.jsonl, line 6" in same.message
    assert (alike.severity, alike.count, alike.where) == ("warning", 1, (Where("test.jsonl", 902),))
    assert "train.jsonl, line 7" in alike.message
    assert (near.severity, near.count, near.where) == ("warning", 1, (Where("test.jsonl", 903),))
    assert "train.jsonl, line 8" in near.message


@pytest.mark.parametrize(
    ("trained", "held_out", "severities"),
    [
        ("What is 25?", "What is 2⁵?", []),
        ("What is 5!", "What is 5?", ["warning"]),
        ("What is US", "what is us", ["warning"]),
        ("Où  est-ce?", "Ou\u0300 est-ce?", ["error"]),
        ("3+5", "3-5", []),
    ],
)
def test_what_is_equal_only_after_folding_is_no_error(trained: str, held_out: str, severities: list[str]) -> None:
    findings = found("leakage", [chat(1, trained)], test=[chat(2, held_out)])
    assert [finding.severity for finding in findings] == severities


def test_the_same_text_under_another_system_turn_or_with_other_tools_is_no_error() -> None:
    def translate(number: int, into: str) -> Conversation:
        messages = (turn("system", f"Translate to {into}."), turn("user", question(number)), turn("assistant", into))
        return Conversation(messages, where=Where(into, number))

    (finding,) = found(
        "leakage",
        [translate(n, "French") for n in range(50)],
        test=[translate(n, "German") for n in range(40)],
    )
    assert (finding.severity, finding.count) == ("warning", 40)
    asked = turn("user", question(1))
    (finding,) = found("leakage", [Conversation((asked, A), WEATHER)], test=[Conversation((asked, A))])
    assert finding.severity == "warning"


def _talk(*texts: str, weights: dict[int, float] | None = None, path: str = "train.jsonl") -> Conversation:
    """A chat of alternating user and assistant turns."""
    messages = tuple(
        turn("assistant" if index % 2 else "user", text, weight=(weights or {}).get(index))
        for index, text in enumerate(texts)
    )
    return Conversation(messages, where=Where(path, 1))


@pytest.mark.parametrize(
    ("trained", "held_out", "severities"),
    [
        (_talk(question(3), "a", "thanks", "b"), _talk(question(3), "c"), ["error"]),  # answered in the first turn
        (
            _talk("hello", "hi", question(3), "a", "thanks", "b"),
            _talk(question(3), "c"),
            ["error"],
        ),  # and in the second
        (_talk(question(3), "a", "so?", "b", "thanks", "c"), _talk(question(3), "a", "so?", "d"), ["error"]),
        (_talk(question(3), "a", "thanks", "b", weights={1: 0.0}), _talk(question(3), "c"), ["warning"]),  # near alone
        (_talk(question(3), "a"), _talk("hello", "hi", question(3), "c"), ["warning"]),  # after another turn
        (_talk("thanks", "a", "hello", "b"), _talk(question(4), "a", "thanks", "b"), []),
    ],
)
def test_leakage_looks_at_every_trained_turn(
    trained: Conversation, held_out: Conversation, severities: list[str]
) -> None:
    rows = [*clean(30, first=100), trained]
    findings = found("leakage", rows, test=[held_out])
    assert [finding.severity for finding in findings] == severities


def test_a_turn_that_many_rows_share_is_a_template_and_no_leak() -> None:
    again = "Now say the same thing once more, please."
    train = [_talk(question(n), "a", again, "b") for n in range(40)]
    assert found("leakage", train, test=[_talk(question(500), "a", again, "b")]) == []


def test_leakage_between_validation_and_test() -> None:
    held_out = [chat(500, path="validation.jsonl")]
    (finding,) = found("leakage", clean(), validation=held_out, test=[chat(500, path="test.jsonl")])
    assert "1 row of test" in finding.message
    assert "in train or validation" in finding.message


def test_a_constant_question_about_the_system_turn_is_no_leak() -> None:
    def about(number: int, path: str) -> Conversation:
        messages = (turn("system", question(number)), turn("user", "Summarize."), turn("assistant", f"Case {number}."))
        return Conversation(messages, where=Where(path, number))

    train = [about(number, "train.jsonl") for number in range(1, 60)]
    test = [about(number, "test.jsonl") for number in range(100, 120)]
    assert found("leakage", train, test=test) == []
    (finding,) = found("leakage", train, test=[*test, about(7, "test.jsonl")])
    assert (finding.severity, finding.count, finding.where) == ("error", 1, (Where("test.jsonl", 7),))


def test_contradictions_of_labels_are_a_warning() -> None:
    rows = [chat(n, answer=TOPICS[n % 10]) for n in range(50)]
    rows += [chat(60, f"{question(4)} ", "another"), chat(61, question(4).upper(), TOPICS[4])]
    (finding,) = found("contradictions", rows)
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 2, [5, 61])
    assert "1 input has more than one answer" in finding.message


def test_contradictions_but_for_case_or_punctuation_are_a_note() -> None:
    rows = [chat(n, answer=TOPICS[n % 10]) for n in range(50)]
    (finding,) = found("contradictions", [*rows, chat(60, "5!", "120"), chat(61, "5", "5"), chat(62, "2⁵", "32")])
    assert (finding.severity, finding.count, lines(finding)) == ("note", 2, [61, 62])
    assert found("contradictions", [chat(60, "2⁵", "32"), chat(61, "25", "25")]) == []
    (finding,) = found("contradictions", [chat(60, "caf\u00e9  au lait", "a"), chat(61, "cafe\u0301 au lait", "b")])
    assert finding.severity == "warning"  # one word in two Unicode forms, and blanks


def test_contradictions_compare_json_by_content() -> None:
    same = [chat(1, "a b", '{"x": 1, "y": 2}'), chat(2, "a b", '{"y":2,"x":1}')]
    assert found("contradictions", same) == []
    (finding,) = found("contradictions", [*same, chat(3, "a b", '{"x": 1, "y": 3}')])
    assert finding.count == 3


def test_contradictions_of_free_text_are_a_note() -> None:
    long = "This is a long answer that goes on for quite some time so that nobody takes it for a label, "
    (finding,) = found(
        "contradictions", [chat(1, "Tell me a story", long + "a"), chat(2, "Tell me a story", long + "b")]
    )
    assert finding.severity == "note"


def test_contradictions_need_the_same_instruction_and_tools() -> None:
    one = Conversation((turn("system", "Translate to French."), U, turn("assistant", "salut")))
    other = Conversation((turn("system", "Translate to German."), U, turn("assistant", "hallo")))
    assert found("contradictions", [one, other, Conversation((U, CALL), WEATHER), Conversation((U, A))]) == []


def test_contradicting_and_equal_preferences() -> None:
    left, right = turn("assistant", "yes"), turn("assistant", "no")
    rows = [
        Preference((U,), (left,), (right,), where=Where("p", 1)),
        Preference((U,), (right,), (left,), where=Where("p", 2)),
    ]
    (finding,) = found("contradictions", rows)
    assert (finding.severity, lines(finding)) == ("warning", [1, 2])
    (finding,) = found("contradictions", [Preference((U,), (left,), (left,), where=Where("p", 3))])
    assert (finding.severity, lines(finding)) == ("error", [3])


def labeled(counts: dict[str, int], path: str = "train.jsonl") -> list[Example]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [chat(number, answer=label, path=path) for number, label in enumerate(labels)]


def test_balance_tells_the_spread_and_warns_of_majority_and_rare_labels() -> None:
    majority, rare, spread = found("balance", labeled({"ok": 95, "late": 8, "lost": 2}))
    assert spread.severity == "note"
    assert "3 labels in 105 rows" in spread.message
    assert majority.severity == "warning"
    assert "90 % of train have the answer 'ok'" in majority.message
    assert "'lost'" in rare.message
    assert rare.count == 2


def test_balance_of_even_labels_is_a_note_alone() -> None:
    assert [finding.severity for finding in found("balance", labeled({"a": 50, "b": 60}))] == ["note"]


def test_balance_warns_of_untrained_and_inconsistent_labels() -> None:
    train, test = (
        labeled({"in transit": 40, "In-Transit": 10, "lost": 50}),
        labeled({"lost": 3, "stolen": 2}, "test.jsonl"),
    )
    messages = [finding.message for finding in found("balance", train, test=test)]
    assert any("train never shows: 'stolen'" in message for message in messages)
    assert any("written in several ways: 'in transit', 'In-Transit'" in message for message in messages)


def test_balance_stands_one_odd_answer_in_a_hundred_and_names_it() -> None:
    rows = labeled({"ok": 190, "late": 9})
    odd = chat(
        500, answer="This is no label, but a long sentence that somebody wrote into the wrong column of a table."
    )
    messages = {finding.message: finding for finding in found("balance", [*rows, odd])}
    (named,) = [finding for message, finding in messages.items() if "no label" in message]
    assert (named.severity, named.count, lines(named)) == ("warning", 1, [501])
    assert any("95 % of train have the answer 'ok'" in message for message in messages)
    assert found("balance", [*rows, odd, odd, odd]) == []  # more than one in a hundred: these are no labels


def test_one_answer_everywhere() -> None:
    (finding,) = found("balance", labeled({"ok": 30}))
    assert "all 30 rows of train have the same answer" in finding.message
