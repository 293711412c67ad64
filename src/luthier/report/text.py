"""Numbers and data as text: one way of rounding for the whole report, and no character that hides or acts.

A score has three decimals (0.912), a difference a sign and at least two (+0.12), and never so few that a bound beside
zero reads as zero. `visible` replaces characters that a browser or terminal would obey, or not show, by their names.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

NOT_MEASURED = "n/a"
_UPPER = {
    "f1": "F1",
    "json": "JSON",
    "rouge": "ROUGE",
    "rougel": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rag": "RAG",
    "kl": "KL",
}
_SUSPECT = re.compile(r"[^\t\n\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u058f]")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# an absolute path of two parts or more: in quotes with blanks, else without; never a part of a URL, a fraction, and/or
_PATH = re.compile(r"""(?<=['"`])/[^'"`\n]*/[^'"`\n]*(?=['"`])|(?<![\w.:/~])/(?:[^\s/'"`,;:()]+/)+[^\s/'"`,;:()]*""")


def visible(text: str) -> str:
    """`text` with every control, direction and invisible character replaced by a symbol or its code point.

    Line feed and tab stay. C0 controls become their control pictures (escape is U+241B); the rest becomes text such as
    ⟨U+202E⟩. Joiners are shown as well: an answer that differs from the target by one must not look equal to it.
    """
    return _SUSPECT.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    variation = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    if unicodedata.category(character) in _HIDDEN or (variation and code != 0xFE0F):
        return f"⟨U+{code:04X}⟩"
    return character


def as_text(value: Any) -> str:
    """A string as it is, anything else as JSON: `null` for an answer that is not there."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def without_folders(text: str) -> str:
    """A text in which every absolute path is its last two parts: without the folders of whoever ran it."""
    return _PATH.sub(lambda match: file_name(match.group()), text)


def file_name(text: str) -> str:
    """The last two parts of a text that is an absolute path; in any other, of the paths in it."""
    is_path = text.startswith("/") and "\n" not in text
    return "/".join(PurePosixPath(text).parts[1:][-2:]) if is_path else without_folders(text)


def first_line(value: str, most: int = 140) -> str:
    """The start of a text on one line."""
    line = " ".join(value[: most * 2].split())
    return line if len(line) <= most and len(value) <= most * 2 else line[:most].rstrip() + " …"


def label(name: str) -> str:
    """A metric's name for reading: `field_f1` is "field F1"."""
    words = (_UPPER.get(word, word) for word in name.split("_"))
    return " ".join(words).replace("ROUGE l", "ROUGE-L")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _score_decimals(values: Sequence[float]) -> int:
    largest = max((abs(v) for v in values), default=0.0)
    return 3 if largest <= 1 else 2 if largest < 1000 else 0


def number(value: float | None, decimals: int | None = None) -> str:
    """A score: 0.912, 12.34, 12,345, 1.2e+09; `n/a` for null."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if abs(value) >= 1e7:
        return _minus(f"{value:.2g}")
    return _minus(f"{value:,.{_score_decimals([value]) if decimals is None else decimals}f}")


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A score and its interval: 0.912 [0.894, 0.929]; the score alone if there is no interval."""
    if value is None:
        return NOT_MEASURED
    if low is None or high is None:
        return number(value)
    decimals = _score_decimals([value, low, high])
    return f"{number(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def _difference_decimals(values: Sequence[float]) -> int:
    """So many that what is not zero does not read as zero, and what differs does not read as the same."""
    for decimals in (2, 3):
        shown = {round(v, decimals) for v in values}
        if len(shown) == len(set(values)) and all(v == 0 or round(v, decimals) != 0 for v in values):
            return decimals
    return 4


def signed(value: float | None, decimals: int = 2) -> str:
    """A difference with its sign: +0.12, −0.03, 0.00."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if abs(value) >= 1e7:
        return _minus(f"{value:+.2g}")
    if round(value, decimals) == 0:
        return f"{0:.{decimals}f}"
    return _minus(f"{value:+,.{decimals}f}")


def difference(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A difference and its interval: +0.12 [0.08, 0.16]."""
    known = [v for v in (value, low, high) if v is not None]
    decimals = _difference_decimals(known)
    if value is None or low is None or high is None:
        return signed(value, decimals)
    return f"{signed(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def p_value(p: float | None) -> str:
    """A p-value: 0.012, or < 0.001."""
    if p is None:
        return NOT_MEASURED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def usd(amount: float | None) -> str:
    """Dollars: two significant digits below one dollar, cents above."""
    if amount is None:
        return NOT_MEASURED
    size = abs(amount)
    if size == 0:
        return "$0"
    if size < 1e-6:
        return "under $0.000001"
    sign = "\u2212" if amount < 0 else ""
    if size < 0.995:
        return f"{sign}${size:.{max(2, 1 - math.floor(math.log10(size)))}f}"
    return f"{sign}${size:,.{2 if size < 1000 else 0}f}"


def price(amount: float) -> str:
    """A price as it was asked: $0.195, $3.00, no digit lost."""
    return f"${amount:,.2f}" if round(amount, 2) == amount else f"${amount:,.6f}".rstrip("0")


def factor(value: float) -> str:
    """How many times as much: ×0.012, ×3.4, ×1,200."""
    digits = max(0, 1 - math.floor(math.log10(value))) if value > 0 else 1
    return f"×{value:,.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with separators: 12,345."""
    if value is None:
        return NOT_MEASURED
    return _minus(f"{value:,.0f}") if abs(value) < 1e12 else _minus(f"{value:.2g}")


def compact(value: float | None) -> str:
    """A large number in few characters: 134.5 M."""
    if value is None:
        return NOT_MEASURED
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (size if unit != 'k' else 1e3):,.1f} {unit}"
    return count(value)


def duration(seconds: float | None) -> str:
    """Time: 0.32 s, 12.3 s, 12 min 3 s, 3 h 12 min, 2 d 5 h."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def memory(size: float | None) -> str:
    """Bytes: 3.9 GiB."""
    if size is None:
        return NOT_MEASURED
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def percent(share: float) -> str:
    """A share: 5 %, 0.3 %."""
    return f"{share * 100:.2g} %" if share < 0.0995 else f"{share * 100:.0f} %"


def toml(tree: Mapping[str, Any], at: str = "") -> str:
    """A tree of settings in the manner of TOML, for reading; null settings are shown as comments."""
    plain = [
        f"# {k} is not set" if v is None else f"{k} = {_toml_value(v)}"
        for k, v in tree.items()
        if not isinstance(v, Mapping)
    ]
    blocks = ["\n".join(plain)] if plain else []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            path = f"{at}.{key}" if at else str(key)
            body = toml(value, path)
            has_own = any(not isinstance(v, Mapping) for v in value.values()) or not value
            blocks.append(f"[{path}]\n{body}".rstrip() if has_own else body)
    return "\n\n".join(blocks)


def _toml_value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)
