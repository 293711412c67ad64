"""The store of evals, and what one item of a run is made of."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import database_url

from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import Host, ModelReply, Sample
from luthier.jobs.database import Database, Row, eval_items, evals, sqlite_url
from luthier.jobs.eval_grading import (
    NoMessages,
    chat_body,
    criterion_of,
    given_sample,
    grade,
    messages_for,
    read_criterion,
    reads_sample,
)
from luthier.jobs.eval_store import PAGE_BYTES, EvalStore, Item, NewRun, Result
from luthier.jobs.item_check import check_schema, first_misfit
from luthier.jobs.pages import Page
from luthier.jobs.tenants import Tenants
from luthier.serve.api_error import ApiError

CHECK = {"type": "string_check", "name": "same", "input": "{{item.a}}", "reference": "1", "operation": "eq"}
HOST = Host(ask_model=lambda *_: ModelReply("{}"))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(database_url(tmp_path) or sqlite_url(tmp_path / "a.sqlite"))


@pytest.fixture
def store(database: Database) -> EvalStore:
    return EvalStore(database)


@pytest.fixture
def project(database: Database) -> str:
    return Tenants(database).project("one")


def add_eval(store: EvalStore, project: str) -> Row:
    return store.create(project, "", {"item_schema": {}, "include_sample_schema": False}, [CHECK], None)


def add_run(store: EvalStore, project: str, eval_id: str, count: int = 3) -> Row:
    return store.add_run(project, eval_id, NewRun("", {"type": "jsonl"}, None, [Item({"a": n}) for n in range(count)]))


def result(status: Any, **more: Any) -> Result:
    graded = {"name": "same", "passed": status == "pass", "score": float(status == "pass"), **more}
    used = {"model_name": "m", "invocation_count": 1, "prompt_tokens": 3, "completion_tokens": 2}
    return Result(status, [graded], {}, [{**used, "cached_tokens": 0, "total_tokens": 5}])


def test_what_a_run_grows_to_counts_for_the_project(store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"])
    store.move(run["id"], "in_progress")
    store.record(run["id"], 0, Result("pass", [], {"output": "x" * 1000}))
    assert store.run(project, run["eval_id"], run["id"])["bytes"] > run["bytes"] + 1000


def test_a_result_is_recorded_once_and_only_while_the_run_goes_on(store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"])
    assert not store.record(run["id"], 0, result("pass"))
    store.move(run["id"], "in_progress")
    assert store.record(run["id"], 0, result("pass"))
    assert not store.record(run["id"], 0, result("fail"))
    assert store.waiting(run["id"]) == [1, 2]
    assert store.cancel(project, run["eval_id"], run["id"])["status"] == "canceled"
    assert not store.record(run["id"], 1, result("pass"))
    assert store.cancel(project, run["eval_id"], run["id"])["summary"]["result_counts"]["total"] == 1
    with pytest.raises(ApiError, match="is canceled, and cannot become completed"):
        store.move(run["id"], "completed")


def test_counts_are_those_of_the_stored_results(store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"])
    store.move(run["id"], "in_progress")
    for number, one in enumerate((result("pass"), result("fail"), result("error", errors={"other_error": True}))):
        store.record(run["id"], number, one)
    before = store.summary(store.run(project, run["eval_id"], run["id"]))
    row = store.move(run["id"], "completed")
    assert store.summary(row) == row["summary"] == before
    assert before["result_counts"] == {"total": 3, "passed": 1, "failed": 1, "errored": 1}
    assert before["per_testing_criteria_results"] == [
        {"testing_criteria": "same", "passed": 1, "failed": 1, "errored": 1}
    ]
    (used,) = before["per_model_usage"]
    assert (used["model_name"], used["invocation_count"], used["total_tokens"]) == ("m", 3, 15)


def test_each_project_has_its_oldest_run_at_work(database: Database, store: EvalStore, project: str) -> None:
    other = Tenants(database).project("two")
    first = add_run(store, project, add_eval(store, project)["id"])
    second = add_run(store, project, first["eval_id"])
    theirs = add_run(store, other, add_eval(store, other)["id"])
    assert [row["id"] for row in store.next_runs()] == [first["id"], theirs["id"]]
    store.move(first["id"], "canceled")
    assert {row["id"] for row in store.next_runs()} == {second["id"], theirs["id"]}


def test_evals_go_by_their_last_update(database: Database, store: EvalStore, project: str) -> None:
    ids = [add_eval(store, project)["id"] for _ in range(3)]
    with database.writing() as connection:
        for at, eval_id in enumerate((ids[1], ids[0], ids[2])):
            values = {"updated_at": at // 2}  # the first two in one second: by their creation
            connection.execute(evals.update().where(evals.c.id == eval_id).values(**values))
    rows, more = store.listed(project, Page(2, None, newest_first=False), by_update=True)
    assert [row["id"] for row in rows] == ids[:2] and more
    rows, more = store.listed(project, Page(2, ids[1], newest_first=False), by_update=True)
    assert [row["id"] for row in rows] == ids[2:] and not more
    rows, _ = store.listed(project, Page(3), by_update=True)
    assert [row["id"] for row in rows] == ids[::-1]


def test_a_page_of_large_items_ends_early_and_none_is_lost(database: Database, store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"], count=5)
    store.move(run["id"], "in_progress")
    for number in range(5):
        store.record(run["id"], number, result("pass"))
    with database.writing() as connection:
        connection.execute(eval_items.update().values(bytes=PAGE_BYTES // 2))
    seen: list[int] = []
    after, more = None, True
    while more:
        rows, more = store.items(project, run["eval_id"], run["id"], Page(10, after, newest_first=False), None)
        assert len(rows) <= 2
        seen += [row["number"] for row in rows]
        after = rows[-1]["id"]
    assert seen == list(range(5))


def test_runs_with_large_sources_are_listed_in_short_pages(store: EvalStore, project: str) -> None:
    eval_id = add_eval(store, project)["id"]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": "x" * (PAGE_BYTES // 3)}}
    ids = [store.add_run(project, eval_id, NewRun("", source, None, [Item({})]))["id"] for _ in range(4)]
    rows, more = store.runs(project, eval_id, Page(10, None, newest_first=False), None)
    assert [row["id"] for row in rows] == ids[:2] and more


def test_an_eval_goes_with_its_runs_and_items(database: Database, store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"])
    store.delete(project, run["eval_id"])
    assert store.to_grade(run["id"], 0) is None
    with pytest.raises(ApiError, match="No such eval_run"):
        store.move(run["id"], "in_progress")


def test_a_project_has_no_more_room_than_it_may(database: Database, store: EvalStore, project: str) -> None:
    run = add_run(store, project, add_eval(store, project)["id"])
    with pytest.raises(ApiError, match="delete some") as caught:
        add_run(EvalStore(database, project_bytes=run["bytes"]), project, run["eval_id"])
    assert caught.value.status == 413


def test_the_first_item_that_does_not_fit_is_named() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    check_schema(schema)
    assert first_misfit(schema, [{"a": 1}, {"a": 2}]) is None
    assert first_misfit(schema, [{"a": 1}, {"a": "é"}, {}]) == (1, "'é' is not of type 'integer' at $.a")


def test_a_pattern_that_never_ends_is_ended() -> None:
    with pytest.raises(EvaluationError, match="within 1 seconds"):
        first_misfit({"properties": {"a": {"pattern": "^(a|a)*$"}}}, [{"a": "a" * 60 + "b"}], seconds=1)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "thing"}, "no JSON Schema"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "expected one within itself"),
        ({"allOf": [{"$dynamicRef": "file:///etc/passwd"}]}, "expected one within itself"),
        (json.loads('{"not":' * 40 + "{}" + "}" * 40), "nested more than 32 deep"),
        ({"enum": ["x" * 70_000]}, "expected at most 65,536"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [({"$ref": "#/$defs/none"}, "names what it does not have"), ({"properties": {"a": {"pattern": "("}}}, "applied")],
)
def test_a_schema_that_breaks_over_an_item_is_told(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        first_misfit(schema, [{"a": "b"}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "multi", "name": "m"}, "expected one of label_model"),
        ({"type": ["python"], "name": "m"}, "expected one of label_model"),
        ({**CHECK, "pass_threshold": 0.5}, "pass_threshold"),
        ({**CHECK, "type": "text_similarity", "evaluation_metric": "bleu"}, "'pass_threshold' is required"),
        ({"type": "python", "name": "p", "source": "x = 1", "pass_threshold": 0.5}, "grade"),
        ({"type": "python", "name": "p", "source": "x = 1", "pass_threshold": True}, "expected a number"),
    ],
)
def test_a_criterion_that_cannot_be_used_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_criterion(values, HOST)


def test_where_a_criterion_without_a_threshold_passes() -> None:
    asked = {"type": "score_model", "name": "s", "model": "m", "input": [{"role": "judge", "content": "Rate it"}]}
    kept = read_criterion({**asked, "range": [1, 5]}, HOST)
    assert criterion_of(kept).threshold == 3.0 and kept["input"][0]["role"] == "user"
    assert read_criterion({**asked, "pass_threshold": 1}, HOST)["pass_threshold"] == 1.0
    assert criterion_of(CHECK).threshold == 1.0


def test_a_grade_that_failed_makes_the_item_an_error_and_does_not_pass() -> None:
    texts = {"name": "alike", "input": "{{item.a}}", "reference": "1"}
    worst = {**texts, "type": "text_similarity", "evaluation_metric": "bleu", "pass_threshold": 0}
    criteria = [criterion_of(worst), criterion_of({**CHECK, "input": "1"})]
    status, results = grade(criteria, Sample(""), {}, HOST)
    assert status == "error" and [one["passed"] for one in results] == [False, True]
    assert results[0]["errors"] == {"invalid_variable_error": True} and "item.a" in results[0]["problem"]
    assert grade(criteria, Sample(""), {"a": "2"}, HOST)[0] == "pass"


def test_whether_a_criterion_reads_the_sample() -> None:
    assert reads_sample({**CHECK, "input": "{{ sample.output_text }}"}) and not reads_sample(CHECK)
    assert not reads_sample({"type": "python", "source": "# {{sample.output_text}}"})


def test_messages_are_filled_from_the_item_and_never_read_again() -> None:
    block = {"type": "input_text", "text": "in {{item.n}} words"}
    template = [{"role": "user", "content": ["Say {{item.q}}", block]}]
    made = messages_for({"type": "template", "template": template}, {"q": "{{item.n}}", "n": 3})
    assert made == [{"role": "user", "content": "Say {{item.n}}\nin 3 words"}]
    reference = {"type": "item_reference", "item_reference": "item.turns"}
    turns = [{"role": "user", "content": "{{item.q}}", "weight": 1}]
    assert messages_for(reference, {"turns": turns}) == [{"role": "user", "content": "{{item.q}}"}]
    unusable: list[dict[str, Any]] = [
        {},
        {"turns": "no"},
        {"turns": []},
        {"turns": [{"role": "judge"}]},
        {"turns": [{"content": "a"}]},
    ]
    for wrong in unusable:
        with pytest.raises(NoMessages):
            messages_for(reference, wrong)


def test_what_the_responses_api_calls_a_text_format_is_a_response_format() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    body = chat_body({"model": "m", "sampling_params": {"top_p": 0.5, "text": {"format": form}}}, [])
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    assert body == {"model": "m", "messages": [], "seed": 42, "top_p": 0.5, "response_format": wanted}


def test_a_sample_is_read_in_both_shapes() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {"message": {"role": "assistant", "content": '{"a": 1}', "tool_calls": [call]}}
    for given in ({"output_text": '{"a": 1}', "output_tools": [call]}, {"choices": [choice]}):
        sample = given_sample(given)
        assert sample.output_json == {"a": 1} and list(sample.output_tools) == [call]
    assert given_sample({"choices": "none"}).output_text == given_sample(None).output_text == ""
