"""Reading one JSON object of a request: closed, typed and bounded, so that nothing a client sends is silently ignored.

Every field is read exactly once by name; what nobody read is an unknown field and a 400. JSON's `null` means "not
given", as in OpenAI's API. A bool is never a number, and no bound lets NaN or an infinity through.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.config import did_you_mean
from luthier.data.read import kind_of
from luthier.serve.api_error import ApiError, unsupported

SCHEMA_BYTES = 64 * 1024
"""Largest JSON schema of a request."""
NAME_LIMIT = 256
"""Characters of a model's, a function's, a speaker's or a call's name."""
MAX_DEPTH = 64
"""Deepest nesting of a request; tools and arguments need a dozen."""


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        ApiError: it is not UTF-8, not JSON, not an object, nested too deeply, or holds NaN, an infinite number or a
            character that is no Unicode scalar (a lone surrogate, which no tokenizer can take).
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(f"The body is not JSON: {error}") from None
    return parse_object(text, "The body")


def parse_object(text: str, what: str, param: str | None = None) -> dict[str, Any]:
    """The JSON object in `text`; `what` and `param` name it in errors.

    Raises:
        ApiError: as `parse_body`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(f"{what} is nested more than {MAX_DEPTH} deep.", param=param) from None
    except ValueError as error:
        raise ApiError(f"{what} is not JSON: {error}", param=param) from None
    if not isinstance(value, dict):
        raise ApiError(f"{what} must be a JSON object, not {kind_of(value)}.", param=param)
    if problem := _oddity(value):
        raise ApiError(f"{what} {problem}.", param=param)
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _oddity(value: Any) -> str:
    """What is wrong somewhere in `value`; empty if nothing. Without recursion: no input can exhaust the stack."""
    stack = [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} deep"
        if isinstance(node, dict):
            stack.extend((key, depth) for key in node)
            stack.extend((item, depth + 1) for item in node.values())
        elif isinstance(node, list):
            stack.extend((item, depth + 1) for item in node)
        elif isinstance(node, float) and not math.isfinite(node):
            return "holds a number that is too large"
        elif isinstance(node, str) and not _is_text(node):
            return "holds a lone surrogate (\\ud800 to \\udfff), which is not a character"
    return ""


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """The fields of one object; `at` is its own path, such as `messages[2]`."""

    def __init__(self, values: Any, at: str = "") -> None:
        if not isinstance(values, dict):
            raise ApiError(f"{at!r} must be an object, not {kind_of(values)}.", param=at)
        self._values: Mapping[str, Any] = values
        self._at = at
        self._read: set[str] = set()

    def path(self, name: str) -> str:
        """Where a field stands in the request."""
        return f"{self._at}.{name}" if self._at else name

    def get(self, name: str) -> Any:
        """The value as it is; None if absent or null."""
        self._read.add(name)
        return self._values.get(name)

    def wrong(self, name: str, expected: str) -> ApiError:
        """The error for a field whose value is not as expected."""
        found = kind_of(self._values.get(name))
        return ApiError(
            f"{self.path(name)!r} must be {expected}; got {found}.", param=self.path(name), code="invalid_type"
        )

    def text(self, name: str, limit: int | None = None) -> str | None:
        """A string of at most `limit` characters, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        if limit is not None and len(value) > limit:
            raise ApiError(f"{self.path(name)!r} may have at most {limit} characters.", param=self.path(name))
        return value

    def required_text(self, name: str, limit: int | None = None) -> str:
        """A string that must be there."""
        value = self.text(name, limit)
        if value is None:
            raise ApiError(
                f"{self.path(name)!r} is required.", param=self.path(name), code="missing_required_parameter"
            )
        return value

    def flag(self, name: str) -> bool:
        """A boolean; absent is false."""
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "a boolean")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer in low..high, or None."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise self._outside(name, low, high)
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number in low..high."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not low <= value <= high:  # false for NaN too
            raise self._outside(name, low, high)
        return float(value)

    def array(self, name: str, limit: int) -> list[Any] | None:
        """A list of at most `limit` entries, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, "an array")
        if len(value) > limit:
            raise ApiError(
                f"{self.path(name)!r} may have at most {limit} entries; got {len(value)}.", param=self.path(name)
            )
        return value

    def only(self, name: str, neutral: Iterable[Any], why: str) -> None:
        """Accept a field only with a value that asks for nothing; refuse every other, saying why."""
        value = self.get(name)
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            raise unsupported(self.path(name), why)

    def without_effect(self, names: Iterable[str]) -> None:
        """Take note of fields that are documented to change nothing here."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuse whatever has not been read."""
        unknown = sorted(set(self._values) - self._read)
        if unknown:
            name = unknown[0]
            shown = name if len(name) <= 100 else name[:100] + "..."
            hint = did_you_mean(name, sorted(self._read))
            raise ApiError(
                f"Unknown field {self.path(shown)!r}{hint if 'did you mean' in hint else ''}.",
                param=self.path(shown),
                code="unknown_parameter",
            )

    def _outside(self, name: str, low: float, high: float) -> ApiError:
        return ApiError(
            f"{self.path(name)!r} must be between {low} and {high}.", param=self.path(name), code="out_of_range"
        )


def schema_text(schema: Mapping[str, Any]) -> str:
    """A JSON schema of a request as text.

    Raises:
        ApiError: it is too large.
    """
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > SCHEMA_BYTES:
        raise ApiError(f"A schema may have at most {SCHEMA_BYTES:,} bytes.", param="response_format")
    return text
