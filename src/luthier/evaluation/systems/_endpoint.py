"""An OpenAI-compatible endpoint (`POST {base_url}/chat/completions`): asked patiently, and never heard of its key.

A busy or failing server (408, 425, 429, 5xx, a broken connection, an answer that is no chat completion) is asked again
after a wait that doubles, or after the `Retry-After` that it names. What a server may have charged for without giving
an answer is told, so that a spend limit holds. The key goes into one header; it is taken out of whatever comes back.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from luthier.errors import EvaluationError, RecipeError

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for a longer wait is given up."""
LARGEST_ANSWER = 8 * 2**20
"""Bytes; no answer to a question is longer."""
SHOWN = 300
"""Characters of what a server said that an error shows."""
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
_TRANSIENT = {408, 425, 429}


def require_base_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        RecipeError: it is none, or has a place in which people put secrets; the message does not repeat it.
    """
    parts = urlsplit(url)
    try:
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_url = False
    if not is_url:
        raise RecipeError("base_url: expected an URL such as https://api.example.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            "base_url: a user, a password, a query or a fragment has no place in it, since it is shown in reports; "
            "give the key in an environment variable and name that in api_key_env"
        )
    return url.rstrip("/")


def require_env_name(name: str) -> str:
    """The name of an environment variable, as it is.

    Raises:
        RecipeError: it is none, and so perhaps the key itself; the message does not repeat it.
    """
    if not _ENV_NAME.fullmatch(name):
        raise RecipeError(
            "api_key_env: expected the name of an environment variable in capitals, such as OPENAI_API_KEY, never the "
            "key itself (what was given is not shown here, in case it is one)"
        )
    return name


def key_from(name: str | None) -> str | None:
    """The key that an environment variable holds.

    Raises:
        EvaluationError: it is not set, or holds what no header may hold; the message does not repeat it.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise EvaluationError(f"the environment variable {name}, which api_key_env names, is not set or empty")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EvaluationError(
            f"the environment variable {name} holds characters that no key has (its value stays hidden)"
        )
    return key


def is_this_machine(url: str) -> bool:
    """Whether what is sent to the URL stays on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    timeout_seconds: float
    retries: int
    first_wait_seconds: float


@dataclass(frozen=True)
class _Failure:
    what: str
    passes: bool = False
    """Whether asking again may help."""
    may_be_charged: bool = False
    """Whether the server may have written an answer that did not arrive."""
    wait_seconds: float | None = None
    """What the server asked for."""


class Stopped(Exception):
    """Another request failed for good, so this one is not tried again."""


class Endpoint:
    """Asks one question at a time; may be used by several threads."""

    def __init__(self, base_url: str, key: str | None, patience: Patience) -> None:
        self.url = f"{base_url}/chat/completions"
        self.stopping = threading.Event()
        self._key, self._patience = key, patience
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # redirects would carry rows to a host that nobody named; and so would a proxy what is meant for this machine
        self._client = httpx2.Client(
            headers=headers,
            timeout=patience.timeout_seconds,
            follow_redirects=False,
            trust_env=not is_this_machine(base_url),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def ask(
        self, content: bytes, on_failure: Callable[[bool], None], before_retry: Callable[[], None]
    ) -> dict[str, Any]:
        """The chat completion that answers a request; its first choice has a message.

        Args:
            content: the request as JSON.
            on_failure: told of each attempt that failed whether it may have been charged for.
            before_retry: called before each attempt but the first.

        Raises:
            EvaluationError: the server refuses, or goes on failing; what it says is in the message, without the key.
            Stopped: `stopping` was set while it waited.
        """
        wait = self._patience.first_wait_seconds
        for attempt in range(self._patience.retries + 1):
            found = self._try(content)
            if not isinstance(found, _Failure):
                return found
            on_failure(found.may_be_charged)
            too_long = (found.wait_seconds or 0) > LONGEST_WAIT
            if not found.passes or too_long or attempt == self._patience.retries:
                tried = f" ({attempt + 1} attempts)" if attempt else ""
                asked = f"; it asks to be left alone for {found.wait_seconds:,.0f} s" if too_long else ""
                raise EvaluationError(f"{self.url} {found.what}{asked}{tried}")
            if self.stopping.wait(min(found.wait_seconds or wait, LONGEST_WAIT)):
                raise Stopped
            wait *= 2
            before_retry()
        raise AssertionError("the last attempt returns or raises")

    def _try(self, content: bytes) -> dict[str, Any] | _Failure:
        deadline = time.monotonic() + self._patience.timeout_seconds
        seconds = f"{self._patience.timeout_seconds:g} s"
        try:
            with self._client.stream("POST", self.url, content=content) as response:
                text = self._read(response, deadline)
        except httpx2.ConnectTimeout:
            return _Failure(f"could not be reached within {seconds}", passes=True)
        except httpx2.TimeoutException:
            return _Failure(f"gave no answer within {seconds}; see timeout_seconds", passes=True, may_be_charged=True)
        except httpx2.ConnectError as error:
            return _Failure(f"cannot be reached: {self._clean(str(error))}", passes=True)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            what = f"broke off: {type(error).__name__}: {self._clean(str(error))}"
            return _Failure(what, passes=True, may_be_charged=True)
        if text is None:
            what = f"gave no whole answer within {seconds} and {LARGEST_ANSWER:,} bytes; see timeout_seconds"
            return _Failure(what, passes=True, may_be_charged=True)
        return self._judge(response.status_code, response.headers, text)

    def _read(self, response: httpx2.Response, deadline: float) -> str | None:
        """The whole body without the key; None if it is too long or dribbles in."""
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER or time.monotonic() > deadline:
                return None
        return self._clean(b"".join(parts).decode("utf-8", "replace"))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _judge(self, status: int, headers: Mapping[str, str], text: str) -> dict[str, Any] | _Failure:
        if status in (401, 403):  # what it says of the key is not shown
            how = "the key was not accepted" if self._key else "it wants a key; name its variable in api_key_env"
            return _Failure(f"answered with status {status}: {how}")
        said = f": {text.strip()[:SHOWN]}" if text.strip() else ""
        if status in _TRANSIENT or status >= 500:
            return _Failure(f"answered with status {status}{said}", True, wait_seconds=_retry_after(headers))
        if status != 200:
            where = " (redirects are not followed; give the place itself as base_url)" if 300 <= status < 400 else ""
            return _Failure(f"answered with status {status}{where}{said}")
        try:
            values: Any = json.loads(text, parse_constant=_refuse)
            choice = values["choices"][0]
            choice["message"].get  # noqa: B018  it must be there and be an object
            json.dumps(choice, allow_nan=False)  # 1e999 is read as infinity, which no file could hold
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return _Failure(f"gave what is no chat completion{said}", passes=True, may_be_charged=True)
        return dict(values)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, given as seconds or as a date (RFC 9110, 10.2.3)."""
    given = headers.get("retry-after", "").strip()
    if not given:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(given).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return None
