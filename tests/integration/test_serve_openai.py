"""The real `openai` client against a real server on a loopback port; the model has learned its replies by heart."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from tests.serving import CALLS, COUNT, LEARNED, UNICODE, WEATHER, Tiny, running

from luthier.assemble import save_artifact
from luthier.config import build
from luthier.data.templates import build_template
from luthier.examples import Message
from luthier.models.catalog import resolve
from luthier.models.generate import generate
from luthier.models.load import load
from luthier.recipe import Recipe
from luthier.serve.limits import HttpLimits, Limits
from luthier.serve.models import ServedModel

SCRIPTS: list[Any] = [{"role": "user", "content": "Say it in many scripts."}]
COUNTING: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
ASK_WEATHER: list[Any] = [{"role": "user", "content": "How warm is it?"}]
TOOLS: list[Any] = [WEATHER]


@pytest.fixture(scope="module")
def url(tiny: Tiny) -> Iterator[str]:
    with running(tiny.served()) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_chat_gives_the_learned_reply_and_counts_tokens(client: OpenAI, tiny: Tiny) -> None:
    answer = client.chat.completions.create(model="tiny-run", messages=SCRIPTS, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == UNICODE
    assert choice.message.role == "assistant" and choice.finish_reason == "stop" and choice.message.tool_calls is None
    prompt = tiny.template.prompt_ids(LEARNED[0].messages[:1])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    (expected,) = generate(tiny.loaded, [prompt], max_new_tokens=100, stop_ids=tiny.template.stop_ids)
    assert answer.usage.completion_tokens == expected.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "tiny-run" and answer.object == "chat.completion"


def test_base_is_the_model_without_its_adapter(client: OpenAI, tiny: Tiny) -> None:
    answer = client.chat.completions.create(model="base", messages=SCRIPTS, temperature=0, max_tokens=12)
    prompt = tiny.template.prompt_ids(LEARNED[0].messages[:1])
    with tiny.injected.disabled():
        (expected,) = generate(tiny.loaded, [prompt], max_new_tokens=12, stop_ids=tiny.template.stop_ids)
    assert answer.choices[0].message.content == tiny.template.parse_reply(expected.ids).content
    assert answer.choices[0].message.content != UNICODE


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny-run", "base"]
    assert client.models.retrieve("base").owned_by == "luthier"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("a/b")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["gpt-4o", "", "TINY-RUN", "../tiny-run"])
def test_an_unknown_model_is_a_404_and_never_another_model(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=SCRIPTS)
    assert caught.value.type == "invalid_request_error" and caught.value.param == "model"


def test_a_stream_sends_the_same_text_in_whole_characters(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny-run", messages=SCRIPTS, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == UNICODE
    assert len([p for p in pieces if p]) > 10, "the text came in few pieces: nothing was streamed"
    assert not any("\ufffd" in p for p in pieces)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    whole = client.chat.completions.create(model="tiny-run", messages=SCRIPTS, temperature=0)
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_without_include_usage_a_stream_has_no_usage(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny-run", messages=COUNTING, temperature=0, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


@pytest.mark.parametrize("stop", ["four", ["zzz", " three fo"], ["r fi"], ["\n", "five"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_the_reply_and_never_leak(client: OpenAI, stop: str | list[str], stream: bool) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    expected = COUNT[: min(i for s in stops if (i := COUNT.find(s)) >= 0)]
    asked: dict[str, Any] = {"model": "tiny-run", "messages": COUNTING, "temperature": 0, "stop": stop}
    if not stream:
        choice = client.chat.completions.create(**asked).choices[0]
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
        return
    text, reasons = "", []
    for chunk in client.chat.completions.create(**asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        assert expected.startswith(text)
        reasons.append(chunk.choices[0].finish_reason)
    assert text == expected and reasons[-1] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_and_says_length(client: OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": "tiny-run", "messages": COUNTING, "temperature": 0, name: 5}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    text = answer.choices[0].message.content
    assert text and COUNT.startswith(text) and text != COUNT


def test_a_character_cut_by_max_tokens_shows_as_one_replacement(client: OpenAI, tiny: Tiny) -> None:
    ids = tiny.loaded.tokenizer.encode(UNICODE, add_special_tokens=False)
    for n in range(4, len(ids), 3):
        answer = client.chat.completions.create(model="tiny-run", messages=SCRIPTS, temperature=0, max_tokens=n)
        assert answer.choices[0].message.content == tiny.template.parse_reply(ids[:n]).content


def test_tool_calls_come_back_parsed(client: OpenAI) -> None:
    choice = client.chat.completions.create(model="tiny-run", messages=ASK_WEATHER, tools=TOOLS, temperature=0).choices[
        0
    ]
    assert choice.finish_reason == "tool_calls"
    calls: list[Any] = choice.message.tool_calls or []
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        (c.name, c.arguments) for c in CALLS
    ]
    assert choice.message.content == "I look."
    assert len({c.id for c in calls}) == 2
    # the client's own message object goes back as history
    history = [*ASK_WEATHER, choice.message, {"role": "tool", "tool_call_id": calls[0].id, "content": "4 °C"}]
    again = client.chat.completions.create(model="tiny-run", messages=history, tools=TOOLS, temperature=0, max_tokens=2)
    assert again.usage is not None and again.usage.prompt_tokens > 100


def test_tool_calls_stream(client: OpenAI) -> None:
    names: dict[int, str] = {}
    arguments, text, reason = dict.fromkeys((0, 1), ""), "", None
    for chunk in client.chat.completions.create(
        model="tiny-run", messages=ASK_WEATHER, tools=TOOLS, temperature=0, stream=True
    ):
        delta: Any = chunk.choices[0].delta
        text += delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
        for call in delta.tool_calls or []:
            names[call.index] = call.function.name or names[call.index]
            arguments[call.index] += call.function.arguments or ""
    assert text == "I look." and reason == "tool_calls"
    assert [(names[i], json.loads(arguments[i])) for i in (0, 1)] == [(c.name, c.arguments) for c in CALLS]


def test_tool_choice_none_leaves_tools_out_of_prompt_and_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-run", "messages": ASK_WEATHER, "temperature": 0, "max_tokens": 20}
    none = client.chat.completions.create(**asked, tools=TOOLS, tool_choice="none")
    without = client.chat.completions.create(**asked)
    assert none.usage == without.usage
    assert none.choices[0].message.content == without.choices[0].message.content
    assert none.choices[0].message.tool_calls is None


def test_several_choices_and_seeds(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-run", "messages": COUNTING, "n": 4, "temperature": 1.5, "max_tokens": 20}
    first = [c.message.content for c in client.chat.completions.create(**asked, seed=7).choices]
    again = [c.message.content for c in client.chat.completions.create(**asked, seed=7).choices]
    other = [c.message.content for c in client.chat.completions.create(**asked, seed=8).choices]
    assert first == again and first != other
    assert len(set(first)) > 1, "all choices are the same: they share their random numbers"
    free = [client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)]
    assert len(set(free)) > 1, "requests without a seed repeat one another"
    texts = [""] * 4
    for chunk in client.chat.completions.create(**asked, seed=7, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == first


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_follow_the_text(client: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "tiny-run", "messages": SCRIPTS, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3}
    if stream:
        scores: list[Any] = []
        for chunk in client.chat.completions.create(**asked, stream=True):
            logprobs = chunk.choices[0].logprobs
            scores += (logprobs.content or []) if logprobs else []
    else:
        found = client.chat.completions.create(**asked).choices[0].logprobs
        assert found is not None
        scores = found.content or []
    assert b"".join(bytes(s.bytes or []) for s in scores) == UNICODE.encode()
    for score in scores:
        assert len(score.top_logprobs) == 3
        assert score.top_logprobs[0].logprob == pytest.approx(score.logprob)  # greedy: the token is the likeliest
        assert score.logprob <= 0


def test_plain_completions_continue_text_and_ids(client: OpenAI, tiny: Tiny) -> None:
    prompt = "The capital of"
    ids = tiny.template.text_ids(prompt)
    (expected,) = generate(tiny.loaded, [ids], max_new_tokens=6, stop_ids=tiny.template.stop_ids)
    assert not expected.finished, "choose another prompt: the stop token's log-probability is not in an answer"
    text = tiny.template.parse_reply(expected.ids).content
    answer = client.completions.create(model="tiny-run", prompt=prompt, temperature=0, logprobs=2, max_tokens=6)
    assert answer.choices[0].text == text
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.tokens and len(scores.tokens) == len(expected.ids)
    assert sum(scores.token_logprobs or []) == pytest.approx(expected.logprob_sum, abs=1e-3)
    assert client.completions.create(model="tiny-run", prompt=ids, temperature=0, max_tokens=6).choices[0].text == text
    two = client.completions.create(model="tiny-run", prompt=[prompt, "system"], temperature=0, n=2, max_tokens=6)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == two.choices[1].text == text


def test_plain_completions_stream_several_prompts(client: OpenAI) -> None:
    prompts = ["The capital of", "system user", "Read the"]
    whole = client.completions.create(model="tiny-run", prompt=prompts, temperature=0, max_tokens=9)
    texts = [""] * 3
    usage = None
    for chunk in client.completions.create(
        model="tiny-run",
        prompt=prompts,
        temperature=0,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]
    assert usage == whole.usage


def test_penalties_and_bias_change_what_is_chosen(client: OpenAI, tiny: Tiny) -> None:
    asked: dict[str, Any] = {"model": "tiny-run", "prompt": " one one one one", "temperature": 0, "max_tokens": 24}
    token = tiny.loaded.tokenizer.encode("z", add_special_tokens=False)[0]
    forced = client.completions.create(**asked, logit_bias={str(token): 100}).choices[0].text
    assert forced == "z" * 24
    penalized = client.completions.create(**asked, logit_bias={str(token): 3}, frequency_penalty=2).choices[0].text
    assert 1 <= penalized.count("z") < 24


def test_twenty_concurrent_requests_equal_single_ones(client: OpenAI) -> None:
    kinds: list[dict[str, Any]] = [
        {"messages": SCRIPTS},
        {"messages": COUNTING},
        {"messages": ASK_WEATHER, "tools": TOOLS},
        {"messages": COUNTING, "model": "base", "max_tokens": 30},
        {"messages": SCRIPTS, "temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 30},
    ]

    def ask(kind: dict[str, Any]) -> list[Any]:
        answer = client.chat.completions.create(**{"model": "tiny-run", "temperature": 0, **kind})
        found = []
        for choice in answer.choices:
            calls: list[Any] = choice.message.tool_calls or []
            found.append((choice.message.content, [(c.function.name, c.function.arguments) for c in calls]))
        return [found, answer.usage]

    alone = [ask(kind) for kind in kinds]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, kinds * 4))
    assert together == alone * 4


def test_concurrent_requests_share_their_steps(tiny: Tiny) -> None:
    calls: list[None] = []

    served = tiny.served()[0]
    for model in (served.loaded.model, served.mixture.model):  # that reads prompts, and that writes
        model.register_forward_pre_hook(lambda *_: calls.append(None))
    with running([served]) as url, ThreadPoolExecutor(8) as pool:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)

        def ask(_: int) -> str:
            return str(_text(client.chat.completions.create(model="tiny-run", messages=COUNTING, temperature=0)))

        ask(0)
        alone = len(calls)
        assert list(pool.map(ask, range(8))) == [COUNT] * 8
    together = len(calls) - alone
    assert together < 4 * alone, f"8 requests took {together} calls of the model, one takes {alone}"


def _text(answer: ChatCompletion) -> str | None:
    return answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(tiny: Tiny, stream: bool) -> None:
    # one place in the queue: while a request runs, the next is refused; once its client is gone, it is not
    asked: dict[str, Any] = {"model": "base", "messages": SCRIPTS, "max_tokens": 900, "logit_bias": {"2": -100}}

    async def hang_up_then_ask(url: str) -> None:
        client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        if stream:
            chunks: Any = await client.chat.completions.create(**asked, stream=True)
            async for _ in chunks:
                break
        else:
            task = asyncio.ensure_future(client.chat.completions.create(**asked))
            await asyncio.sleep(0.2)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="tiny-run", messages=COUNTING, max_tokens=2)
        if stream:
            await chunks.close()
        else:
            task.cancel()
        await asyncio.sleep(0.1)
        patient = AsyncOpenAI(base_url=url, api_key="none", max_retries=4)
        answer = await patient.chat.completions.create(model="tiny-run", messages=COUNTING, temperature=0)
        assert answer.choices[0].message.content == COUNT

    started = time.monotonic()
    with running(tiny.served(), queue=1) as url:
        asyncio.run(hang_up_then_ask(url))
    assert time.monotonic() - started < 15


def test_a_full_queue_is_429_with_retry_after(tiny: Tiny) -> None:
    with running(tiny.served(), queue=2) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": "base", "messages": SCRIPTS, "max_tokens": 300, "logit_bias": {"2": -100}}
        busy = [client.chat.completions.create(**asked, stream=True) for _ in range(2)]
        for stream in busy:
            next(iter(stream))
        for streaming in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="base", messages=SCRIPTS, max_tokens=1, stream=streaming)
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "rate_limit_exceeded"
        for stream in busy:
            assert list(stream)[-1].choices[0].finish_reason == "length"
        client.chat.completions.create(model="base", messages=SCRIPTS, max_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline_ends_a_request_and_the_server_goes_on(tiny: Tiny, stream: bool) -> None:
    with running(tiny.served(), http=HttpLimits(deadline_seconds=0.5)) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=2)
        asked: dict[str, Any] = {"model": "base", "messages": SCRIPTS, "max_tokens": 900, "logit_bias": {"2": -100}}
        started = time.monotonic()
        with pytest.raises(openai.APIError) as caught:
            for _ in client.chat.completions.create(**asked, stream=stream):
                pass
        assert time.monotonic() - started < 2, "the client repeated a request that can only time out again"
        assert "given up after 0.5 seconds" in str(caught.value)
        answer = client.chat.completions.create(model="tiny-run", messages=COUNTING, temperature=0, max_tokens=4)
        assert answer.choices[0].finish_reason == "length"


def test_rows_wait_for_room_in_the_cache(tiny: Tiny) -> None:
    # room for one request at a time: they run one after another, and all are right
    with (
        running(tiny.served(), limits=Limits(rows=8, cache_tokens=200, block=16)) as url,
        ThreadPoolExecutor(6) as pool,
    ):
        client = OpenAI(base_url=url, api_key="none", max_retries=0)

        def ask(_: int) -> str:
            asked: dict[str, Any] = {"model": "tiny-run", "messages": COUNTING, "temperature": 0, "max_tokens": 60}
            answer = client.chat.completions.create(**asked)
            return str(answer.choices[0].message.content)

        assert list(pool.map(ask, range(6))) == [COUNT] * 6


def test_a_prompt_beyond_the_context_is_refused(client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-run", messages=long)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-run", messages=COUNTING, max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded" and "1024 tokens" in caught.value.message


def test_the_async_client_works_too(url: str) -> None:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            stream: Any = await client.chat.completions.create(
                model="tiny-run", messages=COUNTING, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == COUNT


@pytest.mark.slow
def test_the_default_model_answers_and_repeats_itself(real_model_folder: Path) -> None:
    loaded = load(resolve(str(real_model_folder)), "float32", "cpu")
    template = build_template(loaded)
    ask: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = template.prompt_ids([Message("user", ask[0]["content"])])
    (expected,) = generate(loaded, [prompt], max_new_tokens=24, stop_ids=template.stop_ids)
    with running([ServedModel("real", loaded, template)]) as url, ThreadPoolExecutor(8) as pool:
        client = OpenAI(base_url=url, api_key="none", max_retries=0)

        def once(_: int) -> str:
            return str(_text(client.chat.completions.create(model="real", messages=ask, temperature=0, max_tokens=24)))

        assert set(pool.map(once, range(8))) == {template.parse_reply(expected.ids).content}
    assert "Paris" in template.parse_reply(expected.ids).content


def _write_run(folder: Path, tiny: Tiny) -> None:
    """What training leaves in a run's folder."""
    data = {"train": str(folder / "train.jsonl")}
    adapter = {"type": "lora", "rank": 64, "alpha": 64.0}
    recipe = build(Recipe, {"model": {"name": str(tiny.loaded.files.folder)}, "data": data, "adapter": adapter})
    save_artifact(folder / "adapter", recipe, tiny.loaded, tiny.injected, tiny.template)


@pytest.mark.slow
def test_luthier_serve_answers_and_ctrl_c_lets_answers_finish(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    _write_run(folder, tiny)
    command = [
        sys.executable,
        "-m",
        "luthier.cli.main",
        "serve",
        str(folder),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "'demo', 'base'" in line, line
        client = OpenAI(base_url=line.split(" at ")[1].split(" ")[0], api_key="none", max_retries=8)
        assert _text(client.chat.completions.create(model="demo", messages=SCRIPTS, temperature=0)) == UNICODE
        bias = {"2": -100}
        stream = client.chat.completions.create(
            model="base", messages=SCRIPTS, max_tokens=400, stream=True, logit_bias=bias
        )
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        assert list(stream)[-1].choices[0].finish_reason == "length", "ctrl-C cut an answer short"
        assert process.wait(timeout=20) == 0
        rest = process.stderr.read()
        assert "Traceback" not in rest and UNICODE not in rest and "route=/v1/chat/completions status=200" in rest
    finally:
        process.kill()
        process.communicate()


def test_luthier_serve_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli.main import main

    for extra, message in (
        ([], "no trained model here"),
        (["--host", "0.0.0.0"], "--api-key-env"),
        (["--api-key-env", "LUTHIER_TEST_ABSENT"], "is not set"),
        (["--rows", "2"], "--rows 2"),
        (["--deadline", "nan"], "--deadline nan"),
    ):
        assert main(["serve", str(tmp_path / "nothing"), "--port", "0", *extra]) == 2
        assert message in capsys.readouterr().err
