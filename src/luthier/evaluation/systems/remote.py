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
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from luthier.config import Tree, canonical_hash, nested
from luthier.errors import EvaluationError, RecipeError
from luthier.evaluation.graders.base import ModelReply, SamplingParams
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._asker import Asker, Request
from luthier.evaluation.systems._endpoint import (
    Endpoint,
    Patience,
    Stopped,
    is_this_machine,
    key_from,
    require_base_url,
    require_env_name,
)
from luthier.evaluation.systems._prompts import suggested
from luthier.evaluation.systems._responses import Prices, Purse, Responses, Usage
from luthier.evaluation.systems._wire import reply_of, wire_messages
from luthier.evaluation.systems.base import (
    GRADER_TOKENS,
    Answer,
    Answers,
    AskedByGraders,
    Context,
    Desk,
    System,
    message_text,
    require_questions,
    with_answer_room,
    with_examples,
    with_instruction,
)
from luthier.evaluation.systems.few_shot import Retriever
from luthier.examples import Conversation, Example, Message
from luthier.models.catalog import offline_switch
from luthier.recipe import PATIENCE

MOST_LOGPROBS = 20
"""Tokens whose log-probabilities are asked for; the API gives no more."""
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
    rung: ClassVar[Rung] = "other_model"
    changes_no_answer: ClassVar[frozenset[str]] = System.changes_no_answer | frozenset(PATIENCE)

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
    """Whether the temperature is sent, which is 0 but where replies are drawn; models that think first refuse it."""
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
        asked = list(self._requests(require_questions(rows, "remote"), context))
        kept, attempts, known = self._collect(asked, Desk(context.responses, context.on_progress, context.say))
        answered = [kept.get(request.key) or {} for request in asked]
        has_usage = all(one["usage"] for one in answered)
        answers = [_answer(r, a, has_usage) for r, a in zip(asked, answered, strict=True)]
        seconds = sum(one["seconds"] for one in answered) / min(self.concurrency, max(len(answered), 1))
        counted = self._counted(asked, kept, attempts, known)
        details = {**self._described(asked, context), **counted}
        return Answers(answers, seconds, details)

    def for_graders(self, folder: Path, device: str) -> AskedByGraders:
        """The model there; raises EvaluationError if the key is not there, or the network is switched off."""
        return _ForGraders(self, folder)

    def sample(
        self, rows: Sequence[Conversation], tokens: int, temperature: float, seeds: Sequence[int], desk: Desk
    ) -> list[Answer]:
        """As of `System`, to the row's own prompt and `instruction`; a server that reads no seed draws as it likes.

        Raises:
            EvaluationError, StorageError: as `answer`; or a setting is for answers that are compared.
        """
        for name in ("shots", "answer_room"):
            if self.model_dump()[name] != type(self).model_fields[name].default:
                raise EvaluationError(f"{name} changes nothing where answers are drawn: leave it out")
        asked = [
            self._request(row, with_instruction(row.prompt, self.instruction), tokens, temperature, seed)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        kept, _, _ = self._collect(asked, desk)
        return [_answer(request, kept.get(request.key) or {}, has_usage=False) for request in asked]

    def letters(
        self, rows: Sequence[Conversation], tokens: int, with_logprobs: bool, desk: Desk
    ) -> list[tuple[str, dict[str, float]]]:
        """As of `System`; a server that knows no log-probabilities tells none, or refuses the request.

        Raises:
            EvaluationError, StorageError: as `answer`.
        """
        more: Tree = {"logprobs": True, "top_logprobs": MOST_LOGPROBS} if with_logprobs else {}
        asked = [self._request(row, row.prompt, tokens, more=more) for row in rows]
        kept, _, _ = self._collect(asked, desk)
        answers = [kept.get(request.key) or {} for request in asked]
        return [(message_text(reply_of(one["message"])), one.get("logprobs", {})) for one in answers]

    def _collect(self, asked: Sequence[Request], desk: Desk) -> tuple[Responses, int, int]:
        """All answers, how many requests that took, and how many answers were there before."""
        kept = desk.kept(self.file_name)
        missing = {request.key: request for request in asked if kept.get(request.key) is None}
        attempts = self._ask(missing, asked, kept, desk) if missing else 0
        desk.on_progress("remote", len(asked), len(asked))
        return kept, attempts, _known(asked, missing)

    @property
    def prices(self) -> Prices | None:
        """Both prices; None: they are not known."""
        given, written = self.input_usd_per_million_tokens, self.output_usd_per_million_tokens
        return None if given is None or written is None else Prices(given, written)

    @property
    def file_name(self) -> str:
        """Of the answers of this model there."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{urlsplit(self.base_url).netloc}-{self.model}")[:80]
        return f"{name}-{canonical_hash([self.base_url, self.model])[:12]}.jsonl"

    def _addition(self, context: Context) -> str:
        parts = [self.instruction, suggested(context)[-1] if self.suggest else ""]
        return "\n".join(part for part in parts if part)

    def _requests(self, rows: Sequence[Conversation], context: Context) -> Iterator[Request]:
        retriever = Retriever(context.train) if self.shots else None
        addition, limit = self._addition(context), with_answer_room(context, self.answer_room).max_new_tokens
        for row in rows:
            prompt = with_instruction(row.prompt, addition)
            if retriever is not None:
                prompt = with_examples(prompt, retriever.similar(row, self.shots))
            yield self._request(row, prompt, limit)

    def _request(
        self,
        row: Conversation,
        prompt: tuple[Message, ...],
        limit: int,
        temperature: float = 0,
        seed: int | None = None,
        more: Tree | None = None,
    ) -> Request:
        body: dict[str, Any] = {"model": self.model, "messages": wire_messages(prompt), self.limit_field: limit}
        if self.send_temperature:
            body["temperature"] = temperature
        if seed is not None:
            body["seed"] = seed
        if row.tools:
            body["tools"] = [dict(tool) for tool in row.tools]
        body |= more or {}
        content = json.dumps(body).encode()
        most = Usage(len(content) + SERVER_TOKENS, limit)
        return Request(canonical_hash([self.base_url, body]), row, prompt, content, most)

    def _ask(self, missing: Mapping[str, Request], asked: Sequence[Request], kept: Responses, desk: Desk) -> int:
        """Get what is missing, and return how many requests that took."""
        self._announce(missing, asked, desk.say)
        patience = Patience(self.timeout_seconds, self.retries, self.first_wait_seconds)
        spent = sum(usage.usd(self.prices) for usage in kept.paid) if self.prices else 0.0
        purse = Purse(self.prices, self.spend_limit_usd, spent)
        with closing(Endpoint(self.base_url, key_from(self.api_key_env), patience)) as endpoint:
            asker = Asker(endpoint, kept, purse)
            asker.ask_all(list(missing.values()), self.concurrency, partial(desk.on_progress, "remote"))
        return asker.attempts

    def _announce(self, missing: Mapping[str, Request], asked: Sequence[Request], say: Callable[[str], None]) -> None:
        """Say what leaves the machine.

        Raises:
            EvaluationError: it must not.
        """
        switch = _switched_off(self.base_url)
        if switch:
            raise EvaluationError(
                f"{switch} is set, so nothing is sent to {urlsplit(self.base_url).netloc}, and {len(missing)} of "
                f"{len(asked)} answers of {self.model} are not kept from an earlier evaluation; unset it, or leave the "
                "system out"
            )
        examples = f", each with up to {self.shots} training rows" if self.shots else ""
        known = _known(asked, missing)
        rest = f" ({known} more are answered already)" if known else ""
        say(
            f"sending the prompts of {len(missing)} rows{examples} to {_whereabouts(self.base_url)}, for "
            f"{self.model}{rest}"
        )

    def _described(self, asked: Sequence[Request], context: Context) -> dict[str, Any]:
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

    def _counted(self, asked: Sequence[Request], kept: Responses, attempts: int, known: int) -> dict[str, Any]:
        answered = [kept.get(request.key) or {} for request in asked]
        usages = [Usage(*one["charged"]) for one in answered]
        without = sum(not one["usage"] for one in answered)
        prices, keys = self.prices, {request.key for request in asked}
        return {
            "answered_by": sorted({one["model"] for one in answered}),
            "requests": attempts,
            "cached": known,
            "input_tokens": sum(usage.prompt for usage in usages),
            "output_tokens": sum(usage.completion for usage in usages),
            "usd": sum(usage.usd(prices) for usage in usages) if prices else None,
            "usd_paid": sum(u.usd(prices) for key in keys for u in kept.paid_for(key)) if prices else None,
            **({"answers_without_usage": without} if without else {}),
        }


def _known(asked: Sequence[Request], missing: Mapping[str, Request]) -> int:
    """How many answers were kept before; rows that ask the same are counted each."""
    return sum(request.key not in missing for request in asked)


def _replies(row: Conversation) -> int:
    return sum(message.role == "assistant" for message in row.prompt)


def _answer(request: Request, kept: Mapping[str, Any], has_usage: bool) -> Answer:
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
        alone_seconds=kept["seconds"],  # others are under way at the same time, and whoever waits waits so long
    )


def _switched_off(base_url: str) -> str | None:
    """The environment variable that forbids to ask there, if one does."""
    return None if is_this_machine(base_url) else offline_switch()


def _whereabouts(base_url: str) -> str:
    """Where what is sent goes, and whether others can read it on its way."""
    parts, local = urlsplit(base_url), is_this_machine(base_url)
    encrypted = local or parts.scheme == "https"
    return f"{parts.netloc}, which is {'' if local else 'not '}this machine{'' if encrypted else ', unencrypted'}"


class _ForGraders:
    """The model, asked by graders: what it answered is kept, and the same question has the same answer."""

    identity = ""

    def __init__(self, settings: "Remote", folder: Path) -> None:
        switch, where = _switched_off(settings.base_url), _whereabouts(settings.base_url)
        if switch:
            raise EvaluationError(
                f"{switch} is set, and graders ask {settings.model} on {where}; unset it, or name a model on this one "
                "in rollout.models"
            )
        self._settings, self.at_once = settings, settings.concurrency
        self._kept = Responses(folder / settings.file_name)
        spent = sum(usage.usd(settings.prices) for usage in self._kept.paid) if settings.prices else 0.0
        patience = Patience(settings.timeout_seconds, settings.retries, settings.first_wait_seconds)
        self._endpoint = Endpoint(settings.base_url, key_from(settings.api_key_env), patience)
        weakref.finalize(self, self._endpoint.close)
        self._asker = Asker(self._endpoint, self._kept, Purse(settings.prices, settings.spend_limit_usd, spent))
        self._free, self._lock = threading.Semaphore(settings.concurrency), threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._failure: EvaluationError | None = None
        self.note = f"replies are sent to {where}, to be graded by {settings.model}"

    def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        request = self._request(messages, sampling)
        with self._lock:
            asking = self._asking.setdefault(request.key, threading.Lock())
        with asking:  # whoever asks the same waits, and finds the answer
            if self._kept.get(request.key) is None:
                with self._free:
                    self._get(request)
        answer = self._kept.get(request.key)
        assert answer is not None
        message = answer["message"]
        text = message.get("content")
        return ModelReply(
            text if isinstance(text, str) else "",
            sum(answer["charged"]) if answer["usage"] else None,
            refused=bool(message.get("refusal")),
        )

    def _get(self, request: Request) -> None:
        try:
            if self._endpoint.stopping.is_set():
                raise Stopped
            self._asker.ask(request)
        except EvaluationError as error:
            with self._lock:
                self._failure = self._failure or error
            self._endpoint.stopping.set()  # those that wait for their next attempt need not
            raise
        except Stopped:
            raise EvaluationError(str(self._failure)) from None

    def _request(self, messages: Sequence[Message], sampling: SamplingParams) -> Request:
        settings, limit = self._settings, sampling.max_completions_tokens or GRADER_TOKENS
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": wire_messages(messages),
            settings.limit_field: limit,
        }
        given = sampling.model_dump(exclude={"max_completions_tokens"}, exclude_none=True)
        if settings.send_temperature:
            given.setdefault("temperature", 0)
        body |= given
        content = json.dumps(body).encode()
        key, most = canonical_hash([settings.base_url, body]), Usage(len(content) + SERVER_TOKENS, limit)
        return Request(key, Conversation(tuple(messages)), tuple(messages), content, most)
