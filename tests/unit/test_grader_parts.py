"""Templates, formulas and measures of graders."""

import json
import math
import time
import tracemalloc
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score import rouge_scorer

from luthier.evaluation.graders._formula import parse_formula
from luthier.evaluation.graders._similarity import (
    common_subsequence,
    fuzzy_match,
    gleu,
    meteor,
    rouge_l,
    rouge_n,
    words,
)
from luthier.evaluation.graders._template import MAX_VARIABLES, parse_template, render
from luthier.evaluation.graders.base import Errors, NoScore, Sample

CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
SAMPLE = Sample.of('{"city": "Paris", "parts": [{"n": 1}], "none": null}', tools=[CALL])
ITEM = {"a": "x", "list": ["p", "q"], "deep": {"b-c": {"d_1": 7}}, "yes": True, "nothing": None, "é": "é", "0": "zero"}


def rendered(template: str, item: dict[str, Any] = ITEM, sample: Sample = SAMPLE, longest: int = 1000) -> str:
    return render(template, sample, item, longest)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain } text }} { with braces", "plain } text }} { with braces"),
        ("{{item.a}}", "x"),
        ("<{{ item.a }}{{item.a}}>", "<xx>"),
        ("{{item.list[1]}}", "q"),
        ("{{item.list}}", '["p", "q"]'),
        ("{{item.deep.b-c.d_1}}", "7"),
        ("{{item.yes}} {{item.nothing}}", "true null"),
        ("{{item.é}}", "é"),
        ("{{item.0}}", "zero"),
        ("{{sample.output_json.city}}", "Paris"),
        ("{{sample.output_json.parts[0].n}}", "1"),
        ("{{sample.output_json.none}}", "null"),
        ("{{sample.output_tools[0].function.name}}", "find"),
        ("{{sample.output_text}}", SAMPLE.output_text),
    ],
)
def test_variables_are_replaced(template: str, text: str) -> None:
    assert rendered(template) == text


def test_whole_namespaces_are_json() -> None:
    assert json.loads(rendered("{{item}}")) == ITEM
    assert json.loads(rendered("{{sample}}")) == SAMPLE.values()


def test_what_is_inserted_is_not_read_again() -> None:
    item = {"a": "{{item.secret}}", "secret": "42"}
    assert rendered("{{item.a}} {{sample.output_text}}", item, Sample("{{item.secret}}")) == " ".join([item["a"]] * 2)
    assert rendered("{{item.a}}}}", {"a": "{{", "x": "1"}) == "{{}}"


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_text_comes_through_unchanged(before: str, inserted: str) -> None:
    before = before.replace("{", "")
    assert rendered(before + "{{item.a}}", {"a": inserted}) == before + inserted


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{{item.a",
        "{{}}",
        "{{ }}",
        "{{items.a}}",
        "{{item.}}",
        "{{item..a}}",
        "{{item.a b}}",
        "{{item.a()}}",
        "{{item['a']}}",
        "{{item[-1]}}",
        "{{item[a]}}",
        "{{item.a|upper}}",
        "{{{item.a}}}",
        "{{sample.output}}",
        "{{sample[0]}}",
        "{{sample.choices}}",
        "{{self.a}}",
        "{{item." + "a" * 400 + "}}",
        "{{1 + 1}}",
        "{{item.a}}" * (MAX_VARIABLES + 1),
    ],
)
def test_what_is_no_variable_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        parse_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{item.b}}",
        "{{item.a.b}}",
        "{{item.a[0]}}",
        "{{item.list[2]}}",
        "{{item.list.0}}",
        "{{item[0]}}",
        "{{item.__class__}}",
        "{{item.list.__len__}}",
        "{{sample.output_text.x}}",
        "{{sample.output_tools[1]}}",
        "{{sample.output_json.x}}",
        "{{item.nothing.x}}",
    ],
)
def test_a_variable_without_a_value_is_a_flag(template: str) -> None:
    with pytest.raises(NoScore) as raised:
        rendered(template)
    assert raised.value.errors == Errors(invalid_variable_error=True)


def test_a_text_that_becomes_too_long_is_a_flag_and_no_memory() -> None:
    with pytest.raises(NoScore) as raised:
        rendered("{{item.a}}" * MAX_VARIABLES, {"a": "x" * 100_000}, longest=1_000_000)
    assert raised.value.errors == Errors(truncated_observation_error=True)


@given(st.text(alphabet="{}itemsapl.[]0 _-", max_size=300))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        parse_template(text)
    except ValueError:
        return
    try:
        rendered(text)
    except NoScore:
        return


@pytest.mark.parametrize("text", ["{{" * 50_000, "{{item.a}}" * 9_000, "{{item" + ".a" * 50_000, "}" * 100_000])
def test_templates_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    with suppress(ValueError):
        parse_template(text)
    assert time.perf_counter() - start < 1


# formulas


REWARDS = {"a": 0.5, "b": 2.0, "zero": 0.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.5),
        (" a + b ", 2.5),
        ("a - b * 2", -3.5),
        ("(a + b) / 2", 1.25),
        ("b ** 3", 8.0),
        ("-a", -0.5),
        ("+a - -b", 2.5),
        ("-b ** 2", -4.0),
        ("min(a, b, 1)", 0.5),
        ("max(a, 3)", 3.0),
        ("min(a)", None),
        ("abs(a - b)", 1.5),
        ("floor(a)", 0.0),
        ("ceil(a)", 1.0),
        ("exp(zero)", 1.0),
        ("sqrt(b * 2)", 2.0),
        ("log(b / 2)", 0.0),
        ("1e3 * a + .5", 500.5),
    ],
)
def test_formulas_are_worked_out(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match="gives min 1 values; expected 2 to 32"):
            parse_formula(text, REWARDS)
    else:
        assert parse_formula(text, REWARDS).value(REWARDS) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a +",
        "c",
        "a.real",
        "a[0]",
        "a if b else 1",
        "a and b",
        "a < b",
        "a // b",
        "a % b",
        "a @ b",
        "a << b",
        "~a",
        "not a",
        "'a'",
        "f'{a}'",
        "True",
        "None",
        "1j",
        "[a]",
        "(a, b)",
        "{a: b}",
        "lambda: a",
        "(x := a)",
        "[a for a in b]",
        "a; b",
        "a\nb",
        "__import__('os')",
        "open(a)",
        "abs.__class__(a)",
        "abs",
        "min(*a)",
        "min(a, b, key=abs)",
        "abs(a, b)",
        "await a",
        "(" * 300 + "a" + ")" * 300,
        "-" * 1500 + "a",
        "a" + " + a" * 600,
        "9" * 1900,
        "1e400",
        "\x00",
        "\ud800",
        "a" * 2001,
        "a(b)",
        "...",
    ],
)
def test_what_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        parse_formula(text, REWARDS)


@pytest.mark.parametrize(
    "text",
    [
        "a / zero",
        "zero ** -1",
        "(-b) ** a",
        "b ** 65",
        "exp(b * 1000)",
        "sqrt(-b)",
        "log(zero)",
        "1e308 * 10 * a",
        "1e308 * 10 * a - 1e308 * 10 * a",
        "((b ** 64) ** 64) ** 64",
        "floor(1e308 * 10 * a)",
    ],
)
def test_a_formula_without_a_finite_value_is_said_to_have_none(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"has no value for|is -?(inf|nan) for"):
        parse_formula(text, REWARDS).value(REWARDS)
    assert time.perf_counter() - start < 1


@given(st.text(alphabet="ab+-*/()., 0123min", max_size=80))
@settings(max_examples=300)
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    try:
        value = parse_formula(text, REWARDS).value(REWARDS)
    except ValueError:
        return
    assert math.isfinite(value)


def test_names_that_are_used_are_known() -> None:
    assert parse_formula("max(a, 1) * 2", REWARDS).names == {"a"}
    assert parse_formula("1 + 1", REWARDS).names == set()


# measures


TEXTS = st.lists(st.sampled_from("the cat cats sat on mat running runs Ένα δύο x".split()), max_size=14).map(" ".join)  # noqa: SIM905


class NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


@given(TEXTS, TEXTS)
def test_meteor_is_nltks_without_synonyms(text: str, reference: str) -> None:
    said, wanted = words(text), words(reference)
    expected = single_meteor_score(wanted, said, wordnet=NoSynonyms()) if said and wanted else float(text == reference)
    assert meteor(text, reference) == pytest.approx(expected)


@given(TEXTS, TEXTS)
def test_gleu_is_nltks(text: str, reference: str) -> None:
    said, wanted = words(text), words(reference)
    expected = sentence_gleu([wanted], said) if said or wanted else 1.0
    assert gleu(text, reference) == pytest.approx(expected)


@given(TEXTS, TEXTS)
def test_rouge_is_that_of_the_library(text: str, reference: str) -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge3", "rougeL"])
    ascii_only = [t.encode("ascii", "ignore").decode() for t in (text, reference)]
    expected = scorer.score(ascii_only[1], ascii_only[0])
    assert rouge_l(*ascii_only) == pytest.approx(expected["rougeL"].fmeasure)
    assert rouge_n(1)(*ascii_only) == pytest.approx(expected["rouge1"].fmeasure)
    assert rouge_n(3)(*ascii_only) == pytest.approx(expected["rouge3"].fmeasure)


@given(st.text(alphabet="abcé", max_size=12), st.text(alphabet="abcé", max_size=12))
def test_the_longest_common_subsequence_is_that_of_its_definition(a: str, b: str) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if a[i - 1] == b[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert common_subsequence(a, b) == longest(len(a), len(b))


def test_texts_of_many_characters_take_little_memory() -> None:
    text = "".join(chr(0x20000 + at) for at in range(20_000))
    tracemalloc.start()
    try:
        assert fuzzy_match(text, text[::-1]) == pytest.approx(1 / 20_000)
        assert fuzzy_match(text, text) == 1.0
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_common_and_rare_characters_are_counted_alike() -> None:
    assert common_subsequence("ab" * 200 + "xyz", "b" * 150 + "zyx") == 151


def test_fuzzy_match_has_the_values_of_rapidfuzz() -> None:
    """`rapidfuzz.fuzz.ratio` of its own documentation: 96.55 for these two."""
    assert fuzzy_match("this is a test", "this is a test!") == pytest.approx(0.9655, abs=1e-4)
    assert fuzzy_match("", "") == 1.0
    assert fuzzy_match("", "a") == 0.0


def test_other_scripts_have_words() -> None:
    for measure in (rouge_n(1), rouge_l, gleu, meteor):
        assert measure("Η Αθήνα είναι πόλη", "η αθήνα είναι πόλη") > 0.9
