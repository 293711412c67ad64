"""A vLLM server of the operator's, which answers chats of one base and of what jobs made of it.

It must have been started with LoRA (`--enable-lora`, a `--max-lora-rank` as large as the jobs') and with leave to load
adapters while it runs (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1), and it must see the service's folder under the same path.
An adapter is loaded when its job succeeds, and again when vLLM does not know it, as after a restart of its own.

vLLM takes much that a client must not say (templates, addresses of pictures, ids of tokens to stop at), and has
defaults of its own, so a request is read as strictly as for our own engine, and only what was understood is sent on.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from luthier.data.control_tokens import is_control
from luthier.errors import LuthierError
from luthier.models.catalog import resolve
from luthier.models.vllm_lora import why_not
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.chat import NO_EFFECT, parse_chat
from luthier.serve.completion import parse_completion
from luthier.serve.limits import HttpLimits

log = logging.getLogger("luthier.jobs")
PATHS = ("/chat/completions", "/completions")
"""What is sent to vLLM; decisions are scored by our own engine, on the same base."""
PASSED_ON = (408, 413, 415, 429)
"""Refusals of vLLM's that keep their status; any other is a 400, as our OpenAPI document tells of no more."""
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What vLLM would otherwise take from the base's generation_config.json."""
LONGEST = HttpLimits().default_tokens
"""Longest chat answer when the client sets no limit, as of our own engine."""
DROPPED = frozenset({*NO_EFFECT, "modalities", "best_of", "echo", "suffix", "functions", "function_call"})
"""Fields that were read and ask for nothing."""


@dataclass(frozen=True)
class Address:
    """Where a vLLM server is, and its key."""

    url: str
    """Ends in /v1."""
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer:
    """What came back, not read yet, and the model's name in it."""

    response: httpx2.Response
    name: str


class Vllm:
    """One server.

    Args:
        base: that it serves, as `model.name`.
        address: of the server.
        client: to ask with.
    """

    def __init__(self, base: str, address: Address, client: httpx2.AsyncClient) -> None:
        self._base, self._address, self._client = base, address, client
        self._headers = {} if address.key is None else {"authorization": f"Bearer {address.key}"}
        self._base_name: str | None = None
        self._controls: tuple[str, ...] | None = None

    async def send(self, path: str, body: Mapping[str, Any], name: str, folder: Path | None) -> Answer:
        """Ask for a chat or a completion.

        Args:
            path: one of PATHS.
            body: the client's request.
            name: of the adapter, as this service calls it.
            folder: of the run or checkpoint; None: the base itself.

        Raises:
            ApiError: 400: the request, or what vLLM refuses it with; 503: vLLM does not answer, or has no such model.
        """
        asked = await self._understood(path, body)
        longest = {} if path != "/chat/completions" or _has_longest(asked) else {"max_tokens": LONGEST}
        known = await self._name_of_base() if folder is None else name
        response = await self._post(path, {**asked, **longest, "model": known})
        if response.status_code == 404:  # it was restarted since, under another name perhaps
            await response.aclose()
            if folder is None:
                self._base_name = None
                known = await self._name_of_base()
            else:
                await self.load(name, folder)
            response = await self._post(path, {**asked, **longest, "model": known})
        if response.status_code == 400 and longest:  # less than that fits behind the prompt; vLLM then takes what does
            await response.aclose()
            response = await self._post(path, {**asked, "model": known})
        if response.status_code != 200:
            raise await _refused(response)
        return Answer(response, known)

    async def load(self, name: str, folder: Path) -> None:
        """Let vLLM serve an adapter.

        Raises:
            ApiError: 400: it is of a kind that vLLM cannot serve as it was trained; 503: it cannot be loaded.
        """
        adapter = folder.resolve() / "adapter"
        _require_servable(adapter)
        response = await self._post("/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})
        text = (await _read(response)).decode(errors="replace")
        if response.status_code == 400 and "already been" in text:
            return
        if response.status_code != 200:  # its message names folders of this machine, which the operator alone may read
            log.error("vLLM cannot load %s (%s): %s", name, adapter, text[:500])
            raise _down("vLLM could not load the adapter; the service's log says why")

    async def unload(self, name: str) -> None:
        """Let vLLM forget an adapter, if it knows it.

        Raises:
            ApiError: 503: it does not answer.
        """
        response = await self._post("/unload_lora_adapter", {"lora_name": name})
        text = (await _read(response)).decode(errors="replace")
        if response.status_code not in (200, 404):
            log.error("vLLM cannot unload %s: %s", name, text[:500])

    async def _understood(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a request that vLLM is told."""
        text = json.dumps(body).encode()
        if path == "/chat/completions":
            parse_chat(text)
        else:
            parse_completion(text)
        if self._controls is None:  # the digests of a base's files take a while
            self._controls = await asyncio.to_thread(_controls_of, self._base)
        for name in ("messages", "tools", "prompt"):
            _require_plain(name, body.get(name), self._controls)
        asked = {name: value for name, value in body.items() if value is not None and name not in DROPPED}
        if "stream_options" in asked:
            asked["stream_options"] = {"include_usage": bool(asked["stream_options"].get("include_usage"))}
        return {**NEUTRAL, **asked}

    async def _name_of_base(self) -> str:
        if self._base_name is None:
            try:
                response = await self._client.get(self._address.url + "/models", headers=self._headers, timeout=10.0)
                cards = response.json()["data"] if response.status_code == 200 else []
                names = [str(card["id"]) for card in cards if card.get("parent") is None]
            except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise _down(f"vLLM does not answer ({type(error).__name__})") from None
            if not names:
                raise _down(f"vLLM does not tell its models ({response.status_code})")
            self._base_name = names[0]
        return self._base_name

    async def _post(self, path: str, values: Mapping[str, Any]) -> httpx2.Response:
        request = self._client.build_request("POST", self._address.url + path, json=values, headers=self._headers)
        try:
            return await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _down(f"vLLM does not answer ({type(error).__name__})") from None


def _has_longest(asked: Mapping[str, Any]) -> bool:
    return not asked.keys().isdisjoint(("max_tokens", "max_completion_tokens"))


def _require_servable(adapter: Path) -> None:
    """Check that vLLM computes what was trained: a plain LoRA over the dense base, asked by the base's own template.

    Raises:
        ApiError: 400; 503 if the files cannot be read.
    """
    try:
        record = json.loads((adapter / "run.json").read_text(encoding="utf-8"))
        path = adapter / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        template, quantize = record["template"]["name"], record["recipe"]["model"].get("quantize", "none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _down(f"the model's files cannot be read ({type(error).__name__})") from None
    why = why_not(settings)
    if why is None and template != "model":
        why = f"it was trained with the template {template!r}, and vLLM renders that of the base"
    elif why is None and quantize != "none":
        why = f"it was trained over its base held in {quantize}, and vLLM has the dense one"
    if why is not None:
        raise ApiError(f"vLLM cannot serve this model as it was trained: {why}.", param="model", code="unusable")


def _require_plain(param: str, value: Any, controls: Sequence[str]) -> None:
    """Refuse the text of a control token: vLLM would read it as the token itself."""
    for at, text in _strings(param, value):
        found = next((control for control in controls if control in text), None)
        if found is not None:
            raise unsupported(at, f"it holds {found!r}, which vLLM would read as the control token itself")


def _controls_of(base: str) -> tuple[str, ...]:
    """Texts that the base's tokenizer reads as control tokens."""
    try:
        path = resolve(base).folder / "tokenizer.json"
        added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
        return tuple(str(one["content"]) for one in added if is_control(one["content"], one["special"]))
    except (LuthierError, OSError, ValueError, KeyError, TypeError) as error:
        raise _down(f"the base's tokenizer cannot be read ({type(error).__name__})") from None


def _strings(at: str, value: Any) -> list[tuple[str, str]]:
    """All texts within a value, keys of objects too, each with the field that it stands in."""
    if isinstance(value, str):
        return [(at, value)]
    if isinstance(value, list):
        return [found for i, one in enumerate(value) for found in _strings(f"{at}[{i}]", one)]
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in [(at, key), *_strings(f"{at}.{key}", one)]]
    return []


async def _read(response: httpx2.Response) -> bytes:
    try:
        return await response.aread()
    except httpx2.HTTPError as error:
        raise _down(f"vLLM does not answer ({type(error).__name__})") from None
    finally:
        await response.aclose()


async def _refused(response: httpx2.Response) -> ApiError:
    """What vLLM refuses a request with, in our shape."""
    try:
        message = str(json.loads(await _read(response))["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        message = ""
    status = response.status_code
    if 400 <= status < 500 and status not in (401, 403, 404):
        return ApiError(f"vLLM refuses the request: {message}", status=status if status in PASSED_ON else 400)
    log.error("vLLM answered with %d: %s", status, message)
    return _down(f"vLLM answered with {status}")


def _down(why: str) -> ApiError:
    return ApiError(f"The model cannot be used right now: {why}.", status=503, code="model_unavailable")
