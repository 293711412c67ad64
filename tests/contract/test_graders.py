"""Every grader in the directory: the wire shape of OpenAI's own client, and no answer that is an exception."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytest
from openai.types.fine_tuning.alpha import GraderRunResponse
from openai.types.fine_tuning.alpha.grader_run_response import Metadata, MetadataErrors
from openai.types.graders import (
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from pydantic import BaseModel

from luthier import registry
from luthier.errors import EvaluationError, ModelError
from luthier.evaluation.graders.base import (
    GRADERS,
    Errors,
    Graded,
    Grader,
    Host,
    Limits,
    ModelReply,
    Sample,
    SamplingParams,
    build_grader,
    response_body,
    validate,
)
from luthier.examples import Message

NAMES = registry.names(GRADERS)

# name: settings, and what the row needs for the answer "Paris" to get a reward of 1
CHECK = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
SAMPLES: Mapping[str, dict[str, Any]] = {
    "string_check": {**CHECK, "operation": "eq"},
    "text_similarity": {**CHECK, "type": "text_similarity", "evaluation_metric": "fuzzy_match"},
    "python": {
        "type": "python",
        "name": "code",
        "source": "def grade(sample, item):\n    return float(sample['output_text'] == item['answer'])\n",
    },
    "score_model": {
        "type": "score_model",
        "name": "judge",
        "model": "judge-1",
        "input": [{"role": "user", "content": "{{item.answer}} / {{sample.output_text}}", "type": "message"}],
        "range": [0, 1],
        "sampling_params": {"temperature": 0, "seed": 1},
    },
    "label_model": {
        "type": "label_model",
        "name": "judge",
        "model": "judge-1",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "{{item.answer}}"}]}],
        "labels": ["good", "bad"],
        "passing_labels": ["good"],
    },
    "multi": {
        "type": "multi",
        "name": "all",
        "graders": {"a": {**CHECK, "operation": "eq"}, "b": {**CHECK, "operation": "like"}},
        "calculate_output": "0.5 * a + 0.5 * b",
    },
    "reward_model": {
        "type": "reward_model",
        "name": "judges",
        "runs": ["runs/a", "runs/b"],
        "input": [{"role": "user", "content": "{{item.answer}}?"}],
    },
    "json_schema": {"type": "json_schema", "name": "valid", "json_schema": {"type": "string"}},
    "fields": {"type": "fields", "name": "fields", "reference": '"{{item.answer}}"'},
    "number": {"type": "number", "name": "last", "reference": "{{item.answer}} 7"},
}
WHOLE = {"json_schema": '"Paris"', "fields": '"Paris"', "number": "It is 7."}
"""What earns a reward of 1, where that is not the text `Paris`."""
CLIENT_TYPES: Mapping[str, type[BaseModel]] = {
    "string_check": StringCheckGrader,
    "text_similarity": TextSimilarityGrader,
    "python": PythonGrader,
    "score_model": ScoreModelGrader,
    "label_model": LabelModelGrader,
}
REPLIES = {"score_model": '{"result": 1.0}', "label_model": '{"label": "good"}'}
ITEM = {"answer": "Paris"}
HOSTILE = (
    "",
    "{{item.secret}}{{sample.output_text}}",
    "[" * 500 + "]" * 500,
    '{"a":' * 3000,
    '{"a": 1e999}',
    "\ud800",
    "\x00\x1b[31m",
    "9" * 5000,
    "a" * 50_000,
    "'; import os; os.abort() #",
)


def host(kind: str) -> Host:
    def judge(runs: Sequence[str], messages: Sequence[Message]) -> list[float]:
        return [float(messages[-1] == Message("assistant", "Paris")) for _ in runs]

    return Host(ask_model=lambda model, messages, sampling: ModelReply(REPLIES.get(kind, ""), tokens=7), judge=judge)


def built(values: Mapping[str, Any], able: Host) -> Grader:
    """A grader that the API does not have, as a recipe builds it."""
    grader = build_grader(values)
    grader.require(able)
    return grader


def made(kind: str) -> Grader:
    """The grader of the samples, by the way that leads to it."""
    of_openai = registry.load_class(GRADERS, kind, Grader).of_openai  # type: ignore[type-abstract]
    return (validate if of_openai else built)(SAMPLES[kind], host(kind))


def accepted(graded: Graded) -> GraderRunResponse:
    """The response as a client reads it from the wire; strict, and without anything that the client does not know."""
    body = json.loads(json.dumps(response_body(graded), ensure_ascii=False).encode("utf-8"))
    for model, found in (
        (GraderRunResponse, body),
        (Metadata, body["metadata"]),
        (MetadataErrors, body["metadata"]["errors"]),
    ):
        assert set(found) == {field.alias or name for name, field in model.model_fields.items()}
    return GraderRunResponse.model_validate(body, strict=True)


def test_the_graders_of_the_client_are_there() -> None:
    theirs = {"string_check", "text_similarity", "python", "score_model", "label_model", "multi"}
    assert {name for name in NAMES if registry.load_class(GRADERS, name, Grader).of_openai} == theirs  # type: ignore[type-abstract]
    assert set(SAMPLES) == set(NAMES)


@pytest.mark.parametrize("kind", ["json_schema", "fields", "number"])
def test_the_api_has_no_others(kind: str) -> None:
    within = {"type": "multi", "name": "all", "graders": {"a": SAMPLES[kind]}, "calculate_output": "a"}
    for values in (SAMPLES[kind], within):
        with pytest.raises(EvaluationError, match="does not have"):
            validate(values, host(kind))
        assert build_grader(values).grade(Sample.of(WHOLE[kind]), ITEM, host(kind)).reward == 1


def test_no_grader_loads_torch() -> None:
    imports = "".join(f"import {GRADERS}.{name}\n" for name in NAMES)
    program = f"import sys\n{imports}print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_flags_are_those_of_the_client() -> None:
    wire = {field.alias or name for name, field in MetadataErrors.model_fields.items()}
    assert {field.name for field in fields(Errors)} == wire


@pytest.mark.parametrize("name", sorted(CLIENT_TYPES))
def test_settings_are_those_of_the_client(name: str) -> None:
    cls = type(validate(SAMPLES[name], host(name)))
    assert {*cls.model_fields, "type"} == set(CLIENT_TYPES[name].model_fields)
    assert cls.__doc__


def test_multi_has_the_settings_of_the_client() -> None:
    assert {*type(validate(SAMPLES["multi"], Host())).model_fields, "type"} == set(MultiGrader.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_gets_the_reward_every_time(name: str) -> None:
    grader = made(name)
    grades = [grader.grade(Sample.of(WHOLE.get(name, "Paris")), ITEM, host(name)) for _ in range(2)]
    responses = [accepted(grade) for grade in grades]
    assert [r.reward for r in responses] == [1.0, 1.0], grades[0].problem
    assert responses[0].metadata.errors == MetadataErrors.model_validate(
        {**dict.fromkeys(f.alias or n for n, f in MetadataErrors.model_fields.items()), **_no_flags()}
    )
    assert responses[0].metadata.type == name
    assert responses[0].metadata.name == SAMPLES[name]["name"]


def _no_flags() -> dict[str, Any]:
    return {field.name: field.default for field in fields(Errors)}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("python", "json_schema")])
def test_a_variable_that_the_row_lacks_is_a_flag(name: str) -> None:
    grade = made(name).grade(Sample.of("Paris"), {"other": 1}, host(name))
    response = accepted(grade)
    assert (response.reward, response.metadata.errors.invalid_variable_error) == (0.0, True)
    assert "answer" in grade.problem


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_answer_and_no_row_is_an_exception(name: str, text: str) -> None:
    grader = made(name)
    for item in ({"answer": text}, {"answer": {"a": [text, None]}}, {}):
        accepted(grader.grade(Sample.of(text), item, host(name)))


@pytest.mark.parametrize("name", NAMES)
def test_deep_rows_and_rows_that_are_no_json_are_no_exception(name: str) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    grader = made(name)
    for value in (deep, {1, 2}, b"bytes"):
        accepted(grader.grade(Sample.of("Paris"), {"answer": value}, host(name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "x"}, "unknown key 'grader.nmae'; did you mean 'name'"),
        ({"name": ""}, "grader.name"),
        ({"name": 7}, "grader.name = 7"),
        ({"type": "sting_check"}, "unknown grader 'sting_check'; did you mean 'string_check'"),
        ({"type": None}, "'grader.type' is None; expected one of"),
        ({"type": "base"}, "unknown grader 'base'"),
        ({"type": "_jail"}, "unknown grader '_jail'"),
    ],
)
def test_a_wrong_setting_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        validate({**SAMPLES[name], **change}, host(name))
    assert words in str(raised.value)


def test_deep_settings_are_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(EvaluationError, match="nested more than"):
        validate({**CHECK, "operation": deep}, Host())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": "{{items.a}}"}, "unknown namespace 'items'"),
        ({"input": "{{sample.output}}"}, "did you mean 'output_text' or 'output_"),
        ({"input": "{{item.a"}, "is not followed by"),
        ({"operation": "equals"}, "grader.operation"),
    ],
)
def test_a_wrong_template_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        validate({**SAMPLES["string_check"], **change}, Host())
    assert words in str(raised.value)


# string_check


@pytest.mark.parametrize(
    ("operation", "answer", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1.0),
        ("eq", "paris", "Paris", 0.0),
        ("ne", "paris", "Paris", 1.0),
        ("ne", "Paris", "Paris", 0.0),
        ("like", "It is Paris.", "Paris", 1.0),
        ("like", "It is paris.", "Paris", 0.0),
        ("like", "Paris", "P%s", 0.0),
        ("ilike", "IT IS PARIS", "paris", 1.0),
        ("ilike", "Straße", "STRASSE", 1.0),
        ("ilike", "Rome", "Paris", 0.0),
    ],
)
def test_strings_are_compared(operation: str, answer: str, reference: str, reward: float) -> None:
    grader = validate({**CHECK, "operation": operation}, Host())
    assert grader.grade(Sample.of(answer), {"answer": reference}, Host()).reward == reward


def test_an_answer_that_is_no_json_is_a_flag() -> None:
    grader = validate({**CHECK, "operation": "eq", "input": "{{sample.output_json.city}}"}, Host())
    assert grader.grade(Sample.of('{"city": "Paris"}'), ITEM, Host()).reward == 1.0
    for text in ("Paris", '{"city": "Paris"', '{"city": NaN}'):
        errors = accepted(grader.grade(Sample.of(text), ITEM, Host())).metadata.errors
        assert (errors.sample_parse_error, errors.invalid_variable_error) == (True, False)
    errors = accepted(grader.grade(Sample.of("{}"), ITEM, Host())).metadata.errors
    assert (errors.sample_parse_error, errors.invalid_variable_error) == (False, True)


def test_too_long_a_text_is_not_cut() -> None:
    small = Host(limits=Limits(text_chars=10))
    grade = validate({**CHECK, "operation": "like"}, small).grade(Sample.of("Paris " * 3), ITEM, small)
    assert (grade.reward, accepted(grade).metadata.errors.truncated_observation_error) == (0.0, True)


# text_similarity


METRICS = (
    "cosine fuzzy_match bleu gleu meteor rouge_1 rouge_2 rouge_3 rouge_4 rouge_5 rouge_l".split()  # noqa: SIM905
)


def letters(texts: Sequence[str]) -> list[list[float]]:
    """A poor embedder."""
    return [[float(text.lower().count(chr(letter))) for letter in range(97, 123)] for text in texts]


@pytest.mark.parametrize("metric", METRICS)
def test_every_measure_knows_like_from_unlike(metric: str) -> None:
    able = Host(embed=letters)
    grader = validate({**SAMPLES["text_similarity"], "evaluation_metric": metric}, able)
    wanted = {"answer": "the old bridge over the river was closed in spring"}
    texts = (wanted["answer"], "the old bridge over the river was shut in May", "zzz qqq xx")
    same, near, far = [grader.grade(Sample.of(text), wanted, able).reward for text in texts]
    assert same == pytest.approx(1.0, abs=0.01)
    assert far < near < same
    assert far < 0.25


@pytest.mark.parametrize("metric", METRICS)
def test_every_measure_bears_empty_and_long_texts(metric: str) -> None:
    able = Host(embed=letters)
    grader = validate({**SAMPLES["text_similarity"], "evaluation_metric": metric}, able)
    for text in ("", " ", "a " * 40_000, "?" * 90_000):
        grade = grader.grade(Sample.of(text), {"answer": "b " * 40_000}, able)
        assert 0.0 <= grade.reward <= 1.0
        assert grade.execution_time < 20


def test_cosine_is_refused_without_an_embedder() -> None:
    settings = {**SAMPLES["text_similarity"], "evaluation_metric": "cosine"}
    with pytest.raises(EvaluationError, match="no embedder is at hand"):
        validate(settings, Host())
    grader = validate(settings, Host(embed=letters))
    assert accepted(grader.grade(Sample.of("x"), ITEM, Host())).metadata.errors.api_model_grader_server_error


@pytest.mark.parametrize("vectors", [[[0.0], [1.0]], [[1.0], [1.0, 2.0]], [[float("nan")], [1.0]]])
def test_vectors_that_cannot_be_compared_are_a_flag(vectors: list[list[float]]) -> None:
    able = Host(embed=lambda texts: vectors)
    grader = validate({**SAMPLES["text_similarity"], "evaluation_metric": "cosine"}, able)
    assert accepted(grader.grade(Sample.of("x"), ITEM, able)).metadata.errors.other_error


# score_model and label_model


def replying(text: str, refused: bool = False) -> Host:
    return Host(ask_model=lambda model, messages, sampling: ModelReply(text, tokens=12, refused=refused))


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ('{"result": 0.25}', 0.25),
        ('{"score": 1}', 1.0),
        ('Well: {"steps": [{"x": 1}], "result": 0.5} as I said', 0.5),
        ('<think>{"result": 1.0}</think>{"result": 0.0}', 0.0),
        ('{"result": 0.0} since it says </think>{"result": 1.0}', 0.0),
        (" 0.75\n", 0.75),
        ("-0", 0.0),
    ],
)
def test_the_score_of_a_reply_is_read(reply: str, reward: float) -> None:
    grade = validate(SAMPLES["score_model"], replying(reply)).grade(Sample.of("x"), ITEM, replying(reply))
    response = accepted(grade)
    assert response.reward == reward, grade.problem
    assert response.metadata.sampled_model_name == "judge-1"
    assert response.metadata.token_usage == 12
    assert response.api_model_grader_token_usage_per_model == {"judge-1": 12}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "good",
        "7 of 10",
        "1.5",
        '{"result": 1.01}',
        '{"result": -0.1}',
        '{"result": "0.5"}',
        '{"result": true}',
        '{"result": NaN}',
        '{"result": 1e999}',
        '{"result": [1]}',
        '{"other": 1}',
        '{"result": 0.5',
        "[0.5]",
        "nan",
        '{"result": ' + "9" * 4000 + "}",
        "{" * 100_000,
        '{"a":' * 30_000,
        "<think>1.0",
        '{"result": 1.0}' + " " * 200_000,
    ],
)
def test_a_reply_without_a_score_in_the_range_is_a_flag(reply: str) -> None:
    grade = validate(SAMPLES["score_model"], replying(reply)).grade(Sample.of("x"), ITEM, replying(reply))
    response = accepted(grade)
    assert (response.reward, response.metadata.errors.api_model_grader_parse_error) == (0.0, True)
    assert response.metadata.token_usage == 12, "tokens were spent all the same"


@pytest.mark.parametrize("bad", [[1, 0], [0, 0], [0], [0, 1, 2], ["0", "1"], [0, float("inf")]])
def test_a_range_is_two_numbers_in_their_order(bad: list[Any]) -> None:
    with pytest.raises(EvaluationError, match=r"grader\.range"):
        validate({**SAMPLES["score_model"], "range": bad}, replying(""))


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ('{"label": "good"}', 1.0),
        ("bad", 0.0),
        (' good"', None),
        ("Good", None),
        ('{"label": "ugly"}', None),
        ("", None),
    ],
)
def test_the_label_of_a_reply_is_read(reply: str, reward: float | None) -> None:
    grade = validate(SAMPLES["label_model"], replying(reply)).grade(Sample.of("x"), ITEM, replying(reply))
    response = accepted(grade)
    assert response.reward == (reward or 0.0)
    assert response.metadata.errors.api_model_grader_parse_error == (reward is None)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"passing_labels": ["fine"]}, "'fine'"), ({"labels": ["good", "good"]}, "twice"), ({"labels": []}, "labels")],
)
def test_wrong_labels_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        validate({**SAMPLES["label_model"], **change}, replying(""))


@pytest.mark.parametrize("name", ["score_model", "label_model"])
def test_a_model_that_fails_or_refuses_or_is_not_there_is_a_flag(name: str) -> None:
    def fails(model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        raise ModelError("the judge is not loaded")

    grader = validate(SAMPLES[name], replying(""))
    failed = accepted(grader.grade(Sample.of("x"), ITEM, Host(ask_model=fails))).metadata.errors
    assert failed.api_model_grader_server_error
    assert failed.api_model_grader_server_error_details == "the judge is not loaded"
    refused = accepted(grader.grade(Sample.of("x"), ITEM, replying("no", refused=True))).metadata.errors
    assert refused.api_model_grader_refusal_error
    assert accepted(grader.grade(Sample.of("x"), ITEM, Host())).metadata.errors.api_model_grader_server_error
    with pytest.raises(EvaluationError, match="there is no model to grade with"):
        validate(SAMPLES[name], Host())


def test_the_model_is_asked_with_the_texts_and_the_settings() -> None:
    seen: list[Any] = []

    def ask(model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        seen.append((model, list(messages), sampling.model_dump(exclude_none=True)))
        return ModelReply("1")

    able = Host(ask_model=ask)
    answer = "I say {{item.answer}}"
    validate(SAMPLES["score_model"], able).grade(Sample.of(answer), ITEM, able)
    form = 'Answer with a JSON object {"result": NUMBER}, where NUMBER is from 0 to 1.'
    message = Message("user", f"Paris / {answer}\n\n{form}")
    assert seen == [("judge-1", [message], {"temperature": 0.0, "seed": 1})]
    seen.clear()
    spoken = [{"role": "assistant", "content": "So be it."}]
    validate({**SAMPLES["score_model"], "input": spoken}, able).grade(Sample.of(answer), ITEM, able)
    assert [message.role for message in seen[0][1]] == ["assistant", "user"]


def test_pictures_are_refused() -> None:
    picture = [{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/x.png"}]}]
    with pytest.raises(EvaluationError, match="'input_text' or 'output_text'"):
        validate({**SAMPLES["score_model"], "input": picture}, replying(""))


# multi


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def test_a_single_grader_is_called_by_its_name() -> None:
    single = {"type": "multi", "name": "all", "graders": SAMPLES["string_check"], "calculate_output": "same / 2"}
    response = accepted(validate(single, Host()).grade(Sample.of("Paris"), ITEM, Host()))
    assert (response.reward, response.sub_rewards, response.metadata.scores) == (0.5, {"same": 1.0}, {"same": 1.0})


def test_a_grader_that_fails_makes_no_reward() -> None:
    broken = {**CHECK, "operation": "eq", "reference": "{{item.nothing}}"}
    grade = validate(multi("1 - a", a=broken), Host()).grade(Sample.of("Paris"), ITEM, Host())
    response = accepted(grade)
    assert (response.reward, response.sub_rewards) == (0.0, {"a": 0.0})
    assert response.metadata.errors.invalid_variable_error
    assert "nothing" in grade.problem


def test_a_formula_without_a_value_is_a_flag() -> None:
    grader = validate(multi("1 / (1 - a)", a=SAMPLES["string_check"]), Host())
    response = accepted(grader.grade(Sample.of("Paris"), ITEM, Host()))
    assert (response.reward, response.metadata.errors.formula_parse_error) == (0.0, True)
    assert response.sub_rewards == {"a": 1.0}


def test_tokens_of_all_models_are_told() -> None:
    judges = {
        "a": SAMPLES["score_model"],
        "b": {**SAMPLES["score_model"], "model": "judge-2"},
        "c": SAMPLES["score_model"],
    }
    able = replying("0.5")
    response = accepted(validate(multi("(a + b + c) / 3", **judges), able).grade(Sample.of("x"), ITEM, able))
    assert response.api_model_grader_token_usage_per_model == {"judge-1": 24, "judge-2": 12}
    assert (response.metadata.token_usage, response.metadata.sampled_model_name) == (36, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (multi("a", a=multi("b", b=SAMPLES["string_check"])), "multi grader within a multi grader"),
        ({**multi("a"), "graders": multi("b", b=SAMPLES["string_check"])}, "multi grader within a multi grader"),
        (multi("a + bb", a=SAMPLES["string_check"]), "'bb', which is no grader"),
        (multi("a.real", a=SAMPLES["string_check"]), "the formula holds 'a.real'"),
        (multi("1", a=SAMPLES["string_check"]), "names no grader"),
        (multi("a"), "graders"),
        (multi("a", **{"a b": SAMPLES["string_check"]}), "'a b', which a formula cannot name"),
        (multi("a", a="text"), "'grader.graders.a' is a str"),
        (multi("a", a={**CHECK, "operation": "eq", "inptu": ""}), "did you mean 'input'"),
        (multi("a", a={**CHECK, "operation": "eq", "type": "x"}), "unknown grader 'x'"),
        (multi("g0", **{f"g{n}": SAMPLES["string_check"] for n in range(33)}), "at most 32"),
        ({**multi("a"), "graders": [SAMPLES["string_check"]]}, "graders"),
    ],
)
def test_a_wrong_multi_grader_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        validate(settings, Host())
    assert words in str(raised.value)


def test_what_a_part_needs_the_whole_needs() -> None:
    with pytest.raises(EvaluationError, match="there is no model to grade with"):
        validate(multi("a", a=SAMPLES["score_model"]), Host())
