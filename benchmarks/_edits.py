"""Ways in which a held-out text comes back in another file: whole, retouched, or reworded to a chosen strength."""

import random
import re
from collections.abc import Callable, Sequence

Edit = Callable[[str, random.Random, Sequence[str]], str]
"""A text, a source of chance and words of the data -> the text as it leaked."""


# in backticks: spelled as the data spell it
_PAIRS = """
how-in_what_way what-which can-could could-may need-require get-obtain want-wish help-assist show-display tell-inform
make-create use-employ find-locate give-provide write-compose explain-describe list-enumerate money-cash fee-charge
charged-billed card-plastic account-profile transfer-remittance payment-purchase wrong-incorrect long-much_time
receive-collect sent-dispatched new-fresh near-close_to close-near located-situated serves-offers food-dishes
restaurant-eatery coffee-cafe shop-store pub-tavern family-parents friendly-welcoming children-kids kids-children
high-steep low-modest cheap-inexpensive moderate-average price-cost rating-score customer-guest area-district
riverside-waterfront `centre`-middle city-town who-which_person where-at_which_place when-at_what_time
why-for_what_reason name-title called-named year-date many-numerous first-earliest large-big big-large
small-little people-persons country-nation began-started started-began died-perished built-constructed
wrote-authored main-principal
part-portion kind-sort type-kind number-amount important-significant example-instance following-below sentence-phrase
word-term text-passage question-query answer-reply email-message story-tale product-item work-function working-running
problem-issue issue-problem change-alter changed-altered add-include check-verify pending-outstanding still-yet
today-this_day now-currently please-kindly would-might should-ought_to do-perform did-have has-holds is-represents
are-stand the-this a-one of-from in-within on-upon to-towards for-concerning with-having and-plus my-our i-we you-one
"""
SYNONYMS: dict[str, str] = {
    left: right.replace("_", " ")
    for left, _, right in (pair.partition("-") for pair in re.findall(r"\S+", _PAIRS.replace("`", "")))
}
_WORD = re.compile(r"\w+(?:'\w+)?")
_WRAPS = (
    ("I would like to know the following. ", " Thank you in advance."),
    ("A colleague asked me this: ", " What would you say?"),
    ("Here is my request. ", " Please be brief."),
)


def copied(text: str, chance: random.Random, words: Sequence[str]) -> str:
    return text


def retouched(text: str, chance: random.Random, words: Sequence[str]) -> str:
    """Other case, spaces and punctuation."""
    return "  ".join(text.upper().split()).replace(".", " ;").replace("?", " ?!").replace(",", " -") + " ..."


def replaced(count: int) -> Edit:
    """So many words become words of other rows."""

    def edit(text: str, chance: random.Random, words: Sequence[str]) -> str:
        return _at_words(text, count, chance, lambda word: chance.choice(words))

    return edit


def dropped(count: int) -> Edit:
    """So many words are left out."""

    def edit(text: str, chance: random.Random, words: Sequence[str]) -> str:
        return _at_words(text, count, chance, lambda word: "")

    return edit


def reordered(text: str, chance: random.Random, words: Sequence[str]) -> str:
    """Sentences, or the two halves of a single one, change places."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
    if len(parts) < 2:
        tokens = text.split()
        parts = [" ".join(tokens[len(tokens) // 2 :]), " ".join(tokens[: len(tokens) // 2])]
        return " ".join(parts)
    return " ".join(parts[len(parts) // 2 :] + parts[: len(parts) // 2])


def reworded(share: float) -> Edit:
    """A share of the words is replaced by synonyms; those that have none here are left out or replaced in turn."""

    def edit(text: str, chance: random.Random, words: Sequence[str]) -> str:
        turn = 0

        def other(word: str) -> str:
            nonlocal turn
            if (synonym := SYNONYMS.get(word.lower())) is not None:
                return synonym
            turn += 1
            drawn: str = chance.choice(words)
            return "" if turn % 2 else drawn

        count = max(1, round(share * len(_WORD.findall(text))))
        return _at_words(text, count, chance, other)

    return edit


def wrapped(text: str, chance: random.Random, words: Sequence[str]) -> str:
    """A tenth is reworded, and polite words stand around it."""
    before, after = chance.choice(_WRAPS)
    return f"{before}{reworded(0.1)(text, chance, words)}{after}"


def _at_words(text: str, count: int, chance: random.Random, other: Callable[[str], str]) -> str:
    found = list(_WORD.finditer(text))
    for match in sorted(chance.sample(found, min(count, len(found))), key=lambda m: -m.start()):
        text = text[: match.start()] + other(match.group()) + text[match.end() :]
    return " ".join(text.split())
