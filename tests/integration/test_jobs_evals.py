"""The unmodified `openai` client and evals on our job service: make one, run it, read what came of every item."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.jobs_service import MODEL, Running, new_key, rows, running, start

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "wanted": {"type": "string"}},
    "required": ["question", "wanted"],
}
CUSTOM: Any = {"type": "custom", "item_schema": SCHEMA}
SAME: Any = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.wanted}}",
    "operation": "eq",
}
ALIKE: Any = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.wanted}}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.5,
}
SHORT: Any = {
    "type": "python",
    "name": "short",
    "source": "def grade(sample, item):\n    return 1.0 if len(sample['output_text']) < 9 else 0.0\n",
    "pass_threshold": 1.0,
}
SLOW: Any = {
    "type": "python",
    "name": "slow",
    "source": "def grade(sample, item):\n    for _ in range(6_000_000):\n        pass\n    return 1.0\n",
}
ENDED = ("completed", "failed", "canceled")


def content(count: int = 20) -> list[Any]:
    """Of every five items one is right, one nearly, one is wrong, one too long, and one right again."""
    said = ("{}", "{}!", "no", "{} and much more", "{}")
    made = []
    for n in range(count):
        wanted = f"ans {n:02}"
        item = {"question": f"q {n}", "wanted": wanted}
        made.append({"item": item, "sample": {"output_text": said[n % 5].format(wanted)}})
    return made


def jsonl(content: list[Any]) -> Any:
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


def wait_for(client: openai.OpenAI, run: Any, seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        if found.status in ENDED:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{found.status} after {seconds} s: {found.result_counts}")


@pytest.fixture(scope="module")
def done(client: openai.OpenAI) -> Any:
    """A run that ended."""
    made = client.evals.create(
        data_source_config=CUSTOM, testing_criteria=[SAME, ALIKE, SHORT], name="answers", metadata={"team": "a"}
    )
    assert made.data_source_config.type == "custom"
    run = client.evals.runs.create(made.id, data_source=jsonl(content()), name="first", metadata={"try": "1"})
    assert run.status == "queued" and run.result_counts.total == 0
    return wait_for(client, run)


def test_counts_are_right(done: Any) -> None:
    assert done.status == "completed" and (done.name, done.metadata) == ("first", {"try": "1"})
    counts = done.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (20, 8, 12, 0)
    found = {one.testing_criteria: (one.passed, one.failed) for one in done.per_testing_criteria_results}
    assert found == {"same": (8, 12), "alike": (12, 8), "short": (16, 4)}
    assert done.per_model_usage == [] and done.error.message == ""


def test_output_items_are_paged_in_the_order_of_the_data(client: openai.OpenAI, done: Any) -> None:
    asked: Any = {"run_id": done.id, "eval_id": done.eval_id}
    items = list(client.evals.runs.output_items.list(**asked, limit=7))
    assert [item.datasource_item_id for item in items] == list(range(20))
    assert [item.datasource_item for item in items] == [one["item"] for one in content()]
    backwards = list(client.evals.runs.output_items.list(**asked, limit=7, order="desc"))
    assert [item.id for item in backwards] == [item.id for item in items][::-1]
    passed = list(client.evals.runs.output_items.list(**asked, limit=3, status="pass"))
    failed = list(client.evals.runs.output_items.list(**asked, status="fail"))
    assert [item.datasource_item_id % 5 for item in passed] == [0, 4] * 4 and len(failed) == 12
    assert {item.id for item in [*passed, *failed]} == {item.id for item in items}
    one = client.evals.runs.output_items.retrieve(items[1].id, **asked)
    assert one.model_dump() == items[1].model_dump() and one.sample.output[0].content == "ans 01!"
    assert [(result.name, result.passed) for result in one.results] == [
        ("same", False),
        ("alike", True),
        ("short", True),
    ]
    assert 0.9 < one.results[1].score < 1


def test_evals_are_listed_changed_and_deleted(client: openai.OpenAI) -> None:
    ids = [client.evals.create(data_source_config=CUSTOM, testing_criteria=[SAME]).id for _ in range(3)]
    listed = [one.id for one in client.evals.list(limit=2)]
    assert [one for one in listed if one in ids] == ids
    assert [one.id for one in client.evals.list(order="desc", limit=100) if one.id in ids] == ids[::-1]
    time.sleep(1.1)  # updates are known by the second
    changed = client.evals.update(ids[0], name="new", metadata={"a": "b"})
    assert (changed.name, changed.metadata) == ("new", {"a": "b"})
    assert client.evals.update(ids[0], name="newer").metadata == {"a": "b"}
    assert [one.id for one in client.evals.list(order_by="updated_at", limit=100) if one.id in ids][-1] == ids[0]
    run = client.evals.runs.create(ids[0], data_source=jsonl(content(1)))
    assert client.evals.delete(ids[0]).deleted
    for call in (
        lambda: client.evals.retrieve(ids[0]),
        lambda: client.evals.runs.retrieve(run.id, eval_id=ids[0]),
        lambda: client.evals.runs.list(ids[0]),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_a_canceled_run_keeps_what_it_has_and_does_no_more(client: openai.OpenAI) -> None:
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[SLOW])
    run = client.evals.runs.create(made.id, data_source=jsonl(content(200)))
    waiting = client.evals.runs.create(made.id, data_source=jsonl(content(1)))
    assert [one.id for one in client.evals.runs.list(made.id, status="queued")][-1] == waiting.id
    assert client.evals.runs.cancel(waiting.id, eval_id=made.id).status == "canceled"
    until = time.monotonic() + 60
    while not client.evals.runs.retrieve(run.id, eval_id=made.id).result_counts.total and time.monotonic() < until:
        time.sleep(0.05)
    canceled = client.evals.runs.cancel(run.id, eval_id=made.id)
    assert canceled.status == "canceled" and 0 < canceled.result_counts.total < 200
    assert canceled.result_counts.total == canceled.result_counts.passed  # no threshold: 0.5
    time.sleep(1.0)
    assert client.evals.runs.cancel(run.id, eval_id=made.id) == canceled
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=100))
    assert len(items) == canceled.result_counts.total
    assert client.evals.runs.delete(run.id, eval_id=made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.evals.runs.retrieve(run.id, eval_id=made.id)


def test_a_run_goes_on_after_kill_9_and_a_stop_and_no_item_is_lost_or_doubled(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    folder = tmp_path / "service"
    key = new_key(folder, tiny_model_folder)
    process, url = start(folder, tiny_model_folder, tmp_path / "log.txt")
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[SLOW])
    run = client.evals.runs.create(made.id, data_source=jsonl(content(40)))
    killed = graded(client, run, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with running(folder, tiny_model_folder) as second:
        stopped = graded(second.client(), run, len(killed) + 4)
    assert len(killed) < len(stopped) < 40
    with running(folder, tiny_model_folder) as third:
        ended = wait_for(third.client(), run)
        after = graded(third.client(), run, 40)
    assert ended.status == "completed" and ended.result_counts.passed == ended.result_counts.total == 40
    assert sorted(one.datasource_item_id for one in after.values()) == list(range(40))
    for before in (killed, stopped):
        assert {key: after[key] for key in before} == before


def graded(client: openai.OpenAI, run: Any, least: int) -> dict[str, Any]:
    """The items that have a result, once there are so many."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = {one.id: one for one in client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, limit=100)}
        if len(found) >= least:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{len(found)} of {least}")


def test_what_belongs_to_a_project_does_not_exist_for_another(
    service: Running, client: openai.OpenAI, done: Any
) -> None:
    other = service.client("another")
    item = next(iter(client.evals.runs.output_items.list(done.id, eval_id=done.eval_id)))
    own = other.evals.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    for call in (
        lambda: other.evals.retrieve(done.eval_id),
        lambda: other.evals.update(done.eval_id, name="mine"),
        lambda: other.evals.delete(done.eval_id),
        lambda: other.evals.runs.create(done.eval_id, data_source=jsonl(content(1))),
        lambda: other.evals.runs.list(done.eval_id),
        lambda: other.evals.runs.retrieve(done.id, eval_id=done.eval_id),
        lambda: other.evals.runs.retrieve(done.id, eval_id=own.id),
        lambda: other.evals.runs.cancel(done.id, eval_id=done.eval_id),
        lambda: other.evals.runs.delete(done.id, eval_id=done.eval_id),
        lambda: other.evals.runs.output_items.list(done.id, eval_id=done.eval_id),
        lambda: other.evals.runs.output_items.retrieve(item.id, eval_id=done.eval_id, run_id=done.id),
        lambda: other.evals.list(after=done.eval_id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert [one.id for one in other.evals.list()] == [own.id]
    file = client.files.create(file=("a.jsonl", b'{"item": {"question": "", "wanted": ""}}\n'), purpose="evals")
    with pytest.raises(openai.BadRequestError, match="no such file"):
        other.evals.runs.create(own.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": file.id}})


def test_a_model_is_asked_for_every_item_and_its_tokens_are_counted(client: openai.OpenAI) -> None:
    seen: Any = {**SAME, "name": "said something", "operation": "ne", "reference": ""}
    judge: Any = {
        "type": "label_model",
        "name": "judge",
        "model": MODEL,
        "input": [{"role": "user", "content": "Is {{sample.output_text}} right?"}],
        "labels": ["yes", "no"],
        "passing_labels": ["yes"],
    }
    lines = [{"item": one["item"]} for one in content(4)]
    file = client.files.create(
        file=("a.jsonl", "".join(json.dumps(one) + "\n" for one in lines).encode()), purpose="evals"
    )
    source: Any = {
        "type": "completions",
        "source": {"type": "file_id", "id": file.id},
        "model": MODEL,
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "Say {{item.wanted}}"}]},
        "sampling_params": {"max_completion_tokens": 6, "temperature": 0.5, "seed": 3},
    }
    config: Any = {**CUSTOM, "include_sample_schema": True}
    made = client.evals.create(data_source_config=config, testing_criteria=[seen])
    runs = [client.evals.runs.create(made.id, data_source=source) for _ in range(2)]
    text = {"max_completion_tokens": 6, "temperature": 0.5, "seed": 3, "text": {"format": {"type": "text"}}}
    responses: Any = {**source, "type": "responses", "sampling_params": text}
    runs.append(client.evals.runs.create(made.id, data_source=responses))
    said = []
    for run in runs:
        ended = wait_for(client, run, 120)
        assert ended.status == "completed" and ended.model == MODEL and ended.result_counts.errored == 0
        (used,) = ended.per_model_usage
        items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id))
        assert used.run_model_name == MODEL and used.invocation_count == 4
        assert used.completion_tokens == sum(item.sample.usage.completion_tokens for item in items) <= 24
        assert used.total_tokens == used.prompt_tokens + used.completion_tokens > 24
        assert [item.sample.input[0].content for item in items] == [f"Say ans {n:02}" for n in range(4)]
        assert (items[0].sample.seed, items[0].sample.temperature, items[0].sample.model) == (3, 0.5, MODEL)
        said.append([item.sample.output[0].content for item in items])
    assert said[0] == said[1] == said[2]  # one seed, one answer
    # a model of 150,000 random numbers gives no label: the grade fails, and so the item is errored, not failed
    judged = client.evals.create(data_source_config=CUSTOM, testing_criteria=[judge])
    ended = wait_for(client, client.evals.runs.create(judged.id, data_source=jsonl(content(2))), 120)
    assert ended.status == "completed" and ended.result_counts.errored == ended.result_counts.total == 2
    assert ended.per_model_usage[0].invocation_count == 2
    errors = [item.results[0] for item in client.evals.runs.output_items.list(ended.id, eval_id=judged.id)]
    assert all(one.model_extra and one.model_extra["errors"] == {"model_grader_parse_error": True} for one in errors)


def test_answers_can_be_held_to_a_schema_and_graded_as_json(client: openai.OpenAI) -> None:
    check: Any = {**SAME, "input": "{{sample.output_json.ok}}", "reference": "true", "operation": "like"}
    other: Any = {**check, "reference": "false"}
    made = client.evals.create(data_source_config=CUSTOM, testing_criteria=[check, other])
    flag = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "name": "flag", "schema": {**flag, "additionalProperties": False}}
    source: Any = {**ASKED, "type": "responses", "sampling_params": {"text": {"format": form}}}
    ended = wait_for(client, client.evals.runs.create(made.id, data_source=source), 120)
    assert ended.result_counts.errored == 0 and ended.result_counts.failed == ended.result_counts.total == 1
    assert sum(one.passed for one in ended.per_testing_criteria_results) == 1  # it is true or false, never both


def test_rows_of_a_training_file_are_items_with_messages(client: openai.OpenAI) -> None:
    file = client.files.create(file=("rows.jsonl", rows(2)), purpose="fine-tune")
    check: Any = {**SAME, "operation": "ne", "reference": "{{item.messages[1].content}}"}
    made = client.evals.create(data_source_config={"type": "custom", "item_schema": {}}, testing_criteria=[check])
    source: Any = {
        "type": "completions",
        "source": {"type": "file_id", "id": file.id},
        "model": MODEL,
        "input_messages": {"type": "item_reference", "item_reference": "item.messages"},
        "sampling_params": {"max_completion_tokens": 2},
    }
    ended = wait_for(client, client.evals.runs.create(made.id, data_source=source), 120)
    assert ended.result_counts.passed == 2
    item = next(iter(client.evals.runs.output_items.list(ended.id, eval_id=made.id)))
    assert [one.role for one in item.sample.input] == ["user", "assistant"]
    wrong: Any = {**source, "input_messages": {"type": "item_reference", "item_reference": "item.turns"}}
    ended = wait_for(client, client.evals.runs.create(made.id, data_source=wrong))
    assert ended.result_counts.errored == 2
    item = next(iter(client.evals.runs.output_items.list(ended.id, eval_id=made.id)))
    assert item.status == "error" and "'turns'" in item.sample.error.message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_source_config": {"type": "logs"}}, "keeps no logs"),
        ({"data_source_config": {"type": "custom", "item_schema": {"type": "thing"}}}, "no JSON Schema"),
        ({"data_source_config": {"type": "custom", "item_schema": {"$ref": "https://example.com/b"}}}, "within itself"),
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [SAME, {**SHORT, "source": "def f(): pass"}]}, r"testing_criteria\[1\]"),
        ({"testing_criteria": [{**ALIKE, "evaluation_metric": "cosine"}]}, "no embedder"),
        ({"extra_body": {"color": "red"}}, "Unknown field"),
    ],
)
def test_a_wrong_eval_is_told_what_is_wrong(client: openai.OpenAI, changed: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.evals.create(**{"data_source_config": CUSTOM, "testing_criteria": [SAME], **changed})


ASKED: Any = {
    "type": "completions",
    "source": {"type": "file_content", "content": content(1)},
    "model": MODEL,
    "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (jsonl([*content(2), {"item": {"question": "q"}}]), "line 3: .*'wanted' is a required property"),
        (jsonl([{"item": content(1)[0]["item"]}]), "line 1: .*criterion 'same' reads it"),
        (jsonl([]), "no items"),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-none"}}, "no such file"),
        ({**ASKED, "source": {"type": "stored_completions", "limit": 3}}, "keeps no stored completions"),
        ({**ASKED, "type": "responses", "source": {"type": "responses"}}, "keeps no responses"),
        ({**ASKED, "sampling_params": {"response_format": {"type": "xml"}}}, "response_format.: Input tag .xml."),
        ({**ASKED, "sampling_params": {"reasoning_effort": "low"}}, "not a property"),
        ({**ASKED, "sampling_params": {"tools": [{"type": "web_search"}]}}, "only functions"),
        ({**ASKED, "type": "responses", "sampling_params": {"tools": [{"type": "function"}]}}, "type 'completions'"),
        ({"type": "completions", "source": ASKED["source"], "model": MODEL}, "need each other"),
        ({**ASKED, "input_messages": {"type": "item_reference", "item_reference": "item.a..b"}}, "no variable"),
        (
            {
                **ASKED,
                "input_messages": {
                    "type": "template",
                    "template": [{"role": "user", "content": "{{sample.output_text}}"}],
                },
            },
            "before the model answers",
        ),
    ],
)
def test_a_wrong_run_is_told_what_is_wrong(client: openai.OpenAI, done: Any, source: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.evals.runs.create(done.eval_id, data_source=source)


def test_a_run_asks_only_models_that_are_there(client: openai.OpenAI, done: Any) -> None:
    source: Any = {**ASKED, "model": "gpt-9"}
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.evals.runs.create(done.eval_id, data_source=source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"item": {"question": "", "wanted": ""}}\n\n{"item": 3}\n', "line 3: expected an object with 'item'"),
        (b'{"question": ""}\n', "line 1: expected an object with 'item'"),
        (b"\xff\n", "line 1: no UTF-8"),
        (b'{"item": {"question": NaN}}', "line 1: the line is not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(client: openai.OpenAI, done: Any, text: bytes, message: str) -> None:
    file = client.files.create(file=("a.jsonl", text), purpose="evals")
    source: Any = {"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    with pytest.raises(openai.BadRequestError, match=message):
        client.evals.runs.create(done.eval_id, data_source=source)
