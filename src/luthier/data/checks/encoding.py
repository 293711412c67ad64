"""Damage that text took on its way: wrong decoding, lost characters, invisible ones, leftovers of HTML.

A model learns such damage faithfully, and a served prompt never has it in the same places.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import ClassVar

from luthier.data.checks._scan import Kind, TextScan

_EXPORT = "read the source again with its right encoding (most often UTF-8) and export it anew"
_CLEAN = "remove these characters at the source; they cost tokens and are invisible to whoever reviews the data"

# the bytes 0x80-0xBF of UTF-8 as cp1252 and Latin-1 show them
_CONTINUATION = bytes(b for b in range(0x80, 0xC0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)).decode(
    "cp1252"
) + "".join(map(chr, range(0x80, 0xA0)))
_TAIL = f"[{re.escape(_CONTINUATION)}]"
_MOJIBAKE = re.compile(f"[\u00c2-\u00df]{_TAIL}|[\u00e0-\u00ef]{_TAIL}{{2}}|[\u00f0-\u00f4]{_TAIL}{{3}}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_C1_CONTROL = re.compile(r"[\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# joiners (200c, 200d) are spelling in Persian, Indic scripts and emoji, so they are not counted
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,5});")


class Encoding(TextScan):
    """Finds mojibake, replacement and control characters, invisible ones, mixed Unicode forms and HTML entities."""

    check: ClassVar[str] = "encoding"
    kinds: ClassVar[Mapping[str, Kind]] = {
        "mojibake": Kind("warning", "UTF-8 that was decoded as Windows-1252 or Latin-1", _EXPORT),
        "replacement": Kind("warning", "the replacement character U+FFFD, where a character was lost", _EXPORT),
        "surrogate": Kind(
            "error",
            "half of a surrogate pair, which no tokenizer can encode",
            "repair the \\uD800-\\uDFFF escapes of the source; a character outside the basic plane was cut in two",
        ),
        "control": Kind("warning", "control characters (such as NUL or ESC)", _CLEAN),
        "invisible": Kind("note", "zero-width characters, soft hyphens or a byte-order mark", _CLEAN),
        "bidi": Kind("warning", "characters that reorder text on screen (bidirectional overrides)", _CLEAN),
        "decomposed": Kind(
            "note",
            "letters and accents as separate characters (not Unicode NFC)",
            "normalize all text to NFC, here and where the model is served: the same word has other tokens otherwise",
        ),
        "entity": Kind(
            "note",
            "HTML entities such as &amp;",
            "unescape them, unless HTML is what the model shall read and write",
        ),
    }

    def scan(self, text: str) -> set[str]:
        """The kinds of damage in a text; plain ASCII takes no regular expression."""
        held: set[str] = set()
        if "&" in text and _ENTITY.search(text):
            held.add("entity")
        plain = text.replace("\n", "").replace("\t", "").replace("\r", "")
        if not plain.isprintable() and _CONTROL.search(plain):
            held.add("control")
        return held if text.isascii() else held | _beyond_ascii(text)


def _beyond_ascii(text: str) -> set[str]:
    held: set[str] = set()
    if _SURROGATE.search(text):
        held.add("surrogate")
    if "\ufffd" in text:
        held.add("replacement")
    if any(_is_utf8(match.group()) for match in _MOJIBAKE.finditer(text)):
        held.add("mojibake")
    elif _C1_CONTROL.search(text):
        held.add("control")
    if _INVISIBLE.search(text):
        held.add("invisible")
    if _BIDI.search(text):
        held.add("bidi")
    if not unicodedata.is_normalized("NFC", text):
        held.add("decomposed")
    return held


def _is_utf8(characters: str) -> bool:
    """Do the bytes that these characters came from spell one printable character in UTF-8?"""
    data = b"".join(_byte(character) for character in characters)
    try:
        spelled = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(spelled) == 1 and (spelled.isprintable() or spelled in "\u00a0\u00ad\ufeff\u200b")


def _byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1", "replace")
