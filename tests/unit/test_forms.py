"""Suggested additions: the labels, and the form of a JSON answer, drawn from a schema or learned from training rows."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from luthier.data.templates import build_template
from luthier.evaluation.systems._forms import form_of, schema_of
from luthier.evaluation.systems._prompts import suggested
from luthier.evaluation.systems.base import Context
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Message
from luthier.models.load import LoadedModel


def row(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), id=question)


@pytest.fixture(scope="module")
def context(tiny_loaded: LoadedModel) -> Context:
    template, metric = build_template(tiny_loaded, "model"), build_metrics(["field_f1"])["field_f1"]
    return Context(tiny_loaded, template, nullcontext, [], [], 5, "json", metric, "base")


def test_suggestions_name_keys_and_labels(context: Context) -> None:
    labeled = [row("a", "spam"), row("b", "ham"), row("c", "spam")]
    assert "Allowed labels: ham, spam." in suggested(replace(context, task="label", train=labeled))[1]
    parsed = [row("a", '{"name": 1}'), row("b", '{"name": 1, "age": 2}'), row("c", "no json")]
    for text in suggested(replace(context, task="json", train=parsed)):
        assert "name" in text and "age" in text
    schema: dict[str, Any] = {"properties": {"city": {}}}
    assert all("city" in text for text in suggested(replace(context, task="json", json_schema=schema)))
    assert '"age": whole number' in suggested(replace(context, task="json", train=parsed))[-1]
    many = [row(str(i), f"label number {i} of a great many" * 3) for i in range(200)]
    assert all(len(text) < 200 for text in suggested(replace(context, task="label", train=many)))
    for task in ("tool_calls", "text"):
        assert suggested(replace(context, task=task))


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "area": {"type": "string", "enum": ["city center", "riverside"]},
        "family_friendly": {"type": "boolean"},
        "stars": {"type": ["integer", "null"]},
        "near": {"type": "array", "items": {"$ref": "#/$defs/place"}},
        "size": {"anyOf": [{"const": 1}, {"enum": ["S", "L", None]}]},
        "other": True,
    },
    "$defs": {"place": {"type": "object", "properties": {"km": {"type": "number"}, "name": {"type": "string"}}}},
}


def test_the_form_gives_types_and_values(context: Context) -> None:
    form = (
        '{"name": "...", "area": "city center | riverside", "family_friendly": true or false, '
        '"stars": whole number or null, "near": [{"km": number, "name": "..."}, ...], "size": 1 or "S | L" or null, '
        '"other": ...}'
    )
    assert form_of(SCHEMA, 2000) == form
    keys, last = suggested(replace(context, task="json", json_schema=SCHEMA))
    assert form in last and "Leave out a key whose value is not stated." in last
    assert "Allowed keys: name, area, family_friendly, stars, near, size, other." in keys


def test_no_key_is_left_out_where_all_are_required(context: Context) -> None:
    schema = {**SCHEMA, "required": list(SCHEMA["properties"])}
    assert all("Leave out" not in text for text in suggested(replace(context, task="json", json_schema=schema)))


def test_a_form_that_is_too_long_loses_its_values_then_its_depth() -> None:
    full, plain = form_of(SCHEMA, 2000), form_of(SCHEMA, 200)
    assert full is not None and plain is not None and len(full) > 200
    assert '"area": "..."' in plain and '"near": [{"km": number' in plain
    shallow = form_of(SCHEMA, 150)
    assert shallow is not None and '"near": [..., ...]' in shallow
    assert form_of(SCHEMA, 20) is None and form_of({}, 2000) is None and form_of({"$ref": "#/nowhere"}, 2000) is None


def test_a_schema_that_holds_itself_ends() -> None:
    node: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert form_of(node, 2000) == '{"next": ' * 5 + "..." + "}" * 5
    assert form_of({"$ref": "#"}, 2000) is None


def test_without_a_schema_the_form_is_learned_from_training_targets(context: Context) -> None:
    values = [
        {"kind": ("pub", "bar")[i % 2], "name": f"name {i}", "open": i % 3 == 0, "tags": [{"n": i}], "price": 1.5 * i}
        for i in range(6)
    ]
    found = form_of(schema_of([*values, {"kind": None}]), 2000)
    assert found == (
        '{"kind": "bar | pub" or null, "name": "...", "open": true or false, "tags": [{"n": whole number}, ...], '
        '"price": number}'
    )
    train = [row(str(i), json.dumps(value)) for i, value in enumerate(values)]
    told = suggested(replace(context, task="json", train=train))
    assert '"kind": "bar | pub", "name": "..."' in told[-1] and "Leave out" not in told[-1]
    lists = [row(str(i), json.dumps([value])) for i, value in enumerate(values)]
    assert suggested(replace(context, task="json", train=lists))[0].startswith("Answer with one JSON list")


def test_suggestions_stay_short_and_never_fail(context: Context) -> None:
    wide = {"properties": {f"key number {i}": {"enum": ["x" * 50, "y" * 50]} for i in range(200)}}
    unreadable = [row("a", "no json"), Conversation((Message("user", "?"),), id="b")]
    for changed in ({"json_schema": wide}, {"train": unreadable}):
        (only,) = suggested(replace(context, task="json", **changed))
        assert only == "Answer with one JSON object and nothing else: no explanation and no code block."
