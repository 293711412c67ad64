"""The split: deterministic, blind to order and additions, and no group on two sides."""

import hashlib
import itertools
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from luthier.data.checks.base import run_checks
from luthier.data.formats.base import read_examples
from luthier.data.split import Leak, Split, find_leaks, fold, group_keys, near_duplicates, split
from luthier.errors import DataError
from luthier.examples import Conversation, Document, Example, Message, Preference, Where

SHARES = {"validation": 0.1, "test": 0.1}
SYSTEM = "Extract the facts. " * 40
_LETTERS = random.Random(1)
WORDS = ["".join(_LETTERS.choices("abcdefghijklmnopqrstuvwxyz", k=_LETTERS.randint(3, 9))) for _ in range(400)]


def _row(
    text: str, line: int = 1, group: str | None = None, system: str = SYSTEM, path: str = "train.jsonl"
) -> Conversation:
    messages = (Message("system", system), Message("user", text), Message("assistant", "ok"))
    return Conversation(messages, where=Where(path, line), id=str(line), group=group)


def _rows(count: int, seed: int = 0) -> list[Example]:
    generator = random.Random(seed)
    return [_row(" ".join(generator.choices(WORDS, k=12)), line) for line in range(1, count + 1)]


def _side(parts: Split) -> dict[str, str]:
    named = (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
    return {example.id: name for name, examples in named for example in examples}


def test_nothing_is_lost_and_the_order_is_kept() -> None:
    rows = _rows(200)
    parts = split(rows, SHARES, 0)
    everything = [*parts.train, *parts.validation, *parts.test]
    assert sorted(everything, key=lambda e: e.where.line) == rows
    for part in (parts.train, parts.validation, parts.test):
        assert [e.where.line for e in part] == sorted(e.where.line for e in part)
    assert parts.counts == {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}
    assert (parts.groups, parts.leaks, parts.notes) == (200, (), ())


def test_shares_hold_within_sampling_error() -> None:
    parts = split(_rows(1000), {"validation": 0.2, "test": 0.1}, 0)
    for name, share in (("validation", 0.2), ("test", 0.1)):
        deviation = abs(parts.counts[name] - 1000 * share) / (1000 * share * (1 - share)) ** 0.5
        assert deviation < 4, (name, parts.counts)


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    rows = _rows(150)
    first = _side(split(rows, SHARES, 0))
    assert first == _side(split(rows, SHARES, 0))
    assert first == _side(split(rows[::-1], SHARES, 0))  # without near duplicates not even on the order
    assert first != _side(split(rows, SHARES, 1))
    # worked out by hand from sha256 alone, so it is the same on every machine and in every version
    for row in rows:
        digest = hashlib.sha256(b"0\0prompt:" + _asked(row).encode()).digest()
        assert (first[row.id] == "test") == (int.from_bytes(digest[:8], "big") / 2**64 < SHARES["test"])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(10, 80), st.integers(1, 40), st.integers(0, 3))
def test_appended_rows_move_no_other(count: int, more: int, seed: int) -> None:
    rows = _rows(count + more, seed=7)
    # some of the new rows repeat or nearly repeat old ones
    new = [_row(_asked(rows[i]) + (" indeed" if i % 2 else "!"), 1000 + i) for i in range(0, count, 5)]
    shares = {"validation": 0.3, "test": 0.3}
    before, after = split(rows[:count], shares, seed), split([*rows, *new], shares, seed)
    assert before.notes == ()
    sides = _side(after)
    assert all(sides[row] == side for row, side in _side(before).items())


def _asked(example: Example) -> str:
    assert isinstance(example, Conversation)
    return example.messages[1].content


def _alone(rows: list[Example], seeds: int = 16) -> bool:
    """Whether two marked rows ever stand on different sides."""
    return any(len({_side(split(rows, SHARES, seed))[i] for i in ("a", "b")}) > 1 for seed in range(seeds))


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("Where is my card?", "where is  my card", True),
        ("Ｗhere is my card", "where is my card!!", True),
        ("I’m lost", "I'm lost", True),
        (
            "Please tell me how long a transfer to a bank account in another country takes at most on weekdays",
            "Please tell me how long a transfer to a bank account in another country takes at least on weekdays",
            True,
        ),
        (
            "请告诉我从北京到上海的高铁最早一班车的出发时间和票价是多少以及车程",
            "请告诉我从北京到上海的高铁最早一班车的出发时间和票价是多少以及车站",
            True,
        ),
        ("What is 3 + 5?", "What is 3 + 6?", False),
        ("Where is my card?", "Where is my cart now?", False),
        ("!!!", "???", False),
        ("👍", "👎", False),
    ],
)
def test_equal_and_nearly_equal_prompts_stay_together(first: str, second: str, together: bool) -> None:
    filler = _rows(20)
    pair: list[Example] = [_row(first), _row(second)]
    marked = [
        Conversation(e.messages, id=name) for e, name in zip(pair, "ab", strict=True) if isinstance(e, Conversation)
    ]
    assert _alone([*filler, *marked]) is not together


def test_a_long_shared_system_prompt_makes_no_duplicates() -> None:
    parts = split([_row(f"{a} {b}", i) for i, (a, b) in enumerate(itertools.pairwise(WORDS))], SHARES, 0)
    assert parts.groups == len(WORDS) - 1


def test_a_long_shared_block_in_the_user_turn_makes_no_duplicates() -> None:
    block = "Read the following contract clause and say which of the parties must act, and by which date. " * 5
    rows = [_row(f"{block}\n\n{_asked(row)}", i) for i, row in enumerate(_rows(60))]
    assert split(rows, SHARES, 0).groups == 60


def test_a_constant_question_about_the_system_message_makes_no_single_group() -> None:
    rows = [_row("Summarize.", i, system=_asked(row)) for i, row in enumerate(_rows(60))]
    assert split(rows, SHARES, 0).groups == 60


def test_a_group_stays_together_and_joins_its_prompts() -> None:
    rows = _rows(20)
    marked = [
        Conversation((Message("user", "one"),), id="a", group="g"),
        Conversation((Message("user", "two"),), group="g"),
        Conversation((Message("user", "two"),), id="b"),  # bound to `a` by the row between
    ]
    assert not _alone([*rows, *marked])
    blank = [Conversation((Message("user", text),), id=text, group="") for text in "ab"]
    assert _alone([*rows, *blank])  # an empty group is none


def test_documents_and_preferences_are_divided_by_text_and_prompt() -> None:
    texts = [_asked(row) for row in _rows(40)]
    documents = [Document(text, id=str(i)) for i, text in enumerate([*texts, texts[0].upper()])]
    assert split(documents, SHARES, 0).groups == 40
    pairs = [
        Preference((Message("user", text),), (Message("assistant", str(i)),), (Message("assistant", "no"),))
        for i, text in enumerate([*texts, *texts])
    ]
    assert split(pairs, SHARES, 0).groups == 40


def test_every_split_gets_a_row_even_when_the_shares_are_small() -> None:
    for count in (3, 4, 10):
        for seed in range(10):
            parts = split(_rows(count), {"validation": 0.02, "test": 0.02}, seed)
            assert min(parts.counts.values()) >= 1
            assert len(parts.notes) >= 1 or count > 4
    large = split(_rows(3), {"validation": 0.49, "test": 0.49}, 0)
    assert large.counts == {"train": 1, "validation": 1, "test": 1}


def test_too_few_groups_are_refused() -> None:
    rows: list[Example] = [_row("same question", i) for i in range(50)]
    with pytest.raises(DataError, match=r"train\.jsonl: the rows form 1 group .*expected at least 3"):
        split(rows, SHARES, 0)
    with pytest.raises(DataError, match="no rows"):
        split([], SHARES, 0)


def test_wrong_shares_are_refused() -> None:
    rows = _rows(10)
    for shares in ({"test": 0.0}, {"test": 1.0}, {"test": 0.5, "validation": 0.5}, {"train": 0.8}):
        with pytest.raises(ValueError):
            split(rows, shares, 0)
    with pytest.raises(ValueError, match="rows of its own"):
        split(rows, {"test": 0.1}, 0, taken={"test": rows})


def test_rows_of_their_own_file_stay_and_leaks_are_reported_not_removed() -> None:
    rows = _rows(50)
    held_out = [
        _row(_asked(rows[3]).upper() + "?", 1, path="test.jsonl"),
        _row("something else entirely", 2, path="test.jsonl"),
    ]
    parts = split(rows, {"validation": 0.1}, 0, taken={"test": held_out})
    assert parts.test == tuple(held_out)
    assert len(parts.train) + len(parts.validation) == 50
    side = _side(parts)["4"]
    assert parts.leaks == (Leak(rows[3].where, side, held_out[0].where, "test"),)
    both = split(rows, {}, 0, taken={"test": held_out, "validation": [held_out[1]]})
    assert both.train == tuple(rows)
    assert [(leak.row, leak.split_of_row, leak.split) for leak in both.leaks] == [
        (rows[3].where, "train", "test"),
        (held_out[1].where, "validation", "test"),
    ]


def test_one_big_group_is_said() -> None:
    rows = [*_rows(60), *[_row("the very same question", 100 + i) for i in range(100)]]
    seeds = [split(rows, SHARES, seed) for seed in range(8)]
    assert all(any("rows of a group stay together" in note for note in parts.notes) for parts in seeds)


def test_near_duplicates_are_those_that_comparing_all_pairs_finds() -> None:
    generator = random.Random(3)
    texts: list[str] = []
    for row in _rows(60, seed=5):
        words = _asked(row).split() + generator.choices(WORDS, k=20)
        texts.append(" ".join(words))
        for changes in (1, 2, 4):
            copy = list(words)
            for at in generator.sample(range(len(words)), changes):
                copy[at] = generator.choice(WORDS)
            texts.append(" ".join(copy))
    texts = list(dict.fromkeys(texts))

    sets = [{t[i : i + 5] for i in range(len(t) - 4)} for t in texts]
    counts = Counter(shingle for held in sets for shingle in held)
    sets = [{shingle for shingle in held if counts[shingle] < max(10, 0.1 * len(texts))} for held in sets]

    def similarity(first: set[str], second: set[str]) -> float:
        return len(first & second) / len(first | second)

    expected = {
        (j, i) for i in range(len(texts)) for j in range(i + 1, len(texts)) if similarity(sets[i], sets[j]) >= 0.8
    }
    found = set(near_duplicates(texts, lambda a, b: False))
    assert len(expected) > 60
    assert found <= expected  # every candidate is verified
    assert len(found) >= 0.95 * len(expected)  # MinHash may miss a few at the border


_SYSTEMS = st.sampled_from(["", "Be brief.", "be brief", "Translate: five"])
_ASKED = st.sampled_from(
    ["3+5", "3-5", "5!", " 5 ", "US", "us", "thanks", "Where is my parcel today?", "2⁵", "25", "?", ""]
)


@st.composite
def _chats(draw: st.DrawFn) -> list[Example]:
    """Chats over so few texts that many questions are asked twice: in other turns, cases, under other system turns."""
    rows: list[Example] = []
    for line in range(draw(st.integers(4, 40))):
        system, tools = draw(_SYSTEMS), draw(st.sampled_from([(), ({"name": "f"},)]))
        messages = [Message("system", system)] if system else []
        for _ in range(draw(st.integers(1, 3))):
            messages.append(Message("user", draw(_ASKED)))
            messages.append(
                Message("assistant", draw(st.sampled_from("ab")), weight=draw(st.sampled_from([None, 0.0])))
            )
        rows.append(Conversation(tuple(messages), tools, where=Where("train.jsonl", line + 1), id=str(line)))
    return rows


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(_chats(), st.integers(0, 3))
def test_a_split_never_fails_the_check_for_leaks(rows: list[Example], seed: int) -> None:
    try:
        parts = split(rows, {"validation": 0.3, "test": 0.3}, seed)
    except DataError:  # too few groups
        return
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    assert [f.message for f in run_checks(named, only=["leakage"]) if f.severity == "error"] == []


def test_questions_about_personas_are_divided_as_the_check_compares_them() -> None:
    sums = [f"Compute {a}{sign}{b} please." for a, b in ((3, 5), (4, 6), (7, 2), (8, 9), (1, 2)) for sign in "+-*"]
    rows = [_row(asked, n, system=f"Persona {WORDS[n]}") for n, asked in enumerate(sums * 7)]
    parts = split(rows, SHARES, 0)
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    assert run_checks(named, only=["leakage"]) == []


def test_a_question_in_a_longer_chat_stays_with_the_same_question_alone() -> None:
    asked = "How do I reset the password of my router at home?"
    chat = [Message("user", "hello"), Message("assistant", "hi"), Message("user", asked), Message("assistant", "So.")]
    chat += [Message("user", "thanks"), Message("assistant", "Welcome.")]
    pair = [
        Conversation(tuple(chat), id="a"),
        Conversation((Message("user", asked), Message("assistant", "x")), id="b"),
    ]
    assert not _alone([*_rows(20), *pair])
    other = Conversation((*chat[:1], Message("assistant", "hey"), *chat[2:4]), id="b")
    assert not _alone([*_rows(20), pair[0], other])  # a longer turn that both have


def test_paraphrased_instructions_make_no_duplicates() -> None:
    blocks = [" ".join(random.Random(n).choices(WORDS, k=40)) for n in range(3)]
    rows = [_row(f"{blocks[i % 3]} {_asked(row)}", i) for i, row in enumerate(_rows(90))]
    assert split(rows, SHARES, 0).groups == 90


def test_rows_that_are_only_alike_never_make_up_more_than_a_quarter_of_a_file() -> None:
    words = " ".join(WORDS[:60])
    alike = [_row(f"{words} {WORDS[100 + i]}", i) for i in range(9)]  # too few to be told for a template
    parts = split([*alike, *_rows(30)], SHARES, 0)
    assert parts.groups == 31
    assert not any("more than a quarter" in note for note in parts.notes)
    asked = [Message("user", _asked(row)) for row in _rows(41)]
    said = Message("assistant", "ok")
    everywhere = [
        Conversation((asked[i], said, asked[i + 1], said), id=str(i)) for i in range(40)
    ]  # each like the next
    parts = split(everywhere, SHARES, 0)
    assert max(Counter(group_keys(everywhere)).values()) <= 10
    assert any("more than a quarter of all rows" in note for note in parts.notes)


def test_rows_of_one_pattern_take_time_in_proportion() -> None:
    def seconds(count: int) -> float:
        generator = random.Random(0)
        rows = [_row("Order " + " ".join(generator.choices(WORDS[:20], k=12)) + " for a shop", i) for i in range(count)]
        started = time.process_time()
        split(rows, SHARES, 0)
        return time.process_time() - started

    seconds(100)  # imports
    assert seconds(3000) < 5 * seconds(1000) + 0.5


def test_fold_leaves_words_and_numbers() -> None:
    assert fold("  Ünïcode—“quotes”, CASE_and\tﬁne\n12,5 ") == "ünïcode quotes case and fine 12 5"
    assert fold(" ?! ") == "?!"


def test_leaks_name_the_first_held_out_row_only() -> None:
    test = [_row("q", 1, path="test.jsonl"), _row("Q!", 2, path="test.jsonl"), *_rows(5)]
    train = [_row("q.", 9)]
    assert find_leaks({"train": train, "test": test}) == [
        Leak(Where("train.jsonl", 9), "train", Where("test.jsonl", 1), "test")
    ]


SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared development data is not beside this checkout")
def test_no_folded_prompt_of_real_rows_stands_on_two_sides() -> None:
    rows = list(read_examples(SHARED / "toolcalls" / "train.jsonl"))
    parts = split(rows, SHARES, 0)
    sides: dict[str, set[str]] = defaultdict(set)
    for name, part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        for example in part:
            assert isinstance(example, Conversation)
            sides[fold(example.messages[0].content)].add(name)
    assert len(rows) > len(sides)  # there are repeated prompts in it, so the test can fail
    assert all(len(names) == 1 for names in sides.values())
