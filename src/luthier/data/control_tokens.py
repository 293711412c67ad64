"""Text to token ids such that content can never become a control token.

A control token is an added token of the tokenizer (`<|im_end|>`, `<tool_call>`). Before a template is rendered, `guard`
puts an escape character inside every occurrence of one in the content. `encode` then emits control-token ids only for
what is left whole, which is what the template itself wrote, removes the escape characters, and encodes the text between
with copies of the tokenizer in which the control tokens cannot be spelled at all. Added tokens of white space alone
(Gemma has them) steer nothing; they are used wherever they occur, as in pre-training.

Three copies are kept, because some tokenizers put a space before a piece of text: `start` for the beginning of a
sequence, `token` for text after a control token, `text` for text that goes on where other text was cut. Where the
three would be equal there is one. Left out: control tokens of one character, which cannot be split; content that holds
one is refused.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from tokenizers import AddedToken, Tokenizer

from luthier.data.chat_jinja import PRIVATE_USE
from luthier.errors import TemplateError

After: TypeAlias = Literal["start", "token", "text"]

_CACHED_SEGMENTS = 8192
_CACHED_CHARACTERS = 4096
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class ControlTokens:
    """The control tokens of one tokenizer: guarding content against them, and encoding what was guarded."""

    def __init__(self, backend: Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.control_ids = frozenset(i for i, t in added.items() if _is_control(t))
        self.special_ids = frozenset(i for i, t in added.items() if t.special)
        self.added_ids = frozenset(added)
        self._texts = {i: t.content for i, t in added.items()}
        self._ids = {text: i for i, text in self._texts.items()}
        self._pattern = _matcher(list(added.values()))
        control = {self._texts[i] for i in self.control_ids}
        self._guard = self._reply_guard = _Guard(control)
        spec = json.loads(backend.to_str())
        self._backends = _plain_backends(spec, control)
        self._backend = backend
        # a word to put before a reply when it is decoded, if the decoder strips a space at the beginning of a text
        decoder = json.dumps(spec["decoder"])
        strips = '"Metaspace"' in decoder or '"Strip"' in decoder
        self._anchor = list(self._backends["text"].encode("a", add_special_tokens=False).ids) if strips else []
        self._encode_cached = lru_cache(maxsize=_CACHED_SEGMENTS)(self._encode_plain)

    def choose_escape(self, texts: Iterable[str], source: str = "") -> str:
        """A private-use character that is neither in `texts` nor in the template, or "" when no text needs a guard.

        Raises:
            TemplateError: the texts use up every private-use character, or hold half of a character.
        """
        texts = list(texts)
        for text in texts:
            _require_encodable(text)
        if not any(self._guard.touches(text) for text in texts):
            return ""
        for code in PRIVATE_USE:
            if chr(code) not in source and not any(chr(code) in text for text in texts):
                return chr(code)
        raise TemplateError(
            "the row uses every private-use character (U+E000 to U+F8FF), so none is left to keep control tokens "
            "out of its content; remove the private-use characters from the row"
        )

    def reserve(self, ids: Iterable[int]) -> None:
        """Name the control tokens that even an assistant's content may not hold: turn marks and stop tokens."""
        reserved = (self.special_ids | set(ids)) & self.control_ids
        self._reply_guard = _Guard({self._texts[i] for i in reserved})

    def guard(self, text: str, escape: str, reply: bool = False) -> str:
        """`text` with `escape` inside everything that could be, or could become part of, a control token.

        In a `reply`, control tokens that are neither special nor reserved stay whole: a model writes `<think>` itself.
        """
        return (self._reply_guard if reply else self._guard).apply(text, escape) if escape else text

    def found_in(self, text: str) -> list[int]:
        """Ids of the control tokens in unguarded text, in order."""
        found = (self._id_of(match.group()) for match in self._pattern.finditer(text))
        return [i for i in found if i in self.control_ids]

    def find(self, text: str, wanted: Iterable[int], start: int, end: int) -> int | None:
        """Where in `text[start:end]` the first token out of `wanted` ends, white space that it swallows included."""
        wanted = set(wanted)
        for match in self._pattern.finditer(text, start, end):
            if self._id_of(match.group()) in wanted:
                return match.end()
        return None

    def encode(self, text: str, escape: str, after: After) -> list[int]:
        """Ids of guarded text that follows the start of a sequence, a control token, or other text."""
        ids: list[int] = []
        at = 0
        for match in self._pattern.finditer(text):
            ids += self._segment(text[at : match.start()], escape, after)
            ids.append(self._id_of(match.group()))
            at, after = match.end(), "token"
        ids += self._segment(text[at:], escape, after)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that go on where other text was: a leading space of the first word is kept."""
        if not self._anchor:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        before = self._backend.decode(self._anchor, skip_special_tokens=False)
        return str(self._backend.decode([*self._anchor, *ids], skip_special_tokens=False))[len(before) :]

    def _id_of(self, matched: str) -> int:
        return self._ids[matched] if matched in self._ids else self._ids[matched.strip()]

    def _segment(self, text: str, escape: str, after: After) -> list[int]:
        if escape:
            text = text.replace(escape, "")
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


def _is_control(token: AddedToken) -> bool:
    """Runs of white space are added tokens in some vocabularies (Gemma); they steer nothing and stay ordinary text."""
    return bool(token.special or token.content.strip().strip("▁"))


def _matcher(tokens: list[AddedToken]) -> re.Pattern[str]:
    """Finds added tokens as the tokenizer does: leftmost, then longest."""
    parts = []
    for token in sorted(tokens, key=lambda t: len(t.content), reverse=True):
        part = re.escape(token.content)
        part = rf"(?<!\w){part}(?!\w)" if token.single_word else part
        parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(parts) if parts else r"(?!)")


class _Guard:
    """Finds the places in a content string where control tokens must be broken."""

    def __init__(self, tokens: set[str]) -> None:
        self._short = {t for t in tokens if len(t) == 1}
        longer = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
        firsts = "".join(re.escape(c) for c in sorted({t[0] for t in longer}))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")
        self._whole = re.compile("|".join(map(re.escape, longer)) if longer else r"(?!)")
        self._heads = {t[:n] for t in longer for n in range(2, len(t))}
        self._tails = {t[n:] for t in longer for n in range(1, len(t) - 1)}
        self._inner = "\n".join(longer)
        self._longest = max(map(len, longer), default=0)

    def touches(self, text: str) -> bool:
        """Whether `apply` would change `text`."""
        return bool(self._breaks(text))

    def apply(self, text: str, escape: str) -> str:
        for place in sorted(self._breaks(text), reverse=True):
            text = text[:place] + escape + text[place:]
        return text

    def _breaks(self, text: str) -> set[int]:
        """Positions to put an escape character at; never at an end, so that a template's trimming still works.

        Two strings that a template puts side by side could join to a control token, as could one that it puts between
        two halves; so a string's last piece of a token, first piece, and a string that is all middle are broken too.
        """
        for single in self._short:
            if single in text:
                raise TemplateError(
                    f"the content holds {single!r}, which is a control token of this model and cannot be split"
                )
        # every place that could begin a token is tried: occurrences may overlap
        begins = (match.start() for match in self._first.finditer(text))
        places = {begin + 1 for begin in begins if self._whole.match(text, begin)}
        limit = min(self._longest, len(text) + 1)
        places.update(len(text) - 1 for n in range(2, limit) if text[-n:] in self._heads)
        places.update(1 for n in range(2, limit) if text[:n] in self._tails)
        if 1 < len(text) < self._longest and not text.replace("_", "").isalnum() and text in self._inner:
            places.add(1)
        return places


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
