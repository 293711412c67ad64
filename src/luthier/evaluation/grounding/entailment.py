"""Do the words of an answer stand in its passages? What can be seen without a model, as a few numbers.

Each sentence of an answer is laid beside each stretch of three neighboring sentences of one passage, and the best one
counts. Numbers and names must be there; other words, their order, and the words of the question around them tell the
rest. The worst sentence speaks for the answer, because one wrong sentence makes an answer wrong.

What it cannot see: whether a bare "Yes." or "No." is right, unless one sentence holds all words of the question;
another word for the same thing (a synonym looks like an invention); who did what to whom, where both are named together
(swapped roles keep every word); the right words in answer to another question; an opposite that needs no "not";
anything that must be worked out (a sum, a duration, "the later of the two"); languages without capitals or with other
number words than English.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.facts import STOP_WORDS, Token, tokens_of

STRETCH = 3
"""Neighboring sentences that are looked at together."""
NEAR = 4
"""Words that say something, between which two words still stand close together."""

_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z\d])|\n+")
_LEAD = re.compile(
    r"^\W*(?:according to|based on|as (?:stated|mentioned|described) in|in|from) (?:the|this|these) "
    r"(?:\w+ )?(?:passages?|texts?|contexts?|documents?|sources?|excerpts?|paragraphs?|articles?|information)"
    r"(?: (?:above|below|given|provided))?,?\s*(?:it (?:is|was) (?:stated|mentioned) that )?"
    r"|^\W*the (?:passage|text|article|document|context) (?:states|says|mentions|tells us|indicates) (?:that )?"
    r"|^\W*(?:the )?answer(?: to (?:the|this|your) question)?(?: is)?:?\s+",
    re.IGNORECASE,
)
_NEGATIONS = re.compile(
    r"\b(?:not|never|no|none|nobody|nothing|neither|nor|without|cannot|hardly)\b|n['’]t\b|"
    r"\b(?:failed|refused|unable|declined|lacks?|lacked) ",
    re.IGNORECASE,
)
_YES_OR_NO_ASKED = re.compile(
    r"^\W*(?:do|does|did|is|are|was|were|has|have|had|can|could|will|would|should|may|might|must)\b(?!.*\bor\b)",
    re.IGNORECASE | re.DOTALL,
)
_YES_NO = re.compile(r"^\W*(yes|no)\b[,.]?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of an answer beside its passages; every share is 0 to 1."""

    wrong_numbers: int
    """Numbers and months that neither one of the passages nor the question has."""
    wrong_names: int
    """Names that neither has."""
    coverage: float
    """Share of the answer's own words that the best stretch has; numbers and names count three times."""
    order: float
    """Share of its neighboring pairs of words that stand close together, in this order, in the best sentence."""
    together: float
    """Share of its own words and the question's, taken together, that the best single sentence has."""
    negation: bool
    """Whether it denies what a sentence asserts in the same words, or asserts what that denies; a leading "No" denies,
    and a "Yes" asserts, what the question asks."""

    def features(self) -> tuple[float, ...]:
        """In the order of `FEATURES`."""
        return (
            float(min(self.wrong_numbers, 2)),
            float(min(self.wrong_names, 2)),
            1 - self.coverage,
            1 - self.order,
            1 - self.together,
        )


FEATURES = ("wrong_numbers", "wrong_names", "uncovered", "disorder", "apart")
"""What each number of `Evidence.features` stands for; the larger, the less is supported."""


def evidence(question: str, answer: str, passages: Sequence[str]) -> Evidence:
    """What is seen of an answer to a question beside its passages, of which there is at least one."""
    texts = [_Text.of(passage) for passage in passages]
    asked = frozenset(token.key for token in _saying(tokens_of(question)))
    found = [_statement(part, question, asked, texts) for part in _statements(answer)]
    if not found:
        return Evidence(0, 0, 0.0, 0.0, 0.0, False)
    return Evidence(
        max(one.wrong_numbers for one in found),
        max(one.wrong_names for one in found),
        min(one.coverage for one in found),
        min(one.order for one in found),
        # what follows an answer need not be about the question
        max(one.together for one in found),
        any(one.negation for one in found),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sentence, or a few neighboring ones."""

    text: str
    ordered: tuple[str, ...]
    """Keys of its words that say something."""
    keys: frozenset[str]

    @classmethod
    def of(cls, text: str) -> "_Piece":
        tokens = tokens_of(text)
        return cls(text, tuple(token.key for token in _saying(tokens)), frozenset(token.key for token in tokens))


@dataclass(frozen=True, slots=True)
class _Text:
    """A passage, taken apart."""

    sentences: tuple[_Piece, ...]
    stretches: tuple[_Piece, ...]
    keys: frozenset[str]

    @classmethod
    def of(cls, passage: str) -> "_Text":
        parts = [part for part in _SENTENCE.split(passage) if part.strip()]
        starts = range(max(1, len(parts) - STRETCH + 1))
        stretches = tuple(_Piece.of(" ".join(parts[start : start + STRETCH])) for start in starts)
        keys = frozenset(token.key for token in tokens_of(passage))
        return cls(tuple(_Piece.of(part) for part in parts), stretches, keys)


def _statements(answer: str) -> list[str]:
    """The sentences of an answer that say something, without "according to the passage"."""
    parts = [_LEAD.sub("", part) for part in _SENTENCE.split(answer.strip())]
    return [part for part in parts if _saying(tokens_of(part)) or _YES_NO.match(part)]


def _saying(tokens: Sequence[Token]) -> list[Token]:
    return [token for token in tokens if token.is_fact or token.text.casefold() not in STOP_WORDS]


def _statement(statement: str, question: str, asked: frozenset[str], texts: Sequence[_Text]) -> Evidence:
    """One sentence of an answer beside all passages."""
    tokens = _saying(tokens_of(_YES_NO.sub("", statement)))
    # a name from the first sentence of a passage is not wrong at its end
    wrong = min((_missing(tokens, text.keys | asked) for text in texts), key=sum, default=(0, 0))
    own = [token for token in tokens if token.key not in asked]
    coverage = max((_covered(own, piece) for text in texts for piece in text.stretches), default=0.0)
    claim = frozenset(token.key for token in own) | asked
    sentences = [piece for text in texts for piece in text.sentences]
    # of the sentences that have most of what the answer adds
    best = max(sentences, key=lambda piece: (_covered(own, piece), len(claim & piece.keys)), default=_Piece.of(""))
    return Evidence(
        *wrong,
        coverage,
        max((_order(tokens, piece) for piece in sentences), default=0.0),
        len(claim & best.keys) / len(claim) if claim else 0.0,
        _negation_flips(statement, tokens, sentences) or _yes_or_no_flips(statement, question, sentences),
    )


def _missing(tokens: Sequence[Token], keys: frozenset[str]) -> tuple[int, int]:
    """How many different numbers, and how many names, are not among the keys."""
    missing = {(token.kind == "name", token.key) for token in tokens if token.is_fact and not _held(token, keys)}
    names = sum(is_name for is_name, _ in missing)
    return len(missing) - names, names


def _held(token: Token, keys: frozenset[str]) -> bool:
    if token.key in keys:
        return True
    parts = token.key.split("-")  # `well-known`, where the text has `well known`
    return len(parts) > 1 and all(part in keys for part in parts)


def _covered(own: Sequence[Token], piece: _Piece) -> float:
    """Share of the words that the piece has; 1 where the answer has no words of its own."""
    weights = [3.0 if token.is_fact else 1.0 for token in own]
    held = [weight for token, weight in zip(own, weights, strict=True) if _held(token, piece.keys)]
    return sum(held) / sum(weights) if own else 1.0


def _order(tokens: Sequence[Token], piece: _Piece) -> float:
    """Share of neighboring words that stand within four words of one another in the piece, in the same order."""
    if len(tokens) < 2:
        return 1.0 if tokens and tokens[0].key in piece.keys else 0.0
    places: dict[str, list[int]] = {}
    for place, key in enumerate(piece.ordered):
        places.setdefault(key, []).append(place)
    close = 0
    for first, second in itertools.pairwise(tokens):
        pairs = ((a, b) for a in places.get(first.key, ()) for b in places.get(second.key, ()))
        close += any(0 < b - a <= NEAR for a, b in pairs)
    return close / (len(tokens) - 1)


def _negation_flips(statement: str, tokens: Sequence[Token], sentences: Sequence[_Piece]) -> bool:
    """Does one side deny, and the other not, where the words are the same?

    Only the sentence that shares most words is compared, and only if it shares three quarters of them and nearly all
    of their order: a denial of something else is no flip, and this evidence decides alone.
    """
    said = [token for token in tokens if not _NEGATIONS.fullmatch(token.text)]
    keys = {token.key for token in said}
    closest = max(sentences, key=lambda piece: len(piece.keys & keys), default=_Piece.of(""))
    if len(closest.keys & keys) < max(2, 0.75 * len(keys)) or _order(said, closest) < 0.7:
        return False
    return _denies(_YES_NO.sub("", statement), closest.keys) != _denies(closest.text, frozenset(keys))


def _yes_or_no_flips(statement: str, question: str, sentences: Sequence[_Piece]) -> bool:
    """Does "No" deny what the passages assert in all words of the question, or "Yes" assert what they deny?

    A word of the question that is missing may be the very one to which "No" is right: "Was it built of wood?"
    """
    said = _YES_NO.match(statement)
    if not said or not _YES_OR_NO_ASKED.match(question) or _NEGATIONS.search(question):
        return False
    tokens = _saying(tokens_of(question))
    keys = frozenset(token.key for token in tokens)
    same = [piece for piece in sentences if keys <= piece.keys and _order(tokens, piece) >= 0.7]
    denies = said[1].casefold() == "no"
    return len(keys) > 1 and bool(same) and all(_denies(piece.text, keys) != denies for piece in same)


def _denies(sentence: str, keys: frozenset[str]) -> bool:
    """Does a negation stand before a word that both sides have, with at most one other between them?"""
    for match in _NEGATIONS.finditer(sentence):
        following = _saying(tokens_of(sentence[match.end() :]))[:2]
        if any(token.key in keys for token in following):
            return True
    return False
