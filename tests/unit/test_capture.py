"""`luthier capture`: what passes, what is kept, what is taken out, and for how long."""

import datetime
import json
import urllib.request
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.capturing import YES, capturing, rows_in
from tests.endpoint import Reply, completion, serving

from luthier.capture import open_redactor
from luthier.capture.proxy import Consent, require_url
from luthier.capture.record import is_sampled
from luthier.capture.rows import digest_of
from luthier.capture.store import DayFiles, FullError, Retention
from luthier.data.checks._patterns import personal, secrets
from luthier.data.formats.base import read_examples
from luthier.errors import ServeError
from luthier.examples import Conversation
from luthier.serve.limits import Access

KEY = "sk-Proj4Abc9Def2Ghi7Jkl5Mno8Pqr1Stu6Vwx3"
PLANTED = {
    "EMAIL": ["erika.mustermann@firma.de", "bob@example.com"],
    "PHONE": ["+49 30 901820", "+44 20 7946 0958", "(212) 555-0123"],
    "IBAN": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
    "CARD": ["4111 1111 1111 1111", "378282246310005"],
    "IP": ["203.0.113.77", "10.0.0.12", "2001:db8::ff00:42:8329"],
    "SECRET": [KEY, "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "AKIAIOSFODNN7EXAMPLE"],
}
STREAM = "text/event-stream"
DAY = datetime.date(2026, 11, 27)


def ask(url: str, text: str, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30, trust_env=False)


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "model": "m", "choices": [choice]}).encode()


def stream(*chunks: bytes, drips: int = 0) -> Reply:
    kind = (("Content-Type", STREAM),)
    return Reply(b"".join(one + b"\n\n" for one in (*chunks, b"data: [DONE]")), headers=kind, drips=drips)


@pytest.mark.parametrize("kind", PLANTED)
def test_each_kind_is_replaced_wherever_it_stands(kind: str) -> None:
    for value in PLANTED[kind]:
        arguments = json.dumps({"to": value, "\u00e9": [value]})
        row = [{"content": f"Take {value}, please. {value}!"}, {"tool_calls": [{"function": {"arguments": arguments}}]}]
        cleaned, counts = open_redactor([]).row(row)
        text = json.dumps(cleaned, ensure_ascii=False)
        assert value not in text and counts == {kind: 4}, cleaned
        assert cleaned[0]["content"] == f"Take [{kind}_1], please. [{kind}_1]!"
        assert json.loads(cleaned[1]["tool_calls"][0]["function"]["arguments"]) == {
            "to": f"[{kind}_1]",
            "\u00e9": [f"[{kind}_1]"],
        }


def test_what_is_no_personal_data_stays() -> None:
    text = "Order 4111111111111112 of 2026-11-27, 1,234,567 pieces at 12:30; see std::vector, C::f and page 1234."
    assert open_redactor([]).row(text) == (text, {})


def test_numbers_without_a_country_code_need_the_region() -> None:
    text = "Ruf 030 901820 an."
    assert open_redactor([]).row(text)[0] == text
    assert open_redactor(["DE"]).row(text)[0] == "Ruf [PHONE_1] an."
    with pytest.raises(ServeError, match="--region XX"):
        open_redactor(["XX"])


def test_a_private_key_goes_as_a_whole() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n4f5wg5l2hKsTeNem\n-----END RSA PRIVATE KEY-----"
    assert open_redactor([]).row(f"a {key} b")[0] == "a [SECRET_1] b"
    assert open_redactor([]).row(f"a {key[:60]}")[0] == "a [SECRET_1]"


def test_same_value_same_placeholder_and_no_other() -> None:
    cleaned, _ = open_redactor([]).row(["x@a.de and y@a.de", "x@a.de"])
    assert cleaned == ["[EMAIL_1] and [EMAIL_2]", "[EMAIL_1]"]


def test_only_consented_chats_become_rows_and_they_are_a_training_file(tmp_path: Path) -> None:
    planted = " ".join(value for values in PLANTED.values() for value in values)
    with serving() as heard, capturing(heard.url, tmp_path / "out") as (url, recorder):
        plain = ask(url, "SECRET of one who did not agree")
        refused = ask(url, "SECRET of one who refused", {"X-Luthier-Consent": "no"})
        kept = ask(url, f"Write to {planted}", {**YES, "Authorization": f"Bearer {KEY}", "X-Request-Id": "r1"})
    assert (plain.json() == completion("SECRET of one who did not agree").body and False) or plain.status_code == 200
    assert refused.status_code == 200 and kept.json()["choices"][0]["message"]["content"] == f"Write to {planted}"
    assert "x-luthier-consent" not in heard.headers[2] and heard.headers[2]["authorization"] == f"Bearer {KEY}"
    assert recorder.counts == {"no_consent": 2, "recorded": 1}
    (path,) = (tmp_path / "out").glob("capture-*.jsonl")
    text = path.read_text("utf-8")
    assert "did not agree" not in text and "refused" not in text and "Bearer" not in text
    assert not any(value in text for values in PLANTED.values() for value in values)
    (row,) = read_examples(path)
    assert isinstance(row, Conversation) and row.completion is not None
    assert row.extra["request"] == digest_of("r1") == kept.headers["x-luthier-capture-id"]
    assert not personal(row.completion.content) and not secrets(row.completion.content)
    assert path.stat().st_mode & 0o077 == 0
    assert 'outcome="recorded"} 1.0' in recorder.metrics().decode()


def test_earlier_answers_are_not_trained_on_again(tmp_path: Path) -> None:
    with serving() as heard, capturing(heard.url, tmp_path) as (url, _):
        before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "audio": None}]
        ask(url, "", YES, messages=[*before, {"role": "user", "content": "c"}])
    assert [m.get("weight") for m in rows_in(tmp_path)[0]["messages"]] == [None, 0, None, None]


def test_a_stream_passes_while_it_comes_and_becomes_one_message(tmp_path: Path) -> None:
    call = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "mail", "arguments": ""}}]
    parts = [
        chunk({"role": "assistant", "content": "I "}),
        chunk({"content": "write."}),
        chunk({"tool_calls": call}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"to": "bob@'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": 'firma.de"}'}}]}),
        chunk({}, "tool_calls"),
    ]
    with serving(lambda _body, _n: stream(*parts, drips=5)) as heard, capturing(heard.url, tmp_path) as (url, _):
        client = openai.OpenAI(base_url=url, api_key=KEY, default_headers=YES)
        tools: Any = [{"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}]
        asked: Any = [{"role": "user", "content": "Write to bob@firma.de"}]
        came = list(client.chat.completions.create(model="m", messages=asked, tools=tools, stream=True))
    assert [c.choices[0].delta.content for c in came[:2]] == ["I ", "write."]
    (row,) = rows_in(tmp_path)
    assert row["messages"][0]["content"] == "Write to [EMAIL_1]" and row["tools"] == tools
    reply = row["messages"][1]
    assert reply["content"] == "I write." and reply["tool_calls"][0]["id"] == "c1"
    assert reply["tool_calls"][0]["function"] == {"name": "mail", "arguments": '{"to": "[EMAIL_1]"}'}
    (example,) = read_examples(next(tmp_path.glob("*.jsonl")))
    assert isinstance(example, Conversation) and example.completion is not None
    assert dict(example.completion.tool_calls[0].arguments) == {"to": "[EMAIL_1]"}


def test_the_first_chunk_arrives_before_the_last_is_written(tmp_path: Path) -> None:
    def slow(_body: dict[str, Any], _number: int) -> Reply:
        return stream(chunk({"content": "a" * 50}), chunk({"content": "b" * 50}, "stop"), drips=8)

    with serving(slow) as heard, capturing(heard.url, tmp_path) as (url, _):
        request = urllib.request.Request(
            f"{url}/chat/completions",
            data=b'{"messages": [{"role": "user", "content": "x"}]}',
            headers={"content-type": "application/json", **YES},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            first = answer.read1(4096)
            assert first and b"[DONE]" not in first
            assert b"[DONE]" in answer.read()
    assert len(rows_in(tmp_path)) == 1


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply(b'{"error": {"message": "no"}}', 429, (("Retry-After", "7"),)), "upstream_error"),
        (Reply(b"no json"), "no_json"),
        (completion(None), "empty"),
        (completion("x", refusal="I will not"), "refused"),
        (stream(chunk({"content": "half"}), chunk({}, "length")), "cut_off"),
        (Reply(chunk({"content": "half"}) + b"\n\n", headers=(("Content-Type", STREAM),)), "cut_off"),
        (Reply(b'{"choices": [{"message": 1, "finish_reason": "stop"}]}'), "no_chat"),
        (stream(b'data: {"choices": [{"delta": []}], "object": 1}', chunk({"content": [1]}, "stop")), "failed"),
        (completion("x" * (9 * 1024 * 1024)), "too_large"),
    ],
)
def test_what_makes_no_row_passes_all_the_same(reply: Reply, outcome: str, tmp_path: Path) -> None:
    with serving(lambda _body, _n: reply) as heard, capturing(heard.url, tmp_path) as (url, recorder):
        answer = ask(url, "Hello", YES)
    assert (answer.status_code, answer.content) == (reply.status, reply.body)
    assert all(answer.headers[name] == value for name, value in reply.headers)
    assert recorder.counts == {outcome: 1} and not rows_in(tmp_path)


def test_a_client_that_hangs_up_after_the_last_event_has_read_all(tmp_path: Path) -> None:
    """As OpenAI's client does, before the end of the connection's own encoding."""
    held = Reply(
        stream(chunk({"content": "all"}, "stop")).body + b"\n" * 2000, headers=(("Content-Type", STREAM),), drips=1
    )
    with serving(lambda _body, _n: held) as heard, capturing(heard.url, tmp_path) as (url, recorder):
        body = {"messages": [{"role": "user", "content": "x"}]}
        with httpx2.stream("POST", f"{url}/chat/completions", json=body, headers=YES, trust_env=False) as answer:
            text = b""
            for part in answer.iter_raw():
                text += part
                if text.rstrip().endswith(b"[DONE]"):
                    break
    assert recorder.counts == {"recorded": 1}


def test_a_client_that_leaves_leaves_no_row(tmp_path: Path) -> None:
    long = stream(*[chunk({"content": "a" * 100_000})] * 20, chunk({}, "stop"), drips=20)
    with serving(lambda _body, _n: long) as heard, capturing(heard.url, tmp_path) as (url, recorder):
        body = {"messages": [{"role": "user", "content": "x"}]}
        with httpx2.stream("POST", f"{url}/chat/completions", json=body, headers=YES, trust_env=False) as answer:
            next(answer.iter_raw())
    assert recorder.counts == {"client_gone": 1} and not rows_in(tmp_path)


def test_pictures_pass_and_are_not_kept(tmp_path: Path) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with serving(lambda _body, _n: completion("a cat")) as heard, capturing(heard.url, tmp_path) as (url, recorder):
        assert ask(url, "", YES, messages=[{"role": "user", "content": picture}]).status_code == 200
    assert recorder.counts == {"not_trainable": 1}


def test_an_endpoint_that_is_down_is_a_502_in_openai_s_shape(tmp_path: Path) -> None:
    with capturing("http://127.0.0.1:9/v1", tmp_path) as (url, recorder):
        answer = ask(url, "Hello", YES)
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "upstream_unreachable"
    assert recorder.counts == {"upstream_error": 1}


def test_who_may_not_use_the_proxy_is_not_counted(tmp_path: Path) -> None:
    with serving() as heard, capturing(heard.url, tmp_path, access=Access(key="k" * 20)) as (url, recorder):
        assert ask(url, "Hello", YES).status_code == 401
        assert ask(url, "Hello").status_code == 401
    assert not recorder.counts and not heard.bodies


def test_a_key_may_stand_for_consent_and_a_header_against_it(tmp_path: Path) -> None:
    from hashlib import sha256

    consent = Consent(keys=frozenset({sha256(b"key-of-a-friend").digest()}))
    friend = {"Authorization": "Bearer key-of-a-friend"}
    with serving() as heard, capturing(heard.url, tmp_path, consent) as (url, recorder):
        ask(url, "one", friend)
        ask(url, "two", {"Authorization": "Bearer another"})
        ask(url, "three", {**friend, "X-Luthier-Consent": "no"})
    assert [row["messages"][0]["content"] for row in rows_in(tmp_path)] == ["one"]
    assert recorder.counts == {"recorded": 1, "no_consent": 2}


def test_the_share_is_a_pure_function_of_the_request_id(tmp_path: Path) -> None:
    ids = [f"request-{n}" for n in range(40)]
    wanted = [one for one in ids if is_sampled(one, 0.3)]
    assert 0 < len(wanted) < 40 and all(is_sampled(one, 0.4) for one in wanted)
    assert sum(is_sampled(f"r{n}", 0.3) for n in range(10_000)) == pytest.approx(3000, abs=200)
    with serving() as heard, capturing(heard.url, tmp_path, Consent(0.3)) as (url, recorder):
        for one in ids:
            ask(url, one, {**YES, "X-Request-Id": one})
    assert [row["messages"][0]["content"] for row in rows_in(tmp_path)] == wanted
    assert recorder.counts["not_sampled"] == 40 - len(wanted)


def test_a_disk_that_refuses_breaks_no_traffic_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving() as heard, capturing(heard.url, tmp_path / "out") as (url, recorder):
        today = datetime.datetime.now(datetime.UTC).date()
        (tmp_path / f"out/capture-{today}.jsonl").mkdir()  # nothing can be written there
        assert ask(url, "Hello", YES).status_code == 200
    assert recorder.counts == {"failed": 1} and "not recorded: cannot be written" in caplog.text


def test_half_a_line_is_cut_off_and_whole_ones_stay(tmp_path: Path) -> None:
    files = DayFiles(tmp_path, Retention(3, 10**6))
    files.append([b'{"a": 1}\n'], DAY)
    with files.path_of(DAY).open("ab") as file:
        file.write(b'{"half": ' + b"x" * 100_000)
    files.append([b'{"b": 2}\n'], DAY)
    assert files.path_of(DAY).read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_old_days_and_the_oldest_beyond_the_bytes_are_deleted(tmp_path: Path) -> None:
    files = DayFiles(tmp_path, Retention(3, 100))
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "capture-2020-02-31.jsonl").write_text("nor this, of a day that never was")
    for ago in (9, 3, 2, 1):
        files.path_of(DAY - datetime.timedelta(days=ago)).write_bytes(b"x" * 29 + b"\n")
    files.append([b"y" * 29 + b"\n"], DAY)
    assert [(DAY - day).days for day, _ in files.files()] == [2, 1, 0]
    with pytest.raises(FullError):
        files.append([b"z" * 80 + b"\n"], DAY)
    assert [(DAY - day).days for day, _ in files.files()] == [0] and (tmp_path / "notes.txt").exists()
    files.tidy(DAY + datetime.timedelta(days=4))
    assert files.files() == [] and (tmp_path / "capture-2020-02-31.jsonl").exists()


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    files = DayFiles(tmp_path, Retention(3, 100))
    with pytest.raises(ServeError, match="another `luthier capture`"):
        DayFiles(tmp_path, Retention(3, 100))
    files.close()
    DayFiles(tmp_path, Retention(3, 100)).close()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:65536/v1",
        "127.0.0.1:8000/v1",
        "ftp://example.com/v1",
        "http://a:b@example.com/v1",
        "",
        "http://example.com/v1?a=1",
    ],
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(ServeError, match="--to"):
        require_url(url)
