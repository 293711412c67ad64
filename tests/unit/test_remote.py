"""Remote models: what is sent and what is not, patience, keeping, the spend limit, and secrets."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Heard, Reply, completion, echo, serving
from tests.serving import CALLS, COUNT, LEARNED, UNICODE, Tiny, learn, running

from luthier.config import build
from luthier.data.templates import build_template
from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.harness import Options, evaluate
from luthier.evaluation.systems._responses import Prices, Purse, Responses, Usage
from luthier.evaluation.systems._wire import reply_of, wire_messages
from luthier.evaluation.systems.base import Context, Desk
from luthier.evaluation.systems.remote import SERVER_TOKENS, Remote
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Message, ToolCall
from luthier.models.load import LoadedModel
from luthier.prices import open_book, own_machine
from luthier.recipe import CostSettings
from luthier.report.cost import paid_expenses, run_expenses, system_cost
from luthier.report.cost_schema import price_of
from luthier.report.schema import System as Reported
from luthier.report.ways import Priced, ways_of

KEY = "sk-SECRET-4711-do-not-tell"


def row(question: str, answer: str = "ok", id: str = "") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), id=id or question)


ROWS = [row(f"question {i}") for i in range(6)]


@pytest.fixture
def context(tiny_loaded: LoadedModel, tmp_path: Path) -> Context:
    return Context(
        loaded=tiny_loaded,
        template=build_template(tiny_loaded, "model"),
        adapter_disabled=nullcontext,
        train=[row(f"train question {i}", f"answer {i}") for i in range(6)],
        validation=[],
        max_new_tokens=5,
        task="text",
        primary_metric=build_metrics(["rouge_l"])["rouge_l"],
        base_fingerprint="base",
        responses=tmp_path / "responses",
        say=lambda text: None,
    )


def remote(heard: Heard, **more: Any) -> Remote:
    values = {"base_url": heard.url, "model": "big", "first_wait_seconds": 0.01, "suggest": False, **more}
    return build(Remote, values)


def once(first: Reply, times: int = 1) -> Callable[[dict[str, Any], int], Reply]:
    """Answers the first requests so, and echoes from then on."""
    return lambda body, number: first if number < times else echo(body, number)


def everything_written(folder: Path) -> str:
    return "".join(p.read_text("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


def test_of_log_probabilities_those_of_the_first_token_are_kept(context: Context) -> None:
    told: list[tuple[Any, Any]] = [("A", -0.5), ("C", None), (4, -1.0), (" A", -3)]

    def lettered(body: dict[str, Any], number: int) -> Reply:
        values = json.loads(completion("A").body)
        listed = [{"token": token, "logprob": value} for token, value in told]
        tokens = [{"top_logprobs": listed}, {"top_logprobs": [{"token": "later", "logprob": -0.1}]}]
        asked = body["messages"][-1]["content"] == "question 0"
        values["choices"][0]["logprobs"] = {"content": tokens if asked else []}
        return Reply(json.dumps(values).encode())

    with serving(lettered) as heard:
        system, desk = remote(heard), Desk(context.responses)
        first = system.letters(ROWS[:2], 4, True, desk)
        assert first == [("A", {"A": -0.5, " A": -3.0}), ("A", {})]
        assert system.letters(ROWS[:2], 4, True, desk) == first and len(heard.bodies) == 2
    assert context.responses is not None and "later" not in everything_written(context.responses)


# what is sent


def test_rows_are_asked_plainly_and_answered_in_their_order(context: Context) -> None:
    with serving() as heard:
        given = remote(heard, instruction="Be brief.").answer(ROWS, context)
    assert [a.output for a in given.answers] == [r.prompt[0].content for r in ROWS]
    assert sorted(b["messages"][1]["content"] for b in heard.bodies) == sorted(r.prompt[0].content for r in ROWS)
    body = heard.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {k: v for k, v in body.items() if k != "messages"} == {"model": "big", "max_tokens": 10, "temperature": 0}
    assert {h["path"] for h in heard.headers} == {"/v1/chat/completions"}
    assert all("authorization" not in h for h in heard.headers)
    assert (given.answers[0].prompt_tokens, given.answers[0].completion_tokens) == (10, 5)
    counted = {
        k: given.details[k] for k in ("requests", "cached", "input_tokens", "output_tokens", "usd", "answered_by")
    }
    assert counted == {
        "requests": 6, "cached": 0, "input_tokens": 60, "output_tokens": 30, "usd": None, "answered_by": ["served"]
    }  # fmt: skip


def test_what_newer_models_refuse_can_be_left_out(context: Context) -> None:
    with serving() as heard:
        remote(heard, limit_field="max_completion_tokens", send_temperature=False).answer(ROWS[:1], context)
    assert heard.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}


def test_examples_are_the_most_similar_training_rows(context: Context) -> None:
    with serving() as heard:
        given = remote(heard, shots=2).answer([row("question 3 or so")], context)
    said = [m["content"] for m in heard.bodies[0]["messages"]]
    assert len(said) == 5 and said[-3:-1] == ["train question 3", "answer 3"]
    assert given.details["mean_shots"] == 2


def test_what_is_known_of_the_task_is_said(context: Context) -> None:
    labeled = replace(context, task="label", train=[row("a", "cat"), row("b", "dog")])
    with serving() as heard:
        remote(heard, suggest=True).answer(ROWS[:1], labeled)
    assert "Allowed labels: cat, dog." in heard.bodies[0]["messages"][0]["content"]


def test_what_leaves_the_machine_is_said_before_it_leaves(context: Context) -> None:
    said: list[str] = []
    with serving() as heard:
        listening = replace(context, say=lambda text: said.append(f"{len(heard.bodies)} sent: {text}"))
        remote(heard, shots=2).answer(ROWS, listening)
        assert len(said) == 1 and said[0].startswith(
            "0 sent: sending the prompts of 6 rows, each with up to 2 training"
        )
        assert heard.url.split("/")[2] in said[0] and "this machine" in said[0]
        remote(heard, shots=2).answer(ROWS, listening)
    assert len(said) == 1, "nothing was sent, so nothing is to be said"


@pytest.mark.parametrize("switch", ["LUTHIER_OFFLINE", "HF_HUB_OFFLINE"])
def test_nothing_leaves_while_the_network_is_switched_off(
    context: Context, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    elsewhere = build(Remote, {"base_url": "http://model.invalid/v1", "model": "big"})
    with pytest.raises(EvaluationError, match=f"{switch} is set, so nothing is sent to model.invalid, and 6 of 6"):
        elsewhere.answer(ROWS, context)
    with serving() as heard:  # what stays here may be asked
        assert len(remote(heard).answer(ROWS, context).answers) == 6


def test_calls_go_out_with_ids_and_arguments_as_text() -> None:
    messages = (
        Message("user", "?"),
        Message("assistant", "", tool_calls=(ToolCall("f", {"city": "Århus"}), ToolCall("g", {}, "given"))),
        Message("tool", "one"),
        Message("tool", "two", tool_call_id="given"),
        Message("assistant", "so", weight=0.0),
    )
    sent = wire_messages(messages)
    assert [c["id"] for c in sent[1]["tool_calls"]] == ["call_1_0", "given"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Århus"}
    assert [m.get("tool_call_id") for m in sent] == [None, None, "call_1_0", "given", None]
    assert sent[4] == {"role": "assistant", "content": "so"}


def test_calls_come_back_as_calls_and_what_is_none_stays_text() -> None:
    good = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    bad = {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x": '}}
    assert reply_of({"content": None, "tool_calls": [good]}).tool_calls == (ToolCall("f", {"x": 1}, "a"),)
    odd = reply_of({"content": "Well.", "tool_calls": [good, bad]})
    assert len(odd.tool_calls) == 1 and odd.content.startswith("Well.\n") and '{\\"x\\": ' in odd.content
    tagged = reply_of({"content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'})
    assert tagged.tool_calls == (ToolCall("f", {}),)


# our own server


def test_a_served_run_answers_as_it_learned(make_tiny: Callable[..., LoadedModel], context: Context) -> None:
    tiny: Tiny = learn(make_tiny)
    asked = [replace(learned, id=str(i)) for i, learned in enumerate(LEARNED)]
    roomy = replace(context, max_new_tokens=200)
    with running(tiny.served()) as url:
        settings = {"base_url": f"{url.rstrip('/').removesuffix('/v1')}/v1", "model": "tiny-run", "suggest": False}
        given = build(Remote, settings).answer(asked, roomy)
    assert [a.output for a in given.answers[:2]] == [UNICODE, COUNT]
    reply = given.answers[2].reply
    assert reply is not None and [(c.name, c.arguments) for c in reply.tool_calls] == [
        (c.name, c.arguments) for c in CALLS
    ]
    assert all(a.prompt_tokens and a.completion_tokens and a.finished for a in given.answers)


# patience


@pytest.mark.parametrize(
    "first",
    [
        Reply(b"slow down", 429, (("Retry-After", "0"),)),
        Reply(b"slow down", 429),
        Reply(b"oops", 500),
        Reply(b"<html>bad gateway</html>", 502),
        Reply(b"not JSON at all"),
        Reply(b'{"choices": []}'),
        Reply(b'{"choices": [{"message": "text"}]}'),
        Reply(b'{"choices": [{"message": {"content": NaN}}]}'),
        Reply(b'{"choices": [{"message": {"content": 1e999}}]}'),
        Reply(b"[" * 100_000),
    ],
)
def test_a_server_that_stumbles_is_asked_again(context: Context, first: Reply) -> None:
    with serving(once(first)) as heard:
        given = remote(heard).answer(ROWS, context)
    assert [a.output for a in given.answers] == [r.prompt[0].content for r in ROWS]
    assert len(heard.bodies) == 7 and given.details["requests"] == 7


def test_a_slow_answer_is_not_waited_for_forever(context: Context) -> None:
    for first in (Reply(b"{}", before_seconds=2.0), Reply(b"x" * 100, drips=50)):
        with serving(once(first)) as heard:
            given = remote(heard, timeout_seconds=0.5, model=f"big {first.drips}").answer(ROWS[:1], context)
        assert given.answers[0].output == "question 0" and len(heard.bodies) == 2


def test_the_wait_that_is_asked_for_is_kept(context: Context) -> None:
    times: list[float] = []

    def answer(body: dict[str, Any], number: int) -> Reply:
        import time

        times.append(time.monotonic())
        return Reply(b"", 429, (("Retry-After", "1"),)) if number == 0 else echo(body, number)

    with serving(answer) as heard:
        remote(heard).answer(ROWS[:1], context)
    assert times[1] - times[0] >= 1.0, "first_wait_seconds is a hundredth of that"


def test_a_server_that_wants_to_be_left_alone_is(context: Context) -> None:
    with (
        serving(once(Reply(b"", 429, (("Retry-After", "86400"),)), 99)) as heard,
        pytest.raises(EvaluationError, match=r"status 429; it asks to be left alone for 86,400 s"),
    ):
        remote(heard).answer(ROWS[:1], context)
    assert len(heard.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "message", "attempts"),
    [
        (Reply(b"too long for this model", 400), "status 400: too long for this model", 1),
        (Reply(b"", 404), "status 404", 1),
        (Reply(b"", 307, (("Location", "http://elsewhere.invalid/"),)), "redirects are not followed", 1),
        (Reply(b"overloaded", 503), r"status 503: overloaded \(3 attempts\)", 3),
        (Reply(b"never JSON"), r"no chat completion: never JSON \(3 attempts\)", 3),
    ],
)
def test_what_no_patience_mends_says_what_and_for_which_row(
    context: Context, reply: Reply, message: str, attempts: int
) -> None:
    with (
        serving(once(reply, 99)) as heard,
        pytest.raises(EvaluationError, match=f"row question 0 .*{message}"),
    ):
        remote(heard, retries=2).answer(ROWS[:1], context)
    assert len(heard.bodies) == attempts


def test_nobody_there(context: Context) -> None:
    with serving() as heard:
        gone = remote(heard, retries=1)
    with pytest.raises(EvaluationError, match=r"cannot be reached.*\(2 attempts\)"):
        gone.answer(ROWS[:1], context)


def test_so_many_at_once_and_no_more(context: Context) -> None:
    slow = lambda body, number: replace(echo(body, number), before_seconds=0.1)  # noqa: E731
    with serving(slow) as heard:
        remote(heard, concurrency=3).answer(ROWS, context)
    assert heard.most_at_once == 3


# keeping


def test_an_evaluation_that_was_stopped_goes_on_and_a_second_one_asks_nothing(context: Context) -> None:
    with serving(lambda body, number: echo(body, number) if number < 4 else Reply(b"no", 400)) as heard:
        with pytest.raises(EvaluationError, match="status 400"):
            remote(heard, concurrency=1).answer(ROWS, context)
        port = heard.url
    kept = next((context.responses or Path()).glob("*.jsonl"))
    assert len(kept.read_text().splitlines()) == 4
    responses = Responses(kept)
    assert len(responses.paid) == 4 and port
    with serving() as heard:  # another port, so another address: nothing kept for it
        first = remote(heard).answer(ROWS, context)
        assert (first.details["requests"], first.details["cached"]) == (6, 0)
        second = remote(heard).answer(ROWS, context)
        assert (second.details["requests"], second.details["cached"]) == (0, 6)
        assert second.answers == first.answers and second.seconds == first.seconds
        remote(heard, instruction="Otherwise.").answer(ROWS, context)
        assert len(heard.bodies) == 12, "another prompt is another question"


def test_a_failure_half_way_keeps_what_was_answered(context: Context) -> None:
    broken = {"now": True}

    def answer(body: dict[str, Any], number: int) -> Reply:
        return Reply(b"no", 400) if broken["now"] and number >= 4 else echo(body, number)

    with serving(answer) as heard:
        with pytest.raises(EvaluationError, match="status 400"):
            remote(heard, concurrency=1).answer(ROWS, context)
        broken["now"] = False
        given = remote(heard, concurrency=1).answer(ROWS, context)
    assert (given.details["requests"], given.details["cached"]) == (2, 4)


def test_a_line_that_a_killed_process_left_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    for key in ("a", "b"):
        Responses(path).add({"key": key, "message": {"content": "\ud800 " + key}, "charged": [1, 2]})
    path.write_bytes(path.read_bytes()[:-9])
    torn = Responses(path)
    assert torn.get("a") is not None and torn.get("b") is None and torn.paid == (Usage(1, 2),)
    torn.add({"key": "c", "message": {"content": "c"}, "charged": [1, 2]})
    again = Responses(path)
    assert again.get("a") is not None and again.get("c") is not None and len(again.paid) == 2


def test_a_desk_reads_its_file_once(tmp_path: Path) -> None:
    """Many batches are asked at one desk: read again for each, the file would take a time that grows as its square."""
    desk = Desk(tmp_path)
    desk.kept("a.jsonl").add({"key": "a", "message": {"content": "a"}, "charged": [1, 2]})
    assert desk.kept("a.jsonl") is desk.kept("a.jsonl") and desk.kept("b.jsonl").get("a") is None
    assert Desk(tmp_path).kept("a.jsonl").get("a") is not None


def test_equal_questions_are_asked_once(context: Context) -> None:
    with serving() as heard:
        given = remote(heard).answer([row("same", id="a"), row("same", id="b")], context)
    assert len(heard.bodies) == 1 and [a.id for a in given.answers] == ["a", "b"]


# money

PRICED = {"input_usd_per_million_tokens": 2.0, "output_usd_per_million_tokens": 8.0}


def test_cost_is_counted_from_what_the_server_tells(context: Context) -> None:
    with serving() as heard:
        given = remote(heard, **PRICED).answer(ROWS, context)
    assert given.details["usd"] == given.details["usd_paid"] == pytest.approx(6 * (10 * 2 + 5 * 8) / 1e6)
    tokens = {"prompt": 60, "completion": 30}
    settings = CostSettings(machine_usd_per_hour=1.0)
    book = open_book(settings)
    priced = Priced(settings, book, own_machine(settings, book), ())
    reported = Reported.model_validate(
        {
            "name": "r",
            "type": "remote",
            "baseline": True,
            "n": 6,
            "tokens": tokens,
            "seconds": 36,
            "details": given.details,
        }
    )
    here, there = ways_of(reported, priced, {})
    cost = system_cost(priced, reported, [here, there])
    assert cost.here_usd_per_thousand is None, "an answer from elsewhere has no price here"
    assert price_of(cost) == pytest.approx(1000 * (10 * 2 + 5 * 8) / 1e6)
    amounts = {
        e.name: e.usd for e in (*run_expenses(priced.machine, (reported,), None, {}), *paid_expenses((reported,)))
    }
    assert amounts == pytest.approx({"Evaluating r": 0.01, "Paid for r": 6 * 60e-6})
    unpriced = reported.model_copy(update={"details": type(reported.details)()})
    assert price_of(system_cost(priced, unpriced, ways_of(unpriced, priced, {}))) is None


def test_an_answer_without_usage_is_counted_at_the_most_it_can_be(context: Context) -> None:
    with serving(lambda body, number: completion("x", usage=None)) as heard:
        given = remote(heard, **PRICED).answer(ROWS[:2], context)
    sent = len(json.dumps(heard.bodies[0]).encode())
    assert given.details["answers_without_usage"] == 2 and given.answers[0].prompt_tokens is None
    assert given.details["usd"] == pytest.approx(2 * ((sent + SERVER_TOKENS) * 2 + 10 * 8) / 1e6)


def most_usd(context: Context) -> float:
    """What the request for one row could cost."""
    (request,) = Remote(base_url="http://127.0.0.1:1/v1", model="big", suggest=False)._requests(ROWS[:1], context)
    return request.most.usd(Prices(2.0, 8.0))


def test_the_spend_limit_holds_before_a_request_is_sent_and_a_higher_one_goes_on(context: Context) -> None:
    one = 60e-6  # what an answer really costs
    limit = 2 * one + most_usd(context)  # after two answers a third may be asked for, and then no fourth
    with serving() as heard:
        with pytest.raises(EvaluationError, match=r"spend_limit_usd = .*a higher limit goes on"):
            remote(heard, concurrency=4, spend_limit_usd=limit, **PRICED).answer(ROWS, context)
        assert len(heard.bodies) == 3
        with pytest.raises(EvaluationError, match=r"0\.00018 USD are spent"):
            remote(heard, spend_limit_usd=limit, **PRICED).answer(ROWS, context)
        assert len(heard.bodies) == 3, "what was paid before counts"
        given = remote(heard, spend_limit_usd=1.0, **PRICED).answer(ROWS, context)
    assert given.details["cached"] == 3 and len(heard.bodies) == 6
    assert given.details["usd_paid"] == pytest.approx(6 * one)


def test_what_may_have_been_charged_without_an_answer_counts(context: Context) -> None:
    with serving(once(Reply(b"garbage"))) as heard:
        given = remote(heard, **PRICED).answer(ROWS[:1], context)
        assert given.details["usd"] == pytest.approx(60e-6)
        assert given.details["usd_paid"] == pytest.approx(60e-6 + most_usd(context))
        again = remote(heard, **PRICED).answer(ROWS[:1], context)
        assert again.details["usd_paid"] == given.details["usd_paid"]
    with serving(once(Reply(b"busy", 429))) as heard:
        given = remote(heard, **PRICED).answer(ROWS[:1], context)
    assert given.details["usd_paid"] == pytest.approx(60e-6), "nobody charges for a refusal"


def test_two_systems_at_one_endpoint_pay_each_for_its_own(context: Context) -> None:
    with serving() as heard:
        first = remote(heard, **PRICED).answer(ROWS, context)
        second = remote(heard, instruction="Be brief.", **PRICED).answer(ROWS[:2], context)
    assert first.details["usd_paid"] == pytest.approx(6 * 60e-6)
    assert second.details["usd_paid"] == pytest.approx(2 * 60e-6)


def test_what_is_for_this_machine_goes_through_no_proxy(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy, serving() as heard:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        remote(heard).answer(ROWS[:1], context)
    assert len(heard.bodies) == 1 and proxy.bodies == []


def test_a_purse_waits_for_what_is_under_way() -> None:
    import threading

    purse = Purse(Prices(1.0, 1.0), 3e-6, 0.0)
    order: list[str] = []
    with purse.paying(Usage(1, 1)) as first:

        def second() -> None:
            with purse.paying(Usage(1, 1)):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive() and order == []
        order.append("first")
        first.settle(Usage(1, 0))
    thread.join(timeout=10)
    assert order == ["first", "second"]


# secrets


def test_the_key_goes_into_the_header_and_nowhere_else(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY + "\n")
    said: list[str] = []
    metrics = build_metrics(["rouge_l"])
    with serving(lambda body, number: completion(f"your key is {KEY}")) as heard, caplog.at_level("DEBUG"):
        told = replace(context, say=said.append)
        system = remote(heard, api_key_env="MY_API_KEY")
        evaluate({"big": system}, ROWS, told, metrics, Options(tmp_path, "rouge_l"))
    assert {h["authorization"] for h in heard.headers} == {f"Bearer {KEY}"}
    written = everything_written(tmp_path)
    assert "your key is [key]" in written and "MY_API_KEY" not in "".join(said)
    assert all("SECRET" not in text for text in (written, caplog.text, "".join(said), repr(system)))


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_no_error_tells_the_key(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int) -> None:
    monkeypatch.setenv("MY_API_KEY", KEY)
    said = f"bad key {KEY}, it began with {KEY[:9]}".encode()
    with serving(once(Reply(said, status), 9)) as heard, pytest.raises(EvaluationError) as found:
        remote(heard, api_key_env="MY_API_KEY", retries=0).answer(ROWS, context)
    assert KEY not in str(found.value) and f"status {status}" in str(found.value)
    assert found.value.__cause__ is None and found.value.__suppress_context__
    assert ("SECRET" not in str(found.value)) or status not in (401, 403)
    assert KEY not in everything_written(tmp_path)


def test_a_key_that_is_missing_or_odd_is_not_shown(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as heard:
        monkeypatch.delenv("MY_API_KEY", raising=False)
        with pytest.raises(EvaluationError, match="MY_API_KEY, which api_key_env names, is not set"):
            remote(heard, api_key_env="MY_API_KEY").answer(ROWS, context)
        monkeypatch.setenv("MY_API_KEY", "SECRET\nX-Other: 1")
        with pytest.raises(EvaluationError) as found:
            remote(heard, api_key_env="MY_API_KEY").answer(ROWS, context)
    assert "SECRET" not in str(found.value) and heard.bodies == []


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"api_key_env": "secret_4711"},
        {"base_url": f"https://user:{KEY}@api.example.com/v1"},
        {"base_url": f"https://api.example.com/v1?key={KEY}"},
        {"base_url": f"api.example.com/{KEY}"},
        {"base_url": f"ftp://api.example.com/{KEY}"},
    ],
)
def test_a_secret_in_the_recipe_is_refused_without_repeating_it(settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError) as found:
        build(Remote, {"base_url": "https://api.example.com/v1", "model": "m", **settings})
    assert "SECRET" not in str(found.value).upper() and next(iter(settings)) in str(found.value)


def test_a_limit_needs_prices() -> None:
    with pytest.raises(RecipeError, match="spend_limit_usd can only hold where"):
        build(Remote, {"base_url": "https://api.example.com/v1", "model": "m", "spend_limit_usd": 1.0})
    with pytest.raises(RecipeError, match="give both or none"):
        build(Remote, {"base_url": "https://a.example/v1", "model": "m", "input_usd_per_million_tokens": 1.0})
