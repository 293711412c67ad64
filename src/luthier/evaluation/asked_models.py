"""Models that graders ask in a training, behind endpoints or on this machine: `AskedModels` is a `Host.ask_model`.

An answer that cannot be had is no bad grade: what is raised then (`Unanswered`) ends the training, which goes on from
there once it can be had. What was answered is kept in a file beside the rollouts, so that nothing is asked and paid for
twice, and the same question has the same answer for the whole run. The spend limit counts all that was ever paid there.
"""

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from luthier.config import canonical_hash
from luthier.data.templates import build_template
from luthier.errors import EvaluationError, LuthierError
from luthier.evaluation.graders.base import ModelReply, SamplingParams, Unanswered
from luthier.evaluation.systems._asker import Asker, Request
from luthier.evaluation.systems._endpoint import Endpoint, Patience, Stopped, is_this_machine, key_from
from luthier.evaluation.systems._responses import Purse, Responses, Usage
from luthier.evaluation.systems._wire import wire_messages
from luthier.evaluation.systems.base import System
from luthier.evaluation.systems.local_model import LocalModel
from luthier.evaluation.systems.remote import SERVER_TOKENS, Remote
from luthier.examples import Conversation, Message
from luthier.models.catalog import offline_switch, resolve
from luthier.models.generate import generate
from luthier.models.load import load
from luthier.models.scorer import require_forest

REPLY_TOKENS = 1024
"""Longest reply where a grader does not say (`sampling_params.max_completions_tokens`)."""


class _Asked(Protocol):
    """One model."""

    at_once: int
    """How many may ask at the same time."""
    note: str
    """What is worth saying of it before it is asked."""
    identity: str
    """Changes when its answers may."""

    def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """Its reply; raises LuthierError."""
        ...


class AskedModels:
    """Models by the names that graders call them by; may be used by several threads."""

    def __init__(self, models: Mapping[str, System], folder: Path, device: str) -> None:
        """
        Args:
            models: `Remote` and `LocalModel` by name.
            folder: where answers are kept.
            device: that local ones are opened on; they are opened now, so that what they hold is known to be taken.

        Raises:
            EvaluationError: a key is not there, or the network is switched off.
            ModelError: a local one cannot be had or used.
        """
        self._models = {name: _opened(model, folder, device) for name, model in models.items()}

    def __call__(self, model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """What a model replies.

        Raises:
            Unanswered: it does not, whatever the reason.
        """
        try:
            return self._models[model].ask(messages, sampling)
        except LuthierError as error:
            raise Unanswered(f"the model {model!r} could not be asked: {error}") from None

    @property
    def at_once(self) -> int:
        """How many may ask at the same time."""
        return sum(model.at_once for model in self._models.values())

    @property
    def notes(self) -> list[str]:
        """What leaves this machine, and what does not."""
        return [model.note for model in self._models.values()]

    @property
    def identities(self) -> dict[str, str]:
        """Of each model what decides its answers beside its settings."""
        return {name: model.identity for name, model in self._models.items()}


def _opened(model: System, folder: Path, device: str) -> _Asked:
    if isinstance(model, Remote):
        return _Remote(model, folder)
    if isinstance(model, LocalModel):
        return _Local(model, device)
    raise TypeError(f"{type(model).__name__} cannot be asked by graders")


class _Remote:
    """A model behind an endpoint."""

    identity = ""

    def __init__(self, settings: Remote, folder: Path) -> None:
        local, parts, switch = is_this_machine(settings.base_url), urlsplit(settings.base_url), offline_switch()
        if switch and not local:
            raise EvaluationError(
                f"{switch} is set, and graders ask {settings.model} on {parts.netloc}, which is not this machine; "
                "unset it, or name a model on this one in rollout.models"
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
        open_ = "" if local or parts.scheme == "https" else ", unencrypted"
        where = "this machine" if local else "not this machine"
        self.note = f"replies are sent to {parts.netloc}, which is {where}{open_}, to be graded by {settings.model}"

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
        settings, limit = self._settings, sampling.max_completions_tokens or REPLY_TOKENS
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


class _Local:
    """A base model on this machine, asked one question at a time."""

    at_once = 1

    def __init__(self, settings: LocalModel, device: str) -> None:
        files = resolve(settings.model)
        self.identity, self._name = files.fingerprint, settings.model
        self._loaded = load(files, settings.precision, device, quantize=settings.quantize)
        require_forest(self._loaded.model)
        self._template = build_template(self._loaded, settings.template)
        self._one = threading.Lock()
        self.note = f"replies are graded by {settings.model} on this machine"

    def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        if sampling.reasoning_effort is not None:
            raise EvaluationError(f"{self._name} is on this machine, and knows no reasoning_effort; remove it")
        prompt = self._template.prompt_ids(messages)
        with self._one:
            (found,) = generate(
                self._loaded,
                [prompt],
                max_new_tokens=sampling.max_completions_tokens or REPLY_TOKENS,
                stop_ids=self._template.stop_ids,
                stop_loops=True,
                temperature=sampling.temperature or 0.0,
                top_p=sampling.top_p or 1.0,
                seed=[(sampling.seed or 0) % 2**64],
            )
        return ModelReply(self._template.parse_reply(found.ids).content, found.prompt_tokens + found.completion_tokens)
