"""Metrics on cases worked out by hand."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._json import MAX_DEPTH
from luthier.evaluation.metrics.accuracy import Accuracy
from luthier.evaluation.metrics.answer_f1 import AnswerF1
from luthier.evaluation.metrics.answer_match import AnswerMatch
from luthier.evaluation.metrics.base import Metric, Prediction, TargetScore
from luthier.evaluation.metrics.bits_per_byte import BitsPerByte
from luthier.evaluation.metrics.call_arguments import CallArguments
from luthier.evaluation.metrics.exact_match import ExactMatch
from luthier.evaluation.metrics.field_f1 import FieldF1
from luthier.evaluation.metrics.field_precision import FieldPrecision
from luthier.evaluation.metrics.field_recall import FieldRecall
from luthier.evaluation.metrics.json_valid import JsonValid
from luthier.evaluation.metrics.macro_f1 import MacroF1
from luthier.evaluation.metrics.pair_accuracy import PairAccuracy
from luthier.evaluation.metrics.perplexity import Perplexity
from luthier.evaluation.metrics.rouge_l import RougeL
from luthier.evaluation.metrics.schema_valid import SchemaValid
from luthier.evaluation.metrics.token_accuracy import TokenAccuracy
from luthier.evaluation.metrics.tool_calls import ToolCalls
from luthier.evaluation.task import build_metrics, choose_metrics, detect_task
from luthier.examples import Conversation, Document, Message, Preference, ToolCall


def answered(output: str, target: Any, **extra: Any) -> Prediction:
    return Prediction("row-1", (), output, target, extra=extra)


def value(metric: Metric, *predictions: Prediction) -> float:
    return metric.value(np.array([metric.statistics(p) for p in predictions], dtype=np.float64))


def test_field_f1_counts_leaves_over_all_rows() -> None:
    rows = [
        answered('{"name": "Ann", "age": 3, "city": "Oslo"}', {"name": "Ann", "age": 4}),  # 1 right of 3, 2 wanted
        answered('{"name": "Bob"}', {"name": "Bob", "age": 5, "pets": ["cat", "dog"]}),  # 1 right of 1, 4 wanted
        answered("no idea", {"name": "Cy"}),  # nothing of 0, 1 wanted
    ]
    assert value(FieldPrecision(), *rows) == pytest.approx(2 / 4)
    assert value(FieldRecall(), *rows) == pytest.approx(2 / 7)
    assert value(FieldF1(), *rows) == pytest.approx(2 * 2 / (4 + 7))


@pytest.mark.parametrize(
    ("output", "target", "right"),
    [
        ('{"a": 1.0}', {"a": 1}, 1),
        ('{"a": true}', {"a": 1}, 0),
        ('{"a": " x "}', {"a": "x"}, 1),
        ('{"a": "X"}', {"a": "x"}, 0),
        ('{"a": null}', {"a": None}, 1),
        ('{"a": {}}', {"a": {}}, 1),
        ('{"a": {}}', {"a": []}, 0),
        ('{"a": ["x", "y"]}', {"a": ["y", "x"]}, 2),
        ('{"a": ["x", "x"]}', {"a": ["x", "y"]}, 1),
        ('{"a.b": 1}', {"a": {"b": 1}}, 0),
        ('```json\n{"a": 1}\n```', {"a": 1}, 1),
        ('Here you are: {"a": 1}. Anything else?', {"a": 1}, 1),
        ('{"a": 1} {"a": 2}', {"a": 2}, 0),
        ('{"b": {"a": 1}, ', {"a": 1}, 0),
        ('{"b": {"a": 1}, ', {"b": {"a": 1}}, 0),
        ('So: {"a": NaN}', {"a": 1}, 0),
        ("{" * 100_000, {"a": 1}, 0),
        ('{"a": 1', {"a": 1}, 0),
        ('{"a": NaN}', {"a": 1}, 0),
    ],
)
def test_what_makes_a_field_right(output: str, target: Any, right: int) -> None:
    assert FieldF1().statistics(answered(output, target))[0] == right


@pytest.mark.parametrize(
    ("output", "target", "right"),
    [
        # quantities swapped between two records: each has one field right
        ([{"n": "bolt", "q": 9}, {"n": "nut", "q": 1}], [{"n": "bolt", "q": 1}, {"n": "nut", "q": 9}], 2),
        ([{"n": "nut", "q": 9}, {"n": "bolt", "q": 1}], [{"n": "bolt", "q": 1}, {"n": "nut", "q": 9}], 4),
        # the first pair by order shares less than the best pairing
        ([{"a": 1, "b": 2}, {"a": 1}], [{"a": 1}, {"a": 1, "b": 2}], 3),
        ([{"a": 1}, {"a": 1}, {"a": 1}], [{"a": 1}], 1),
        ([{"a": 1}], [{"a": 1}, {"a": 2}, {"b": 1}], 1),
        # a record inside a record, and lists of lists
        ([{"o": [{"x": 1, "y": 2}]}], [{"o": [{"x": 1, "y": 3}, {"x": 4, "y": 2}]}], 1),
        ([[1, 2], [3]], [[3], [2, 1]], 3),
        ([[1, 3], [2]], [[1, 2], [3]], 2),
        # scalars beside records are still a bag
        (["x", {"a": 1}, "y"], [{"a": 1}, "y", "x"], 3),
        ({"l": [{"a": 1}]}, {"l": {"a": 1}}, 0),
    ],
)
def test_records_in_a_list_are_compared_in_pairs(output: Any, target: Any, right: int) -> None:
    assert FieldF1().statistics(answered(json.dumps(output), target))[0] == right
    assert FieldF1().statistics(answered(json.dumps(target), output))[0] == right


def test_many_records_are_paired_in_reasonable_time() -> None:
    records = [{"id": i, "name": f"item {i}", "price": i % 7} for i in range(300)]
    start = time.perf_counter()
    assert FieldF1().statistics(answered(json.dumps(records[::-1]), records)) == (900, 900, 900)
    assert time.perf_counter() - start < 5


def test_an_unreadable_answer_misses_an_empty_target_too() -> None:
    assert value(FieldF1(), answered("{}", {})) == 1
    assert value(FieldF1(), answered("none", {})) == 0


def test_a_text_target_that_is_no_json_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="row row-1: the target is not JSON"):
        FieldF1().statistics(answered("{}", "plain words"))
    assert value(FieldF1(), answered('{"a": 1}', '{"a": 1}')) == 1


def test_exact_match_compares_values_where_the_target_is_one() -> None:
    metric = ExactMatch()
    assert value(metric, answered(' {"b": 2, "a": 1}\n', {"a": 1, "b": 2})) == 1
    assert value(metric, answered('{"a": [1, 2]}', {"a": [2, 1]})) == 0  # the order of a list is part of the value
    assert value(metric, answered('Sure: {"a": 1}!', {"a": 1})) == 1
    assert value(metric, answered(" Paris\n", "Paris")) == 1
    assert value(metric, answered("paris", "Paris")) == 0
    assert value(metric, answered('{"a":1}', '{"a": 1}')) == 1  # as it is where the target is given as a text
    assert value(metric, answered('{"a":2}', '{"a": 1}')) == 0
    assert value(metric, answered("3.0", "3")) == 0  # a number may be a label, to the letter


NESTED = "[" * 500 + "]" * 500
"""JSON that a recursive function cannot take apart."""


@pytest.mark.parametrize("metric", [ExactMatch(), FieldF1(), JsonValid()])
def test_what_is_nested_too_deep_is_no_json(metric: Metric) -> None:
    assert value(metric, answered(NESTED, {"a": 1})) == 0
    assert value(metric, answered('{"a": ' * 300 + "1" + "}" * 300, {"a": 1})) == 0
    deep = '{"a": ' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert value(metric, answered(deep, json.loads(deep))) == 1
    assert value(JsonValid(), answered(f"[{deep}]", {})) == 0


@pytest.mark.parametrize("metric", [ExactMatch(), FieldF1()])
def test_a_target_that_is_nested_too_deep_is_an_error(metric: Metric) -> None:
    with pytest.raises(EvaluationError, match=r"row row-1: the target is not JSON .*nested more than 200 deep"):
        metric.statistics(answered("{}", json.loads(NESTED)))


@pytest.mark.parametrize(
    ("output", "valid"),
    [
        ('{"a": 1}', 1),
        (" [1] \n", 1),
        ('"x"', 1),
        ("", 0),
        ("{'a': 1}", 0),
        ('{"a": 1,}', 0),
        ('{"a": 1} done', 0),
        ('```json\n{"a": 1}\n```', 0),
        ('{"a": Infinity}', 0),
        ('{"a": 1e999}', 0),
        ("-1e999", 0),
        ('{"a": 1e99}', 1),
        ("\t\r\n{}\n ", 1),
        ("\u00a0{}", 0),
        ("{}\u2028", 0),
        ("{}\f", 0),
        ("\ufeff{}", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_validity_is_strict(output: str, valid: int) -> None:
    assert value(JsonValid(), answered(output, {})) == valid


def test_a_schema_that_holds_itself_and_a_deep_answer(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "items": {"$ref": "#"}}')
    metric = SchemaValid(json_schema=str(path))
    assert value(metric, answered("[[[]]]", {})) == 1
    assert value(metric, answered("[" * 190 + "]" * 190, {})) in (0, 1)
    assert value(metric, answered(NESTED, {})) == 0


def test_schema_validity(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(
        json.dumps(
            {
                "type": "object",
                "required": ["age"],
                "additionalProperties": False,
                "properties": {"age": {"$ref": "#/$defs/age"}},
                "$defs": {"age": {"type": "integer", "minimum": 0}},
            }
        )
    )
    metric = SchemaValid(json_schema=str(path))
    outputs = ['{"age": 3}', '{"age": -1}', '{"age": "3"}', "{}", '{"age": 3, "x": 1}', "age 3"]
    assert [value(metric, answered(o, {})) for o in outputs] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON file"),
        ('{"type": "objekt"}', "not a JSON Schema"),
        ("[]", "not a JSON Schema"),
        ('{"$ref": "https://example.org/other.json"}', "leads out of the file"),
    ],
)
def test_a_bad_schema_is_an_error_with_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message) as caught:
        SchemaValid(json_schema=str(path)).statistics(answered("{}", {}))
    assert str(path) in str(caught.value)


def test_labels_are_compared_as_people_would() -> None:
    metric = Accuracy()
    for output in ("card_arrival", " Card_Arrival ", '"card_arrival".', "card_arrival."):
        assert value(metric, answered(output, "card_arrival")) == 1
    for output in ("card arrival", "The label is card_arrival", ""):
        assert value(metric, answered(output, "card_arrival")) == 0


def test_macro_f1_by_hand() -> None:
    """a: tp 2, fp 1, fn 1 -> 2/3; b: tp 1, fp 1, fn 1 -> 1/2; c: tp 0, fn 1 -> 0; the junk answer is no class."""
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b"), ("a", "b"), ("c", "junk")]
    rows = [answered(output, target) for target, output in pairs]
    assert value(MacroF1(), *rows) == pytest.approx((2 * 2 / (3 + 3) + 2 * 1 / (2 + 2) + 0) / 3)


def test_rouge_l_takes_the_best_reference_and_reads_any_script() -> None:
    metric = RougeL()
    assert value(metric, answered("the cat sat", "the cat sat")) == 1
    assert value(metric, answered("the cat", "the big cat")) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert value(metric, answered("η γάτα", "η γάτα")) == 1
    assert value(metric, answered("one two", "x", references=["y z", "one two"])) == 1
    with pytest.raises(EvaluationError, match="references"):
        metric.statistics(answered("one", "x", references="one"))


def test_teacher_forced_metrics() -> None:
    rows = [Prediction("r", (), "", "", target_score=TargetScore(4, math.log(0.5) * 4, 3, 8)) for _ in range(2)]
    assert value(Perplexity(), *rows) == pytest.approx(2)
    assert value(TokenAccuracy(), *rows) == pytest.approx(0.75)
    assert value(BitsPerByte(), *rows) == pytest.approx(0.5)  # four bits for eight bytes
    with pytest.raises(EvaluationError, match="a system that is a model"):
        Perplexity().statistics(answered("x", "y"))


def paired(chosen: TargetScore, rejected: TargetScore | None) -> Prediction:
    return Prediction("r", (), "", "", target_score=chosen, rejected_score=rejected)


def test_pair_accuracy_counts_ties_half_and_may_look_at_the_mean_of_a_token() -> None:
    short, long = TargetScore(2, -4.0, 0, 6), TargetScore(10, -10.0, 0, 40)
    assert value(PairAccuracy(), paired(short, long)) == 1 and value(PairAccuracy(), paired(long, short)) == 0
    assert value(PairAccuracy(), paired(short, long), paired(long, short), paired(long, long)) == 0.5
    assert value(PairAccuracy(per_token=True), paired(long, short)) == 1
    with pytest.raises(EvaluationError, match="needs preference pairs"):
        PairAccuracy().statistics(paired(short, None))


def called(*calls: ToolCall, wanted: tuple[ToolCall, ...] = (), acceptable: Any = None) -> float:
    extra = {} if acceptable is None else {"acceptable": acceptable}
    reply, expected = Message("assistant", "", tool_calls=calls), Message("assistant", "", tool_calls=wanted)
    return ToolCalls().statistics(Prediction("r", (), "", "", expected, reply, extra=extra))[0]


def test_tool_calls_without_a_list_must_be_equal() -> None:
    a, b = ToolCall("f", {"x": 1, "y": "Oslo"}), ToolCall("g", {})
    assert called(a, b, wanted=(b, a)) == 1
    assert called(a, wanted=(a, b)) == 0
    assert called(a, a, wanted=(a, b)) == 0
    assert called(a, b, b, wanted=(a, b)) == 0
    assert called(ToolCall("f", {"x": 1.0, "y": "Oslo"}), wanted=(a,)) == 1
    assert called(ToolCall("f", {"x": True, "y": "Oslo"}), wanted=(a,)) == 0
    assert called(ToolCall("f", {"x": 1, "y": "oslo"}), wanted=(a,)) == 0
    assert called() == 1 and called(b) == 0
    no_reply = Prediction("r", (), "", "", Message("assistant", "", tool_calls=(b,)), None)
    assert ToolCalls().statistics(no_reply)[0] == 0


def test_what_is_right_of_calls_is_told_apart() -> None:
    """By hand: right, wrong argument, wrong name, unfit argument, called for nothing, not called, rightly silent."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tools = tuple({"type": "function", "function": {"name": name, "parameters": schema}} for name in "fg")
    f1, f2, g1, odd = (
        ToolCall("f", {"x": 1}),
        ToolCall("f", {"x": 2}),
        ToolCall("g", {"x": 1}),
        ToolCall("f", {"x": "1"}),
    )
    rows = [((f1, g1), (g1, f1)), ((f1,), (f2,)), ((f1,), (g1,)), ((f1,), (odd,)), ((), (f1,)), ((f1,), ()), ((), ())]

    def values(name: str) -> tuple[float, float]:
        metric = build_metrics([name])[name]
        found = [
            metric.statistics(
                Prediction(
                    "r", (), "", "", Message("assistant", "", wanted), Message("assistant", "", made), tools=tools
                )
            )
            for wanted, made in rows
        ]
        sums = np.array(found).sum(axis=0)
        assert metric.value(np.array(found)) == pytest.approx(sums[0] / sums[1])
        return float(sums[0]), float(sums[1])

    assert values("tool_calls") == (2, 7)
    assert values("call_names") == (4, 7)
    assert values("call_arguments") == (2, 4)
    assert values("call_schema_valid") == (5, 6)
    assert values("call_precision") == (4, 5)
    assert values("call_recall") == (4, 5)


def test_arguments_count_as_often_as_their_function_is_wanted() -> None:
    one, two, three = (ToolCall("f", {"x": x}) for x in (1, 2, 3))
    metric = CallArguments()

    def statistics(wanted: tuple[ToolCall, ...], made: tuple[ToolCall, ...], **extra: Any) -> tuple[float, float]:
        expected, reply = Message("assistant", "", wanted), Message("assistant", "", made)
        return metric.statistics(Prediction("r", (), "", "", expected, reply, extra=extra))

    assert statistics((one, two), (two, three)) == (1, 2)
    assert statistics((one,), (one, one)) == (1, 1)
    assert statistics((one,), (ToolCall("g", {"x": 1}),)) == (0, 0)
    assert statistics((one,), (three,), acceptable=[{"f": {"x": [1, 3]}}]) == (1, 1)


def test_tool_calls_with_a_list_may_choose() -> None:
    wanted = [{"weather": {"city": ["New York", "NYC"], "days": [3], "unit": ["C", ""]}}]
    assert called(ToolCall("weather", {"city": "new york", "days": 3}), acceptable=wanted) == 1
    assert called(ToolCall("weather", {"city": "NYC", "days": 3.0, "unit": "C"}), acceptable=wanted) == 1
    assert called(ToolCall("weather", {"city": "Boston", "days": 3}), acceptable=wanted) == 0
    assert called(ToolCall("weather", {"city": "NYC"}), acceptable=wanted) == 0  # days may not be left out
    assert called(ToolCall("weather", {"city": "NYC", "days": 3, "x": 1}), acceptable=wanted) == 0
    assert called(ToolCall("weather", {"city": "NYC", "days": "3"}), acceptable=wanted) == 0
    assert called(acceptable=[]) == 1
    assert called(ToolCall("weather", {}), acceptable=[]) == 0


def test_nested_options() -> None:
    wanted = [{"f": {"o": [{"a": [1, 2], "b": ["x", ""]}], "l": [["Reading Room", "Fiction"], ["All"]]}}]
    assert called(ToolCall("f", {"o": {"a": 2}, "l": ["reading room", "fiction"]}), acceptable=wanted) == 1
    assert called(ToolCall("f", {"o": {"a": 2, "b": "x"}, "l": ["All"]}), acceptable=wanted) == 1
    assert called(ToolCall("f", {"o": {"a": 3}, "l": ["All"]}), acceptable=wanted) == 0
    assert called(ToolCall("f", {"o": {"a": 2}, "l": ["Fiction", "Reading Room"]}), acceptable=wanted) == 0


def test_calls_are_paired_the_best_way() -> None:
    """The first call fits both options; a greedy pairing would leave the second call without one."""
    wanted = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    assert called(ToolCall("f", {"x": 1}), ToolCall("f", {"x": 2}), acceptable=wanted) == 1
    assert called(ToolCall("f", {"x": 2}), ToolCall("f", {"x": 2}), acceptable=wanted) == 0


def test_a_malformed_list_is_an_error() -> None:
    malformed: list[Any] = [
        "f",
        [{"f": 1}],
        [{"f": {}, "g": {}}],
        [{"f": {"x": "Paris"}}],  # would be read as the options P, a, r, i, s
        [{"f": {"x": 3}}],
        [{"w": {"n": {"n": 3}}}],
        [{"f": {"x": ["a"], "o": [{"y": "Paris"}]}}],
        [{"f": {"l": [[{"y": 3}]]}}],
        [{"f": {"x": [json.loads(NESTED)]}}],
    ]
    for bad in malformed:
        with pytest.raises(EvaluationError, match="`acceptable` must be a list"):
            called(acceptable=bad)


def test_a_call_that_is_nested_too_deep_is_wrong() -> None:
    deep = ToolCall("f", {"x": json.loads(NESTED)})
    assert called(deep, wanted=(ToolCall("f", {"x": 1}),)) == 0
    assert called(deep, acceptable=[{"f": {"x": [1]}}]) == 0


def test_gold_calls_of_real_data_are_right(shared_data: Path) -> None:
    seen = 0
    for line in (shared_data / "toolcalls" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        made = [c["function"] for c in row["messages"][-1].get("tool_calls", [])]
        calls = [ToolCall(c["name"], c["arguments"]) for c in made]
        assert called(*calls, acceptable=row["acceptable"]) == 1, row["id"]
        wrong = [*calls[:-1], ToolCall("other", {})]
        assert called(*wrong, acceptable=row["acceptable"]) == 0, row["id"]
        seen += 1
    assert seen == 200


def chat(answer: str, target: Any = None, tools: tuple[Any, ...] = ()) -> Conversation:
    return Conversation((Message("user", "?"), Message("assistant", answer)), tools, target=target)


def test_tasks_are_recognized() -> None:
    assert detect_task([chat('{"a": 1}'), chat("[]")]) == "json"
    assert detect_task([chat("x", {"a": 1})] * 2) == "json"
    assert detect_task([chat('{"a": 1}'), chat("sorry")]) == "text"
    assert detect_task([chat("3"), chat("4")] * 5) == "label"  # numbers are JSON, but no objects
    assert detect_task([chat("spam", "spam"), chat("ham", "ham")]) == "label"
    assert detect_task([chat("x"), chat("ok", tools=({"type": "function"},))]) == "tool_calls"
    assert detect_task([chat("1851", ["1851", "in 1851"]), chat("Oslo", ["Oslo"])]) == "answers"
    assert detect_task([chat('["a", "b"]', ["a", "b"])] * 2) == "json"  # the list itself is wanted
    assert detect_task([chat(f"A sentence about {i}.") for i in range(9)]) == "text"
    assert detect_task([chat("word " * 40)] * 9) == "text"
    assert detect_task([]) == "text"
    assert detect_task([Document("one"), Document("two")]) == "language"
    pair = Preference((Message("user", "?"),), (Message("assistant", "a"),), (Message("assistant", "b"),))
    assert detect_task([pair, pair]) == "pairs"


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("json_extraction/train", "json"),
        ("intents/train_chat", "label"),
        ("toolcalls/train", "tool_calls"),
        ("rag_qa/train", "answers"),
    ],
)
def test_tasks_of_real_data(shared_data: Path, folder: str, task: str) -> None:
    from luthier.data.formats.base import read_examples

    rows = [row for row in read_examples(shared_data / f"{folder}.jsonl") if isinstance(row, Conversation)]
    assert detect_task(rows) == task
    assert (
        detect_task(
            [row for row in read_examples(shared_data / "summarize/train.jsonl") if isinstance(row, Conversation)]
        )
        == "text"
    )


@pytest.mark.parametrize(
    ("output", "answers", "f1", "match"),
    [
        ("The Horns of Nimon.", ["Horns of Nimon"], 1, 1),  # case, article and full stop make no difference
        ("horns of nimon (1979)", ["Horns of Nimon"], 2 * 3 / (4 + 3), 0),
        ("in 1851", ["1851", "the year 1851"], 2 / 3, 0),
        ("A year: 1851", ["1851", "the year 1851"], 1, 1),
        ("no no yes", ["no yes yes"], 2 * 2 / 6, 0),  # a word counts as often as both have it
        ("Polignac’s conjecture", ["Polignac's conjecture"], 1, 1),
        ("１８５１", ["1851"], 1, 1),
        ("anthem", ["the"], 0, 0),  # no article inside a word
        ("", ["1851"], 0, 0),
        ("the", ["a"], 1, 1),  # neither says anything
        ("Oslo", "Oslo", 1, 1),
    ],
)
def test_answers_are_compared_as_squad_does(output: str, answers: Any, f1: float, match: float) -> None:
    assert value(AnswerF1(), answered(output, answers)) == pytest.approx(f1)
    assert value(AnswerMatch(), answered(output, answers)) == match


@pytest.mark.parametrize("target", [5, [], [1], {"text": ["a"]}, None])
def test_a_target_that_lists_no_answers_is_an_error(target: Any) -> None:
    with pytest.raises(EvaluationError, match="row row-1: the target must be a list of acceptable answers"):
        AnswerF1().statistics(answered("x", target))


def test_every_chosen_metric_exists(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    for task in ("json", "label", "tool_calls", "answers", "text", "language", "pairs"):
        for schema in (False, True):
            names = choose_metrics(task, schema)
            assert list(build_metrics(names, str(tmp_path / "s.json"))) == list(names)
            assert names[0] != "macro_f1", "its intervals are too narrow for many labels with few rows each"
    assert "schema_valid" in choose_metrics("json", True) and "schema_valid" not in choose_metrics("json")
    with pytest.raises(EvaluationError, match=r"schema_valid needs a JSON Schema"):
        build_metrics(["schema_valid"])
