"""A model behind any OpenAI-compatible endpoint, in the same table: what a hosted model would do, and at what price.

It is asked plainly: the row's own prompt, what `zero_shot` knows of the task added to the system message, and with
`shots` the most similar training rows before the question. Rows leave this machine, so it is said beforehand which host
gets how many, and nothing is sent while `LUTHIER_OFFLINE` or `HF_HUB_OFFLINE` is set, unless the host is this machine.

Answers are kept in the run's folder (`responses/`). The spend limit counts everything that was ever paid there to this
endpoint for this model, and holds before a request is sent: its price is taken to be at most that of a token for each
byte sent, 512 more for what a server adds, and the longest answer.
"""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from luthier.config import canonical_hash, nested
from luthier.data.replies import parse_reply_text
from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.systems._endpoint import (
    Endpoint,
    Patience,
    Stopped,
    is_this_machine,
    key_from,
    require_base_url,
    require_env_name,
    wire_messages,
)
from luthier.evaluation.systems._prompts import suggested
from luthier.evaluation.systems._responses import Prices, Purse, Responses, Usage
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    message_text,
    require_questions,
    with_answer_room,
    with_instruction,
)
from luthier.evaluation.systems.few_shot import Retriever, with_examples
from luthier.examples import Conversation, Example, Message, ToolCall
from luthier.models.catalog import offline_switch

SERVER_TOKENS = 512
"""What a server may put around a prompt beside what it was sent: its own system message, the words around tools."""


def _base_url(url: str) -> str:
    with nested():
        return require_base_url(url)


def _env_name(name: str) -> str:
    with nested():
        return require_env_name(name)


class Remote(System):
    """A model that is asked over HTTP."""

    is_model: ClassVar[bool] = False

    base_url: Annotated[str, AfterValidator(_base_url)]
    """Where the API is, such as `https://api.example.com/v1`; `/chat/completions` is added."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api_key_env: Annotated[str, AfterValidator(_env_name)] | None = None
    """Name of the environment variable that holds the key, never the key; absent: no key is sent."""
    instruction: str = ""
    """Added to the system message."""
    suggest: bool = True
    """Whether the fullest addition that `zero_shot` tries (form or labels, from training rows and schema) is added."""
    shots: int = Field(0, ge=0)
    """Solved training rows before each question, the most similar ones; they are sent, too."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the request calls the longest answer; some newer models know only the second."""
    send_temperature: bool = True
    """Whether `temperature = 0` is sent; models that think first refuse it."""
    concurrency: int = Field(4, ge=1, le=256)
    """Requests under way at once."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Longest time for one attempt."""
    retries: int = Field(5, ge=0)
    """Further attempts where the server is busy, fails, or breaks off."""
    first_wait_seconds: float = Field(1.0, ge=0)
    """Before the first of them; each next one waits twice as long, or as long as the server asks."""
    input_usd_per_million_tokens: float | None = Field(None, ge=0)
    """What it asks for a million prompt tokens; absent: the report uses the prices in `cost`."""
    output_usd_per_million_tokens: float | None = Field(None, ge=0)
    """What it asks for a million completion tokens."""
    spend_limit_usd: float | None = Field(None, gt=0)
    """Most US dollars that this run may ever pay for answers of this model there; needs both prices."""

    @model_validator(mode="after")
    def _require_prices(self) -> "Remote":
        prices = (self.input_usd_per_million_tokens, self.output_usd_per_million_tokens)
        with nested():
            if None in prices and prices != (None, None):
                raise RecipeError("input_usd_per_million_tokens and output_usd_per_million_tokens: give both or none")
            if self.spend_limit_usd is not None and None in prices:
                raise RecipeError(
                    "spend_limit_usd can only hold where input_usd_per_million_tokens and "
                    "output_usd_per_million_tokens are given"
                )
        return self

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The endpoint's answers; `details` tells what was sent, kept, and paid.

        Raises:
            EvaluationError: the endpoint refuses or goes on failing, the key is not there, the spend limit would be
                passed, the network is switched off, or a row is no question. What was answered is kept.
            StorageError: an answer cannot be kept.
        """
        questions = require_questions(rows, "remote")
        asked = list(self._requests(questions, context))
        kept = Responses(None if context.responses is None else context.responses / self._file_name)
        missing = {request.key: request for request in asked if kept.get(request.key) is None}
        asker = _Asker(self, kept, context)
        if missing:
            self._announce(missing, asked, context)
            asker.ask_all(missing)
        context.on_progress("remote", len(rows), len(rows))
        answered = [kept.get(request.key) or {} for request in asked]
        has_usage = all(one["usage"] for one in answered)
        answers = [_answer(r, a, has_usage) for r, a in zip(asked, answered, strict=True)]
        seconds = sum(one["seconds"] for one in answered) / min(self.concurrency, max(len(answered), 1))
        counted = self._counted(asked, kept, asker.attempts, len(missing))
        details = {**self._described(asked, context), **counted}
        return Answers(answers, seconds, details)

    @property
    def prices(self) -> Prices | None:
        """Both prices; None: they are not known."""
        given, written = self.input_usd_per_million_tokens, self.output_usd_per_million_tokens
        return None if given is None or written is None else Prices(given, written)

    @property
    def _file_name(self) -> str:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{urlsplit(self.base_url).netloc}-{self.model}")[:80]
        return f"{name}-{canonical_hash([self.base_url, self.model])[:12]}.jsonl"

    def _addition(self, context: Context) -> str:
        parts = [self.instruction, suggested(context)[-1] if self.suggest else ""]
        return "\n".join(part for part in parts if part)

    def _requests(self, rows: Sequence[Conversation], context: Context) -> Iterator["_Request"]:
        retriever = Retriever(context.train) if self.shots else None
        addition, limit = self._addition(context), with_answer_room(context, self.answer_room).max_new_tokens
        for row in rows:
            prompt = with_instruction(row.prompt, addition)
            if retriever is not None:
                prompt = with_examples(prompt, retriever.similar(row, self.shots))
            body: dict[str, Any] = {"model": self.model, "messages": wire_messages(prompt), self.limit_field: limit}
            if self.send_temperature:
                body["temperature"] = 0
            if row.tools:
                body["tools"] = [dict(tool) for tool in row.tools]
            content = json.dumps(body).encode()
            most = Usage(len(content) + SERVER_TOKENS, limit)
            yield _Request(canonical_hash([self.base_url, body]), row, prompt, content, most)

    def _announce(self, missing: Mapping[str, "_Request"], asked: Sequence["_Request"], context: Context) -> None:
        """Say what leaves the machine.

        Raises:
            EvaluationError: it must not.
        """
        parts = urlsplit(self.base_url)
        local = is_this_machine(self.base_url)
        switch = offline_switch()
        if switch and not local:
            raise EvaluationError(
                f"{switch} is set, so nothing is sent to {parts.netloc}, and {len(missing)} of {len(asked)} answers of "
                f"{self.model} are not kept from an earlier evaluation; unset it, or leave the system out"
            )
        where = "which is this machine" if local else "which is not this machine"
        open_ = "" if local or parts.scheme == "https" else ", unencrypted"
        examples = f", each with up to {self.shots} training rows" if self.shots else ""
        rest = f" ({len(asked) - len(missing)} more are answered already)" if len(missing) < len(asked) else ""
        context.say(
            f"sending the prompts of {len(missing)} rows{examples} to {parts.netloc}, {where}{open_}, for "
            f"{self.model}{rest}"
        )

    def _described(self, asked: Sequence["_Request"], context: Context) -> dict[str, Any]:
        shown = [sum(m.role == "assistant" for m in r.prompt) - _replies(r.row) for r in asked]
        return {
            "endpoint": self.base_url,
            "model": self.model,
            "addition": self._addition(context),
            "place": "system",
            **(
                {"shots": self.shots, "examples": "nearest", "mean_shots": sum(shown) / len(shown)}
                if self.shots
                else {}
            ),
        }

    def _counted(self, asked: Sequence["_Request"], kept: Responses, attempts: int, missing: int) -> dict[str, Any]:
        answered = [kept.get(request.key) or {} for request in asked]
        usages = [Usage(*one["charged"]) for one in answered]
        without = sum(not one["usage"] for one in answered)
        prices, keys = self.prices, {request.key for request in asked}
        return {
            "answered_by": sorted({one["model"] for one in answered}),
            "requests": attempts,
            "cached": len(answered) - missing,
            "input_tokens": sum(usage.prompt for usage in usages),
            "output_tokens": sum(usage.completion for usage in usages),
            "usd": sum(usage.usd(prices) for usage in usages) if prices else None,
            "usd_paid": sum(u.usd(prices) for key in keys for u in kept.paid_for(key)) if prices else None,
            **({"answers_without_usage": without} if without else {}),
        }


def _replies(row: Conversation) -> int:
    return sum(message.role == "assistant" for message in row.prompt)


@dataclass(frozen=True)
class _Request:
    key: str
    row: Conversation
    prompt: tuple[Message, ...]
    content: bytes
    most: Usage
    """What it can cost at most."""


class _Asker:
    """Sends what is missing, several requests at once, and keeps what comes."""

    def __init__(self, settings: Remote, kept: Responses, context: Context) -> None:
        self.settings, self.kept, self.context = settings, kept, context
        prices = settings.prices
        spent = sum(usage.usd(prices) for usage in kept.paid) if prices else 0.0
        self.purse = Purse(prices, settings.spend_limit_usd, spent)
        self.attempts = 0
        self._counting = threading.Lock()

    def ask_all(self, missing: Mapping[str, _Request]) -> None:
        """Every answer, or the first error that no further attempt mends; what is under way then is still kept."""
        settings = self.settings
        patience = Patience(settings.timeout_seconds, settings.retries, settings.first_wait_seconds)
        endpoint = Endpoint(settings.base_url, key_from(settings.api_key_env), patience)
        with closing(endpoint), ThreadPoolExecutor(settings.concurrency, "remote") as pool:
            futures = [pool.submit(self._ask, endpoint, request) for request in missing.values()]
            try:
                for done, future in enumerate(as_completed(futures)):
                    self.context.on_progress("remote", done, len(missing))
                    future.result()
            except Stopped:
                self._stop(endpoint, futures)
                raise _first_error(futures) from None
            except BaseException:
                self._stop(endpoint, futures)
                raise

    @staticmethod
    def _stop(endpoint: Endpoint, futures: Sequence[Future[None]]) -> None:
        endpoint.stopping.set()
        for future in futures:
            future.cancel()

    def _ask(self, endpoint: Endpoint, request: _Request) -> None:
        if endpoint.stopping.is_set():
            raise Stopped
        with self.purse.paying(request.most) as payment:

            def on_failure(charged: bool) -> None:
                self._count()
                payment.settle(request.most if charged else None)
                if charged:
                    most = [request.most.prompt, request.most.completion]
                    self.kept.add({"key": request.key, "message": None, "charged": most})

            started = time.perf_counter()
            try:
                values = endpoint.ask(request.content, on_failure, payment.reserve)
            except EvaluationError as error:
                endpoint.stopping.set()
                raise EvaluationError(f"row {request.row.id} ({request.row.where}): {error}") from None
            self._count()
            usage = _usage(values)
            charged = usage or request.most
            payment.settle(charged)
            choice = values["choices"][0]
            self.kept.add(
                {
                    "key": request.key,
                    "message": {name: choice["message"].get(name) for name in ("content", "tool_calls")},
                    "finish_reason": choice.get("finish_reason"),
                    "model": str(values.get("model", "")),
                    "usage": usage is not None,
                    "charged": [charged.prompt, charged.completion],
                    "seconds": time.perf_counter() - started,
                }
            )

    def _count(self) -> None:
        with self._counting:
            self.attempts += 1


def _first_error(futures: Sequence[Future[None]]) -> BaseException:
    """Why the others were stopped."""
    found = (future.exception() for future in futures if not future.cancelled())
    return next(error for error in found if error is not None and not isinstance(error, Stopped))


def _usage(values: Mapping[str, Any]) -> Usage | None:
    given = values.get("usage")
    found = [given.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(given, Mapping) else []
    whole = [n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return Usage(*whole) if len(whole) == 2 else None


def _answer(request: _Request, kept: Mapping[str, Any], has_usage: bool) -> Answer:
    reply = reply_of(kept["message"])
    prompt, completion = kept["charged"] if has_usage else (None, None)
    return Answer(
        id=request.row.id,
        prompt=request.prompt,
        output=message_text(reply),
        reply=reply,
        prompt_tokens=prompt,
        completion_tokens=completion,
        finished=kept["finish_reason"] != "length",
    )


def reply_of(message: Mapping[str, Any]) -> Message:
    """The assistant message of a chat completion.

    Calls that the server left in the text are parsed as those of other systems; a call that is no call, since its
    arguments are no JSON object, stays as text.
    """
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    given = message.get("tool_calls")
    if not given:
        return parse_reply_text(text)
    calls: list[ToolCall] = []
    odd: list[str] = []
    for one in given if isinstance(given, list) else [given]:
        call = _call(one)
        if call is not None:
            calls.append(call)
        else:
            odd.append(json.dumps(one, ensure_ascii=False))
    return Message("assistant", "\n".join([text, *odd] if text or not odd else odd), tool_calls=tuple(calls))


def _call(value: Any) -> ToolCall | None:
    try:
        function = value["function"]
        name, arguments = function["name"], json.loads(function["arguments"] or "{}")
        json.dumps(arguments, allow_nan=False).encode()
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    identifier = value.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, identifier if isinstance(identifier, str) else None)
