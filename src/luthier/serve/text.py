"""Tokens become text while they are generated: no character is sent in halves, and no part of a stop text is sent.

A token may end in the middle of a UTF-8 character; such a tail decodes to U+FFFD and is held back until the rest is
there. A stop text may begin in one token and end in another; whatever could still become one is held back as well.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from luthier.data.templates import Template

REPLACEMENT = "\ufffd"
LONG_CONTEXT, SHORT_CONTEXT = 24, 8
"""Tokens that are decoded again with each new one: at most, and after shortening."""


class ReplyText:
    """How one template reads generated tokens: `of(ids)` is what `Template.parse_reply` takes for the text.

    A reply goes on where the prompt ended. Decoders of the SentencePiece kind drop the space before the first word of
    a text, so an ordinary word is decoded before it and taken away again; templates that write such a space themselves
    drop it from replies, which shows in what they make of " a".
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        self.anchor: list[int] = tokenizer.encode("a", add_special_tokens=False)
        self.before = self.of(self.anchor)
        probe = tokenizer.encode(" a", add_special_tokens=False)
        expected = self.of([*self.anchor, *probe])[len(self.before) :]
        self.drops_space = expected.startswith(" ") and not template.parse_reply(probe).content.startswith(" ")

    def of(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out, white space as it is."""
        kept = [i for i in ids if i not in self._special]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class Detokenizer:
    """Incremental decoding: what has been emitted is always a prefix of decoding everything."""

    def __init__(self, reply: ReplyText) -> None:
        self._reply = reply
        self._ids = list(reply.anchor)
        self._context = 0  # decoding starts at this token
        self._sent = reply.before  # what ids[context:] has given so far
        self._first = reply.drops_space

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._reply.of(self._ids[self._context :])
        # a tail that is no whole character decodes to exactly one U+FFFD; earlier ones are final
        stable = text[:-1] if text.endswith(REPLACEMENT) else text
        new, self._sent = stable[len(self._sent) :], stable
        if stable is text and len(self._ids) - self._context > LONG_CONTEXT:
            self._shorten()
        return self._without_space(new)

    def flush(self) -> str:
        """What was held back, as it is."""
        text = self._reply.of(self._ids[self._context :])
        new, self._sent = text[len(self._sent) :], text
        return self._without_space(new)

    def _shorten(self) -> None:
        """Decode from a later token on, so that each token costs the same however long the text is."""
        context = len(self._ids) - SHORT_CONTEXT
        sent = self._reply.of(self._ids[context:])
        if sent and not sent.startswith(REPLACEMENT):  # not from inside a character
            self._context, self._sent = context, sent

    def _without_space(self, new: str) -> str:
        if self._first and new:
            self._first = False
            return new.removeprefix(" ")
        return new


class StopText:
    """Passes text on up to the first stop text, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that may be sent now; after a stop text was found, nothing more."""
        if self.found:
            return ""
        self._held += text
        at = min((i for s in self._stops if (i := self._held.find(s)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            ready, self._held = self._held[:at], ""
            return ready
        keep = max((overlap(self._held, s) for s in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready

    def flush(self) -> str:
        """What was held back and turned out not to be a stop text."""
        ready, self._held = self._held, ""
        return ready


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, the whole of `stop` excluded."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class TokenText:
    """Text and exact bytes of single tokens, for log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
        self._byte_level = '"ByteLevel"' in decoder
        self._byte_fallback = '"ByteFallback"' in decoder
        self._added = {token_id: text for text, token_id in tokenizer.get_added_vocab().items()}
        self._known: dict[int, tuple[str, bytes]] = {}

    def of(self, token: int) -> tuple[str, bytes]:
        """(text, bytes); bytes that are no whole character show as U+FFFD in the text."""
        if token not in self._known:
            data = self._bytes(token)
            self._known[token] = data.decode("utf-8", errors="replace"), data
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token]).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the output layer may be wider than the vocabulary
            return b""
        if self._byte_level and all(c in _BYTE_OF for c in piece):
            return bytes(_BYTE_OF[c] for c in piece)
        if self._byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
"""What byte-level vocabularies write for a byte."""
