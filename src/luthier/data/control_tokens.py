"""Text to token ids such that content can never become a control token.

A control token is an added token of the tokenizer (`<|im_end|>`, `<tool_call>`). For each there is a character that it
cannot do without: `<`, mostly. Before a template is rendered, private-use characters take the place of these in all
content, so that whatever the template does with it, lower its case or cut pieces out, no control token comes of it.
`encode` then emits control-token ids for those that stand in the rendered text, which the template itself wrote, puts
the characters back, and encodes the text between with copies of the tokenizer in which the control tokens cannot be
spelled at all. Added tokens of white space alone (Gemma has them) steer nothing; they are used wherever they occur, as
in pre-training.

Three copies are kept, because some tokenizers put a space before a piece of text: `start` for the beginning of a
sequence, `token` for text after a control token, `text` for text that goes on where other text was cut. Where the
three would be equal there is one. Left out: control tokens of one character, for which an alphabet may have no other
spelling; content that holds one is refused.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from tokenizers import AddedToken, Tokenizer

from luthier.data.chat_jinja import PRIVATE_USE
from luthier.errors import TemplateError

After: TypeAlias = Literal["start", "token", "text"]

_CACHED_SEGMENTS = 8192
_CACHED_CHARACTERS = 4096
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class StandIns:
    """Private-use characters and the characters whose place they take, as tables for `str.translate`."""

    hidden: Mapping[int, str]
    """Code of a character that control tokens need -> its stand-in."""
    shown: Mapping[int, str]
    """Code of a stand-in -> the character."""

    def show(self, text: str) -> str:
        """`text` as it was before the stand-ins."""
        return text.translate(self.shown) if self.shown else text


NO_STAND_INS = StandIns({}, {})


class ControlTokens:
    """The control tokens of one tokenizer: keeping content from becoming one, and encoding what was rendered."""

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.control_ids = frozenset(i for i, t in added.items() if is_control(t.content, t.special))
        self.special_ids = frozenset(i for i, t in added.items() if t.special)
        self.added_ids = frozenset(added)
        self._texts = {i: t.content for i, t in added.items()}
        self._ids = {text: i for i, text in self._texts.items()}
        self._pattern = _matcher(list(added.values()))
        control = {self._texts[i] for i in self.control_ids}
        self._single = {text for text in control if len(text) == 1}
        self._needed = _needed(control)
        self._needed_in = re.compile(_any_of(self._needed))
        self.reserve(())
        spec = json.loads(backend.to_str())
        self._backends = _plain_backends(spec, control)
        self._backend = backend
        # a word to put before a reply when it is decoded, if the decoder strips a space at the beginning of a text
        decoder = json.dumps(spec["decoder"])
        strips = '"Metaspace"' in decoder or '"Strip"' in decoder
        self._anchor = list(self._backends["text"].encode("a", add_special_tokens=False).ids) if strips else []
        self._encode_cached = lru_cache(maxsize=_CACHED_SEGMENTS)(self._encode_plain)

    def stand_ins(self, texts: Iterable[str], source: str = "") -> StandIns:
        """Stand-ins that are neither in `texts` nor in the template; none where no text needs them.

        Raises:
            TemplateError: the texts use up the private-use characters, hold a control token of one character, or half
                of a character.
        """
        texts = list(texts)
        for text in texts:
            _require_encodable(text)
            self._require_no_single(text)
        if not any(self._needed_in.search(text) for text in texts):
            return NO_STAND_INS
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in source and not any(chr(code) in t for t in texts))
        hidden = dict(zip(map(ord, self._needed), free, strict=False))
        if len(hidden) < len(self._needed):
            raise TemplateError(
                "the row uses the private-use characters (U+E000 to U+F8FF), so none are left to keep control tokens "
                "out of its content; remove the private-use characters from the row"
            )
        return StandIns(hidden, {ord(stand_in): chr(code) for code, stand_in in hidden.items()})

    def reserve(self, ids: Iterable[int]) -> None:
        """Name the control tokens that even an assistant's content may not hold: turn marks and stop tokens."""
        self.reserved_ids = (self.special_ids | set(ids)) & self.control_ids
        spoken = [self._texts[i] for i in self.control_ids - self.reserved_ids if len(self._texts[i]) > 1]
        self._spoken = re.compile(f"({_any_of(sorted(spoken, key=len, reverse=True))})")

    def hide(self, text: str, stand_ins: StandIns, reply: bool = False) -> str:
        """`text` with stand-ins for the characters that control tokens need.

        In a `reply`, control tokens that are not reserved stay whole: a model writes `<think>` itself.
        """
        if not stand_ins.hidden:
            return text
        if not reply:
            return text.translate(stand_ins.hidden)
        return self._except_spoken(text, lambda piece: piece.translate(stand_ins.hidden))

    def neutral(self, text: str, reply: bool = False) -> str:
        """A text of the same length, with white space at the same places, that says nothing; spells no control token.

        In a `reply`, control tokens that are not reserved stay, since templates look for them.
        """
        return self._except_spoken(text, _blotted) if reply else _blotted(text)

    def _except_spoken(self, text: str, change: Callable[[str], str]) -> str:
        # split() by one group gives text, token, text, token, ..., text
        pieces = self._spoken.split(text)
        return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(pieces))

    def _require_no_single(self, text: str) -> None:
        if single := next((token for token in self._single if token in text), None):
            raise TemplateError(
                f"the content holds {single!r}, which is a control token of this model and cannot be spelled otherwise"
            )

    def marks(self, text: str) -> list[int]:
        """Ids of the reserved control tokens in rendered text, in order: its turns."""
        return [i for i in self.found_in(text) if i in self.reserved_ids]

    def found_in(self, text: str) -> list[int]:
        """Ids of the control tokens that stand in a text, in order."""
        found = (self._id_of(match.group()) for match in self._pattern.finditer(text))
        return [i for i in found if i in self.control_ids]

    def find(self, text: str, wanted: Iterable[int], start: int, end: int) -> int | None:
        """Where in `text[start:end]` the first token out of `wanted` ends, white space that it swallows included."""
        wanted = set(wanted)
        for match in self._pattern.finditer(text, start, end):
            if self._id_of(match.group()) in wanted:
                return match.end()
        return None

    def encode(self, text: str, stand_ins: StandIns, after: After) -> list[int]:
        """Ids of rendered text that follows the start of a sequence, a control token, or other text."""
        ids: list[int] = []
        at = 0
        for match in self._pattern.finditer(text):
            ids += self._segment(text[at : match.start()], stand_ins, after)
            ids.append(self._id_of(match.group()))
            at, after = match.end(), "token"
        ids += self._segment(text[at:], stand_ins, after)
        return ids

    def spans(self, text: str, stand_ins: StandIns, after: After) -> list[tuple[int, int]]:
        """Where in the text each token of `encode` begins and ends, in characters."""
        found: list[tuple[int, int]] = []
        at = 0
        for match in self._pattern.finditer(text):
            found += self._segment_spans(text[at : match.start()], at, stand_ins, after)
            found.append(match.span())
            at, after = match.end(), "token"
        return found + self._segment_spans(text[at:], at, stand_ins, after)

    def _segment_spans(self, text: str, start: int, stand_ins: StandIns, after: After) -> list[tuple[int, int]]:
        offsets = self._backends[after].encode(stand_ins.show(text), add_special_tokens=False).offsets if text else []
        return [(start + begin, start + end) for begin, end in offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that go on where other text was: a leading space of the first word is kept."""
        if not self._anchor:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        before = self._backend.decode(self._anchor, skip_special_tokens=False)
        return str(self._backend.decode([*self._anchor, *ids], skip_special_tokens=False))[len(before) :]

    def _id_of(self, matched: str) -> int:
        return self._ids[matched] if matched in self._ids else self._ids[matched.strip()]

    def _segment(self, text: str, stand_ins: StandIns, after: After) -> list[int]:
        text = stand_ins.show(text)
        if not text:
            return []
        return list(
            self._encode_cached(text, after) if len(text) <= _CACHED_CHARACTERS else self._encode_plain(text, after)
        )

    def _encode_plain(self, text: str, after: After) -> tuple[int, ...]:
        return tuple(self._backends[after].encode(text, add_special_tokens=False).ids)


def _require_encodable(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TemplateError(
            f"the text holds half of a character ({text[error.start]!r} at position {error.start}), a sign of damaged "
            "encoding; write the whole character, or remove it"
        ) from None


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is a control token.

    Runs of white space are added tokens in some vocabularies (Gemma); they steer nothing and stay ordinary text.
    """
    return special or bool(content.strip().strip("▁"))


def _matcher(tokens: list[AddedToken]) -> re.Pattern[str]:
    """Finds added tokens as the tokenizer does: leftmost, then longest."""
    parts = []
    for token in sorted(tokens, key=lambda t: len(t.content), reverse=True):
        part = re.escape(token.content)
        part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
        parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(parts) if parts else r"(?!)")


def _needed(tokens: Iterable[str]) -> str:
    """Characters such that every token of two or more holds one; a mark rather than a letter, and letters in any case.

    A quote or a backslash would be escaped in JSON, and its stand-in not: they are taken last.
    """
    needed: list[str] = []
    for token in sorted(token for token in tokens if len(token) > 1):
        if not any(character in token for character in needed):
            best = min(token, key=lambda c: (c.isspace() or c in "\"'\\", c.isalnum()))
            needed += dict.fromkeys((best, best.lower(), best.upper()))
    return "".join(character for character in dict.fromkeys(needed) if len(character) == 1)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for any of `texts`, the first that fits; one that fits nothing if there are none."""
    return "|".join(map(re.escape, texts)) or r"(?!)"


def _blotted(text: str) -> str:
    return re.sub(r"\S+", lambda word: "x" * len(word.group()), text)


def _plain_backends(spec: dict[str, Any], control: set[str]) -> Mapping[After, Tokenizer]:
    """Copies of the tokenizer that cannot spell a control token."""
    # all of them: one that stayed would get a new number, since those before it are gone
    spec["added_tokens"] = []
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    _unspell(spec["model"], control)
    after_token = {**spec, "pre_tokenizer": _without_prefix(spec["pre_tokenizer"], {"first"})}
    after_text = {
        **spec,
        "pre_tokenizer": _without_prefix(spec["pre_tokenizer"], {"first", "always"}),
        "normalizer": _without_prepend(spec["normalizer"]),
    }
    built: list[tuple[Any, Tokenizer]] = []
    for variant in (spec, after_token, after_text):
        same = next((t for v, t in built if v == variant), None)
        built.append((variant, same if same is not None else Tokenizer.from_str(json.dumps(variant))))
    return {"start": built[0][1], "token": built[1][1], "text": built[2][1]}


def _unspell(model: dict[str, Any], control: set[str]) -> None:
    """Rename control tokens in the vocabulary to words that no text contains; ids stay where they are."""
    nonce = secrets.token_hex(16)
    renamed = {text: f"\U0010fffd{nonce}{text}" for text in control if not _BYTE_PIECE.fullmatch(text)}
    if isinstance(model["vocab"], list):  # Unigram: (piece, score), the id is the place
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed.get(piece, piece): i for piece, i in model["vocab"].items()}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & renamed.keys()]


def _without_prefix(part: Any, schemes: set[str]) -> Any:
    """A pre-tokenizer that puts no space before text, where it would under one of `schemes`."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Sequence":
        return {**part, "pretokenizers": [_without_prefix(p, schemes) for p in part["pretokenizers"]]}
    if part["type"] == "Metaspace" and part.get("prepend_scheme") in schemes:
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel" and "always" in schemes:
        return {**part, "add_prefix_space": False}
    return part


def _without_prepend(part: Any) -> Any:
    """A normalizer without `Prepend`, which puts a space before every piece of text."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Sequence":
        kept = [_without_prepend(p) for p in part["normalizers"] if p["type"] != "Prepend"]
        return {**part, "normalizers": kept}
    return None if part["type"] == "Prepend" else part
