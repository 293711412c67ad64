"""JSON read strictly: what its text spells is kept as it is, or refused. Nothing is lost, rounded or repaired.

Refused beyond what JSON itself forbids: a key that stands twice in an object, NaN and infinity, a number that a 64-bit
float would change, half of a surrogate pair, and more than 100 levels.
"""

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Levels of lists and objects in a row. Deeper ones are no data, and would exhaust the stack of what handles them."""

FLOAT_DIGITS = 17
"""Digits that tell every 64-bit float from all others (IEEE 754)."""

_BLANK = re.compile(r"[ \t\n\r]*")


class Unusable(ValueError):
    """A value that JSON text spells but that could not be kept as it is."""


def excerpt(value: Any) -> str:
    """A value of the data in a message: as Python writes it, at most 40 characters of it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unusable(f"the key {excerpt(twice)} stands twice in one object, so one of its values would be lost")
    return values


def _constant(name: str) -> NoReturn:
    raise Unusable(f"{name} is not JSON; write null or a number")


def _float(text: str) -> float:
    value = float(text)
    # 15 digits without an exponent always survive, and so does what Python wrote: a short cut for most
    if (len(text) <= 16 and "e" not in text and "E" not in text) or repr(value) == text:
        return value
    if math.isinf(value):
        raise Unusable(f"the number {excerpt(text)} is too large for a 64-bit float; write it as text")
    try:
        exact = Decimal(text)
        # 17 digits name one float, whoever wrote them: another program's spelling of the same number is not a loss
        kept = exact == Decimal(repr(value)) or (value != 0 and len(exact.as_tuple().digits) <= FLOAT_DIGITS)
    except InvalidOperation:  # an exponent beyond even Decimal's
        kept = False
    if not kept:
        raise Unusable(
            f"the number {excerpt(text)} has more digits than a 64-bit float holds, which would make it {value!r}; "
            "write it as text"
        )
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def loads(text: str) -> Any:
    """The value of one JSON text, as strict as a data file is read: nothing in it may be lost or changed.

    Raises:
        ValueError: it is not JSON, names a key twice, is nested too deeply, holds half of a surrogate pair, or a
            number that would be changed.
    """
    value, end = decode_value(text, skip_blank(text, 0))
    end = skip_blank(text, end)
    if end != len(text):
        raise json.JSONDecodeError("something follows the value", text, end)
    if "\\ud" in text or "\\uD" in text:
        require_whole_characters(value)
    return value


def is_nested_too_deeply(value: Any) -> bool:
    """Whether lists and objects stand in one another more than `MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def decode_value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends.

    Raises:
        JSONDecodeError: it is not JSON.
        Unusable: it is, and could not be kept as it is.
    """
    deep = f"the JSON is nested too deeply; expected at most {MAX_DEPTH} levels"
    try:
        value, end = _STRICT.raw_decode(text, start)
    except (json.JSONDecodeError, Unusable):
        raise
    except RecursionError:
        raise Unusable(deep) from None
    except ValueError:  # Python's own limit for whole numbers
        raise Unusable("a whole number has more digits than can be read (4,300 by default); write it as text") from None
    brackets = text.count("{", start, end) + text.count("[", start, end)
    if brackets > MAX_DEPTH and is_nested_too_deeply(value):
        raise Unusable(deep)
    return value, end


def require_whole_characters(value: Any) -> None:
    """Raise an `Unusable` if a text in `value` holds half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable(
            "half of a surrogate pair (an escape such as \\ud83d without its partner): a character was cut in two; "
            "repair the text"
        ) from None


def skip_blank(text: str, start: int) -> int:
    """Where what JSON calls white space ends, from `start` on."""
    match = _BLANK.match(text, start)
    return match.end() if match else start
