"""A GGUF file, computed by llama.cpp in this process (the wheel `xllamacpp`), behind the routes of our own models.

llama.cpp renders the chat by the template in the file, cuts it into tokens and samples; stop texts, `n`, the queue and
the shapes of answers are ours. It listens on a loopback port of its own, with a key that is made here. Refused is what
it would do otherwise than our engine: tools (the tokens of a call are lost), schemas (its grammars leave out a part of
them without a word), penalties (it counts the prompt, too), and texts that it would read as control tokens: in
messages all of them, in plain texts those that the file calls user-defined.
"""

import json
import logging
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np

from luthier.data.chat_jinja import message_dict
from luthier.data.control_tokens import is_control
from luthier.data.template_probes import find_capabilities
from luthier.errors import ModelError, TemplateError
from luthier.examples import Message
from luthier.files import sha256_of
from luthier.serve.api_error import ApiError, deadline_passed, internal, too_many, unsupported
from luthier.serve.chat import ChatRequest
from luthier.serve.classification import ClassifyRequest
from luthier.serve.completion import CompletionRequest
from luthier.serve.decision import DecisionRequest
from luthier.serve.failures import place_of
from luthier.serve.limits import Limits
from luthier.serve.reward import ScoreRequest
from luthier.serve.served import Asked
from luthier.serve.text import StopText
from luthier.serve.work import Delta, Done, Event, Failed, Sampling, StopReason, TokenScore, Work

log = logging.getLogger("luthier.serve")
T = TypeVar("T")
USER_DEFINED = 4
"""Type of an added token that is not special. llama.cpp reads its text as the token in every text."""
CONTROL = (2, 3, USER_DEFINED)
"""Types of tokens in a GGUF file that only a template may write: unknown, control, user-defined."""
GUESSED = re.compile(r"<\|[^|<>]+\|>|<(end|start)_of_turn>|</?s>|<eos>|<bos>|<EOT>")
"""What llama.cpp takes for a control token by its spelling, whatever the file says."""
RANDOM_SEED = 2**32 - 1
"""What llama.cpp takes for no seed."""
NEUTRAL = {"samplers": ["temperature", "top_p"], "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}
"""Without these llama.cpp samples from the 40 likeliest tokens, and from none below a twentieth of the likeliest."""


class GgufTemplate:
    """The template and the tokenizer in the file, as llama.cpp reads them."""

    calls: None = None
    """No tools are offered."""

    def __init__(
        self, llama: "Llama", source: str | None, controls: frozenset[str], always: frozenset[str] = frozenset()
    ) -> None:
        """`controls`: texts that are read as tokens in a chat; `always`: those of them that are in plain text, too."""
        self._llama, self._has_source = llama, source is not None
        self._developer_as_system = "developer" not in (source or "")
        self._controls, self._always = (sorted(found, key=len, reverse=True) for found in (controls, always))
        self.has_system = source is not None and "system" in find_capabilities(self._render, True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The chat, ended by the generation prompt.

        Raises:
            TemplateError: the file has no template, or it refuses a message.
        """
        if not self._has_source:  # llama.cpp would take ChatML
            raise TemplateError("the file has no chat template; /v1/completions continues a text")
        seen = [message_dict(message, True, self._developer_as_system) for message in messages]
        try:
            text = self._render(seen, None, True)
        except ValueError as error:
            raise TemplateError(str(error)) from None
        return self._tokens(text, True)

    def text_ids(self, text: str) -> list[int]:
        """Raw text, in which control tokens are ordinary text; those of `always_in` were refused."""
        return self._tokens(text, False)

    def parse_reply(self, ids: Sequence[int]) -> Message:
        """Never asked for: no tools are offered."""
        raise TemplateError("replies of a GGUF file are text")

    def control_in(self, text: str) -> str | None:
        """A control token whose text this holds."""
        return next((control for control in self._controls if control in text), None)

    def always_in(self, text: str) -> str | None:
        """One that would be read as the token outside of chats, too."""
        return next((control for control in self._always if control in text), None)

    def _render(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        asked: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        found = self._llama.post("/apply-template", asked | ({"tools": tools} if tools else {}))
        return str(found["prompt"])

    def _tokens(self, text: str, parse_special: bool) -> list[int]:
        asked = {"content": text, "add_special": True, "parse_special": parse_special}
        found = self._llama.post("/tokenize", asked)["tokens"]
        return [int(one) for one in found]


@dataclass(frozen=True, eq=False)
class GgufModel:
    """The file under a name."""

    name: str
    template: GgufTemplate
    max_tokens: int
    vocabulary: int
    fingerprint: str
    created: int

    def require(self, asked: Asked) -> None:
        """Refuse what llama.cpp would do otherwise than our own engine.

        Raises:
            ApiError: 400 that names it.
        """
        if isinstance(asked, DecisionRequest):
            raise unsupported("model", "decisions are scored by our own engine, which this GGUF file is not loaded in")
        if isinstance(asked, ScoreRequest):
            raise unsupported("model", "replies are scored by a reward model's head, which no GGUF file holds")
        if isinstance(asked, ClassifyRequest):
            raise unsupported("model", "texts are classified by a head, which no GGUF file holds")
        sampling = asked.common.sampling
        penalties = {"presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty}
        for name, value in penalties.items():
            if value:
                raise unsupported(name, "llama.cpp counts the tokens of the prompt, too")
        if isinstance(asked, ChatRequest):
            self._require_chat(asked)
        else:
            self._require_completion(asked)

    def _require_completion(self, asked: CompletionRequest) -> None:
        for prompt in asked.prompts:
            control = self.template.always_in(prompt) if isinstance(prompt, str) else None
            if control is not None:
                raise _read_as_token("prompt", control)

    def _require_chat(self, asked: ChatRequest) -> None:
        if asked.tools:
            raise unsupported("tools", "calls cannot be read from what llama.cpp answers")
        if asked.schema is not None:
            raise unsupported("response_format", "llama.cpp's grammars leave out a part of a JSON schema")
        for index, message in enumerate(asked.messages):
            at = f"messages[{index}]"
            if message.role == "tool" or message.tool_calls:
                raise unsupported(at, "tools cannot be part of a chat with a GGUF file")
            if message.role in ("system", "developer") and message.content.strip() and not self.template.has_system:
                raise unsupported(at, f"the chat template of {self.name!r} has no place for system messages")
            control = self.template.control_in(f"{message.content}\0{message.name or ''}")
            if control is not None:
                raise _read_as_token(at, control)


def _read_as_token(at: str, control: str) -> ApiError:
    return unsupported(at, f"it holds {control!r}, which llama.cpp would read as the control token itself")


class Llama:
    """llama.cpp's own HTTP server inside this process."""

    def __init__(self, path: Path, rows: int, cache_tokens: int, threads: int) -> None:
        """Load the file.

        Raises:
            ModelError: the package is not installed, or llama.cpp cannot open the file.
        """
        try:
            import xllamacpp
        except ImportError:
            raise ModelError("a GGUF file is served by the package xllamacpp; pip install 'luthier[export]'") from None
        if not os.access(path, os.R_OK):
            raise ModelError(f"{path}: there is no such file, or it cannot be read")
        key = secrets.token_urlsafe(32)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel, settings.n_ctx = rows, cache_tokens
        settings.kv_unified, settings.fit_params, settings.ctx_shift = True, False, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.api_keys, settings.use_jinja, settings.prefill_assistant = [key], True, False
        settings.ui, settings.endpoint_slots, settings.verbosity = False, False, -1
        try:
            self._server = xllamacpp.Server(settings)  # it lives as long as this object
        except RuntimeError:
            raise ModelError(
                f"{path}: llama.cpp cannot load it: damaged, too large, or not known to this version"
            ) from None
        self.client = httpx2.Client(
            base_url=self._server.listening_address,
            headers={"authorization": f"Bearer {key}"},
            timeout=None,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None),
        )

    def post(self, path: str, values: Mapping[str, Any]) -> Any:
        """What it answers.

        Raises:
            ValueError: what it refuses the request with.
        """
        return _checked(self.client.post(path, json=values)).json()

    def get(self, path: str) -> Any:
        """What it answers."""
        return _checked(self.client.get(path)).json()


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if answer.status_code != 200:
        answer.read()
        raise ValueError(f"llama.cpp: {answer.json()['error']['message'][:300]}")
    return answer


class LlamaWorker:
    """Completions of one GGUF file. Each is a thread that waits for llama.cpp, which computes them together."""

    def __init__(self, path: Path, limits: Limits, capacity: int, threads: int) -> None:
        """Load the file; it is called by its name without the ending.

        Raises:
            ModelError: it cannot be loaded.
        """
        from gguf import GGUFReader

        self._llama = Llama(path, limits.rows, limits.cache_tokens, threads)
        fields = GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents() if "tokenizer.ggml.token_type" in fields else []
        controls, always = _controls(tokens, types)
        source = fields.get("tokenizer.chat_template")
        template = GgufTemplate(self._llama, None if source is None else str(source.contents()), controls, always)
        told = self._llama.get("/v1/models")["data"][0]["meta"]
        room = int(told["n_ctx"])
        self._served = GgufModel(
            name=path.stem,
            template=template,
            max_tokens=min(room, int(told["n_ctx_train"])),
            vocabulary=int(told["n_vocab"]),
            fingerprint=f"fp_{sha256_of(path)[:12]}",
            created=int(path.stat().st_mtime),
        )
        self._room, self._capacity = Room(room), capacity
        self._pool = ThreadPoolExecutor(limits.rows, thread_name_prefix="luthier-llama")
        self._open, self._closed, self._lock = 0, False, threading.Lock()

    def start(self) -> None:
        """llama.cpp works since it was loaded."""

    def stop(self) -> None:
        """Take nothing more; what waits fails, and what is written is given up between two tokens."""
        with self._lock:
            self._closed = True
        self._pool.shutdown()  # those in its queue begin, and see that it is closed
        self._llama.client.close()

    @property
    def healthy(self) -> bool:
        """Whether requests are worked on."""
        return not self._closed

    @property
    def models(self) -> Mapping[str, GgufModel]:
        """The one there is."""
        return {self._served.name: self._served}

    def submit(self, work: Work, deliver: Callable[[Event], None]) -> "_Request":
        """Queue a piece of work.

        Raises:
            ApiError: 429 if the queue is full, 503 if the server is closing.
        """
        request = _Request(work, deliver, time.monotonic() + work.deadline_seconds)
        with self._lock:
            if self._closed:
                raise _closing()
            if self._open + work.n > self._capacity:
                raise too_many()
            self._open += work.n
            for index in range(work.n):
                self._pool.submit(self._write, request, index)
        return request

    def add(self, served: Any) -> "Future[None]":
        """Nothing can be added to a file."""
        raise _alone()

    def remove(self, name: str) -> "Future[None]":
        """The file stays."""
        raise _alone()

    def compute(self, call: Callable[[], T]) -> "Future[T]":
        """Nothing but completions is computed."""
        raise _alone()

    def _write(self, request: "_Request", index: int) -> None:
        work = request.work
        try:
            with self._room.taken(len(work.ids) + work.max_new_tokens, partial(self._check, request)):
                self._follow(request, index)
        except _GivenUp:
            pass
        except ApiError as error:
            request.send(Failed(error))
        except httpx2.TimeoutException:  # its longest wait is what was left of the request's time
            request.send(Failed(deadline_passed(work.deadline_seconds)))
        except BaseException as error:  # whatever it is: nobody may wait for ever. Its message may quote the prompt
            log.error("model=%s failed: %s in %s", work.model, type(error).__name__, place_of(error))
            request.send(Failed(internal()))
            raise
        finally:
            with self._lock:
                self._open -= 1

    def _check(self, request: "_Request") -> None:
        """Raise _GivenUp when nobody waits any more, and an ApiError when the time is up or the server closes."""
        if request.cancelled:
            raise _GivenUp
        if self._closed:
            raise _closing()
        if request.seconds_left <= 0:
            raise deadline_passed(request.work.deadline_seconds)

    def _follow(self, request: "_Request", index: int) -> None:
        """Send what llama.cpp writes, up to a stop text."""
        work, stop = request.work, StopText(request.work.stop)
        ids: list[int] = []
        scored = work.sampling.top_logprobs
        asked, most = _asked(work, index), max(request.seconds_left, 0.001)
        with self._llama.client.stream("POST", "/completion", json=asked, timeout=most) as answer:
            for event in _events(_checked(answer)):
                self._check(request)
                ids += event["tokens"]
                tokens = () if scored is None else tuple(_scores(event, scored))
                text = stop.add(event["content"])
                over = bool(event["stop"])
                if over and not stop.found:
                    text += stop.flush()
                if text or tokens:
                    request.send(Delta(index, text, tokens))
                if over or stop.found:
                    reason: StopReason = "length" if event.get("stop_type") == "limit" and not stop.found else "stop"
                    request.send(Done(index, reason, tuple(ids), int(event["tokens_predicted"]), stop.found))
                    return
        raise ValueError("llama.cpp ended without an end")


def _controls(tokens: Sequence[str], types: Sequence[int]) -> tuple[frozenset[str], frozenset[str]]:
    """Texts that llama.cpp reads as tokens in a chat, and those of them that it reads so in plain text, too."""
    kinds = {token: kind for token, kind in zip(tokens, types, strict=False) if kind in CONTROL}
    marks = {token for token, kind in kinds.items() if is_control(token, kind != USER_DEFINED)} - {""}
    guessed = {token for token in tokens if GUESSED.fullmatch(token)}
    return frozenset(marks | guessed), frozenset(token for token in marks if kinds[token] == USER_DEFINED)


def _asked(work: Work, index: int) -> dict[str, Any]:
    sampling = work.sampling
    return {
        "prompt": list(work.ids),
        "n_predict": work.max_new_tokens,
        "stream": True,
        "return_tokens": True,
        # what is found in memory differs in the last bits from what is computed, so a seed would not repeat its draws
        "cache_prompt": sampling.seed is None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": _seed(sampling, index),
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        # 0 would tell no log-probability at all
        "n_probs": 0 if sampling.top_logprobs is None else max(1, sampling.top_logprobs),
        **NEUTRAL,
    }


def _seed(sampling: Sampling, index: int) -> int:
    """llama.cpp has 32 bits for it; each completion has a stream of its own."""
    if sampling.seed is None:
        return RANDOM_SEED
    return int(np.random.SeedSequence((sampling.seed % 2**64, index)).generate_state(1)[0]) % RANDOM_SEED


def _events(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise ValueError("llama.cpp failed")
            yield event


def _scores(event: Mapping[str, Any], top: int) -> Iterator[TokenScore]:
    for token in event.get("completion_probabilities", ()):
        rows = [(one["token"], bytes(one["bytes"]), float(one["logprob"])) for one in token["top_logprobs"][:top]]
        yield TokenScore(token["token"], bytes(token["bytes"]), float(token["logprob"]), tuple(rows))


class _GivenUp(Exception):
    """Nobody waits for the request any more."""


@dataclass(eq=False)
class _Request:
    """One piece of work; `cancelled` may be set by any thread."""

    work: Work
    deliver: Callable[[Event], None]
    deadline: float
    cancelled: bool = False

    def cancel(self) -> None:
        """Give the request up; nothing is delivered any more."""
        self.cancelled = True

    def send(self, event: Event) -> None:
        """Deliver an event unless nobody waits for it."""
        if not self.cancelled:
            self.deliver(event)
        if isinstance(event, Failed):  # the request as a whole
            self.cancelled = True

    @property
    def seconds_left(self) -> float:
        """Of its time."""
        return self.deadline - time.monotonic()


class Room:
    """Keys and values of all completions lie in one cache; one that does not fit at its longest waits, and those that
    came after it wait behind it, or a long one would never have its turn."""

    def __init__(self, tokens: int) -> None:
        self._free = tokens
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, tokens: int, check: Callable[[], None]) -> Iterator[None]:
        """A part of the room, held while open; `check` is called before, and again and again while there is none."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                check()
                while self._line[0] is not ticket or tokens > self._free:
                    self._changed.wait(0.1)
                    check()
                self._free -= tokens
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += tokens
                self._changed.notify_all()


def _closing() -> ApiError:
    return ApiError("The server is shutting down.", status=503)


def _alone() -> ApiError:
    return ApiError("A GGUF file is served alone.", status=409, code="unusable")
