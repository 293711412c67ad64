"""What a text states that can be right or wrong on its face: numbers, dates and names, in one form for all spellings.

`3,500`, `3500` and `three thousand five hundred` are one number; `7 February 2016`, `Feb. 7, 2016` and `2016-02-07`
hold the same month, day and year; `Panthers'` and `Panther` are one name. English only; no model, no list of names: a
name is a word with a capital letter that no sentence needs there.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["number", "month", "name", "word"]
"""A month is a kind of its own, because it is written as a number and as a name. `word`: all that is neither."""

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen"""
_NTH = """zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth"""
_TIES = "twenty thirty forty fifty sixty seventy eighty ninety"
_YEAR = "january february march april may june july august september october november december"
_UNITS = {name: value for value, name in enumerate(_SMALL.split())}
_TENS = {name: 10 * value for value, name in enumerate(_TIES.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_GROUPS = {"dozen": 12}
_ORDINALS = {
    **{name: value for value, name in enumerate(_NTH.split())},
    **{name[:-1] + "ieth": value for name, value in _TENS.items()},
}
_FRACTIONS = {"½": "5", "¼": "25", "¾": "75"}
_MONTHS = {
    **{name: number for number, name in enumerate(_YEAR.split(), 1)},
    **{name[:3]: number for number, name in enumerate(_YEAR.split(), 1)},
    "sept": 9,
}
_TOKEN = re.compile(
    r"(?P<iso>\b\d{4}-\d\d-\d\d\b)"
    r"|(?P<digits>\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?)(?P<fraction>[½¼¾])?(?P<ending>st|nd|rd|th|s|m|bn)?\b"
    r"|(?P<word>[^\W\d_]+(?:(?:['’.]|-(?=[a-z]))[^\W\d_]+)*\.?)"
)
_SENTENCE_END = re.compile(r"[.!?:;]['\")\]*_]*\s+$|\n\W*(?:\d+[.)]\s*)?$|^\W*(?:\d+[.)]\s*)?$|[\"(*_#|>•]\s*$")
_ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|No|Gen|Col|Prof|Lt|Sgt|Rev)\. $")
_INITIALS = re.compile(r"(?:[A-Z]\.)+[A-Z]?\.?$|(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|No)\.$")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " "})

_SAY_NOTHING = """a an and are as at be been being but by can could did do does for from had has have he her hers
    him his i if in into is it its itself may might more most my no nor not of on or our over own
    she should so some such than that the their them themselves then there these they this those
    through to too under up upon us very was we were what when where which while who whom whose
    why will with would you your about after also all any because before both during each how just
    only other same s t don doesn didn isn wasn aren weren ve ll re d"""
STOP_WORDS = frozenset(_SAY_NOTHING.split())
"""Words that say nothing by themselves."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word or number of a text, as it counts when texts are compared."""

    kind: Kind
    key: str
    """Equal for all spellings: the digits of a number, the stem of a word or name."""
    text: str
    """As it stands."""
    start: int
    """Where, in characters."""
    end: int

    @property
    def is_fact(self) -> bool:
        """Whether it is a number, a month or a name."""
        return self.kind != "word"


def tokens_of(text: str) -> list[Token]:
    """The words, numbers, months and names of a text in their order; numbers of several words are one token."""
    text = unicodedata.normalize("NFKC", _kept_fractions(text)).translate(_QUOTES)
    return _joined_numbers(list(_single(text)), text)


def _kept_fractions(text: str) -> str:
    """`6½` as `6.5`: the normal form would make `61/2` of it."""
    return re.sub(r"(\d)([½¼¾])", lambda m: f"{m[1]}.{_FRACTIONS[m[2]]}", text)


def _single(text: str) -> Iterator[Token]:
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if match["iso"]:
            year, month, day = match["iso"].split("-")
            yield Token("number", year, year, start, end)
            yield Token("month", str(int(month)), month, start, end)
            yield Token("number", str(int(day)), day, start, end)
        elif match["digits"]:
            yield Token("number", _digits(match["digits"], match["ending"]), match.group(), start, end)
        else:
            word = match["word"]
            if not _INITIALS.fullmatch(word):
                word = word.removesuffix(".")
            yield from _word(word, text, start)


def _digits(digits: str, ending: str | None) -> str:
    value = Decimal(digits.replace(",", ""))
    scale = {"m": 10**6, "bn": 10**9}.get(ending or "", 1)
    return number_key(value * scale)


def number_key(value: Decimal | int) -> str:
    """A number without needless zeros: `3.50` as `3.5`, `1E+3` as `1000`."""
    plain = format(Decimal(value), "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else str(int(plain))


def _word(word: str, text: str, start: int) -> Iterator[Token]:
    """The word, or its parts where it is a number written with hyphens (`twenty-one`, `21-year-old` has its own)."""
    parts = word.split("-")
    if len(parts) > 1 and any(_is_number_word(part.casefold()) for part in parts):
        at = start
        for part in parts:
            yield _plain_word(part, text, at)
            at += len(part) + 1
    else:
        yield _plain_word(word, text, start)


def _is_number_word(word: str) -> bool:
    return word in _UNITS or word in _TENS or word in _SCALES or word in _ORDINALS or word in _GROUPS


def _plain_word(word: str, text: str, start: int) -> Token:
    end = start + len(word)
    folded = word.casefold()
    capital = word[:1].isupper()
    month = _MONTHS.get(folded.removesuffix("."))
    if (
        month is not None
        and capital
        and (len(folded) > 3 or _beside_a_number(text, start, end))
        and not _is_may(folded, text, start, end)
    ):
        return Token("month", str(month), word, start, end)
    is_name = capital and folded.partition("'")[0] not in STOP_WORDS and not _needs_capital(text, start, end)
    return Token("name" if is_name else "word", stem(folded), word, start, end)


def _is_may(folded: str, text: str, start: int, end: int) -> bool:
    """`May` and `March` begin sentences, too: there they are months only beside a number."""
    return folded in ("may", "march") and _starts_sentence(text, start) and not _beside_a_number(text, start, end)


def _beside_a_number(text: str, start: int, end: int) -> bool:
    return bool(
        re.match(r"\.?,? ?\d", text[end : end + 4]) or re.search(r"\d(?:st|nd|rd|th)?(?: of)? $", text[:start][-8:])
    )


def _starts_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - 12) : start]
    return _SENTENCE_END.search(before) is not None and _ABBREVIATED.search(before) is None


def _needs_capital(text: str, start: int, end: int) -> bool:
    """Does a sentence begin here? Then a capital says nothing, unless there is a second one (`NASA`, `McKay`)."""
    return _starts_sentence(text, start) and sum(c.isupper() for c in text[start:end]) < 2


def stem(word: str) -> str:
    """A folded word without possessive, plural, `-ed` and `-ing`; a rough one (Harman 1991 calls its plural part S)."""
    word = word.removesuffix("'s").removesuffix("'")
    if word.endswith("."):
        word = word.replace(".", "")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            if word[-1] == word[-2] and word[-1] not in "aeiouls":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def _joined_numbers(tokens: Sequence[Token], text: str) -> list[Token]:
    """Number words put together: `three million`, `1.5 million`, `two hundred and five`, `twenty-first`."""
    joined: list[Token] = []
    at = 0
    while at < len(tokens):
        count, value = _number_at(tokens, at, text)
        if count:
            first, last = tokens[at], tokens[at + count - 1]
            joined.append(Token("number", number_key(value), text[first.start : last.end], first.start, last.end))
        else:
            joined.append(tokens[at])
        at += max(count, 1)
    return joined


def _number_at(tokens: Sequence[Token], at: int, text: str) -> tuple[int, Decimal]:
    """How many tokens from `at` on are one number, and its value; 0 if none are.

    `one`, `first` and `second` are none: they are said of anything, and a second is a time, too.
    """
    total = group = Decimal(0)
    count = 0
    has_word = False
    for index in range(at, len(tokens)):
        token = tokens[index]
        if count and not re.fullmatch(r"[ -]|,? and ", text[tokens[index - 1].end : token.start] or " "):
            break
        word = token.text.casefold()
        if (
            word == "and"
            and count
            and has_word
            and index + 1 < len(tokens)
            and (
                tokens[index + 1].text.casefold() in {**_UNITS, **_TENS}
                and tokens[index - 1].text.casefold() in _SCALES
            )
        ):
            continue
        if token.kind == "number" and not count:
            group = Decimal(token.key)
            count = 1
        elif word in _SCALES and count:
            group *= _SCALES[word]
            if _SCALES[word] > 100:
                total, group = total + group, Decimal(0)
            count, has_word = index - at + 1, True
        elif (word in _UNITS or word in _TENS or word in _GROUPS) and _may_follow(tokens, index, count):
            group += _UNITS.get(word, _TENS.get(word, _GROUPS.get(word, 0)))
            count, has_word = index - at + 1, True
        elif word in _ORDINALS and _may_follow(tokens, index, count):
            group += _ORDINALS[word]
            count, has_word = index - at + 1, True
            break
        else:
            break
    value = total + group
    small = count == 1 and has_word and (value <= 1 or tokens[at].text.casefold() == "second")
    return (0, value) if small or not has_word else (count, value)


def _may_follow(tokens: Sequence[Token], index: int, count: int) -> bool:
    """`twenty one` and `hundred one` are one number, `one two` and `one twenty` are two."""
    if not count:
        return True
    before, word = tokens[index - 1].text.casefold(), tokens[index].text.casefold()
    small = word in _UNITS or word in _ORDINALS
    return before in _SCALES or before == "and" or (before in _TENS and small)
