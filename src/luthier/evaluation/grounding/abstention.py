"""Does an answer say that it has none? English wordings, found by patterns and not by the word "not".

An answer abstains where it says so and then states nothing: "I don't know. It was 1851." states something, and so does
"I don't know, 1851." What is denied must be the answer itself or what the passages say: "Women were not given the right
to vote" is an answer. Hedges ("I think", "probably") are answers. Patterns miss a wording that nobody foresaw and every
other language; the share that they get wrong is a part of the checker's measured error.
"""

import re

from luthier.data.facts import STOP_WORDS, tokens_of

_HOLDERS = (
    r"(?:passages?|authors?|texts?|contexts?|documents?|sources?|excerpts?|paragraphs?|articles?|information|materials?|"
    r"(?:provided|given|above) (?:text|passages?|information|context|material))"
)
_HELD = (
    r"(?:given|provided|specified|mentioned|stated|included|contained|available|answered|found|said|described|known|"
    r"clear|present|covered|discussed)"
)
_TELL = (
    r"(?:say|tell|state|mention|specify|provide|contain|include|give|hold|answer|explain|indicate|address|describe|cover|"
    r"discuss|reveal|have|offer|name|identify|list|support|make (?:it )?clear|go into)"
)
_NOT = r"(?:do(?:es)?n['o]?t|do(?:es)? not|did(?:n't| not)|never)"
_KNOW = r"(?:know|have (?:an|the|any|enough|sufficient)\b|find|see|recall|remember|have access)"
_CANNOT = r"(?:cannot|can't|can not|could(?:n't| not)|(?:(?:am |'m )?(?:not able|unable)) to)"
_DETERMINE = (
    r"(?:be )?(?:answer(?:ed|ing)?|determined?|tell|told|say|said|find|found|provide|inferred?|infer|establish(?:ed)?|"
    r"give|help|identify|confirm|locate|known|know)"
)

_ITEM = r"(?:idea|clue|knowledge|answer|information|mention|data|details?|evidence)"
_SAID_NOT = r"(?:not|n't|nowhere|never) (?:\w+ly )?(?:given|provided|specified|mentioned|stated)"

_DENIALS = re.compile(
    "|".join(
        [
            rf"\bi {_NOT} {_KNOW}",
            r"\bi(?: am|'m) (?:not (?:sure|certain|aware|familiar)|unsure|uncertain|sorry)",
            rf"\b(?:i|we)(?:'ve)? (?:(?:have|had|got|really|honestly|absolutely) ){{0,3}}no {_ITEM}\b",
            rf"\b(?:{_HOLDERS}|it|this|that|they|with)\b.{{0,40}}\b"
            rf"(?:contains?|ha(?:s|ve)|gives?|makes?|provides?|offers?|holds?|includes?|with) no {_ITEM}\b",
            rf"\bno {_ITEM}\b.{{0,60}}\b(?:in|from|by|within) (?:\w+ ){{0,2}}{_HOLDERS}\b",
            rf"^\W*no {_ITEM}(?: (?:(?:is|was|are|were) )?(?:given|provided|available|found|here))?\W*$",
            r"\bno (?:information|mention|details?|answer) "
            r"(?:(?:is|was|are|were) (?:given|provided|available|found|made)|about|on|of|regarding)\b",
            rf"\b(?:i|we|it|this|that|question|answer)(?:'m| am)? {_CANNOT} {_DETERMINE}",
            rf"\b{_CANNOT} {_DETERMINE}\b.{{0,60}}\b(?:from|based on|given|with|using|in)\b.{{0,20}}\b{_HOLDERS}",
            rf"\b{_HOLDERS}\b.{{0,60}}\b{_NOT} (?:\w+ly )?(?:{_TELL})\b",
            r"\bthere (?:is|are|was|were|'s) ?(?:not|n't)? ?(?:any|no|not enough|insufficient) (?:\w+ )?"
            r"(?:mention|information|answer|reference|details?|statement|way to (?:know|tell|answer)|"
            # "no evidence that he was killed" says something of the world, "no evidence of who did it" does not
            r"(?:indication|data|evidence|record)\b(?! (?:that|to suggest|of(?! (?:wh|how)))\b))\b",
            rf"\b(?:this|it|that|question|answer|information) (?:is|was) ?{_SAID_NOT}(?:\W*$| (?:wh\w+|how|if)\b)",
            rf"\b(?:is|are) ?{_SAID_NOT}\W*$",
            rf"\b{_SAID_NOT}\b.{{0,60}}\b(?:in|from|by|within) (?:\w+ ){{0,2}}{_HOLDERS}\b",
            rf"\bnot (?:\w+ly )?{_HELD} (?:here|there|above|anywhere)\b",
            rf"\bnot (?:\w+ly )?(?:{_HELD} )?(?:in|by|from) (?:the|this|these|that|any of the|my) {_HOLDERS}",
            rf"\b(?:nothing|none)\b.{{0,30}}\b{_HOLDERS}\b|\b{_HOLDERS}\b.{{0,20}}\bnothing\b",
            r"\b(?:insufficient|not enough|too little|lack(?:s|ing)?(?: of)?) "
            rf"(?:information|context|detail|(?:evidence|data) to {_DETERMINE})",
            r"\bit(?:'s| is) (?:unknown|unclear|not (?:clear|known))\b(?! (?:for|as|to)\b)",
            rf"\bit(?:'s| is) not possible to {_DETERMINE}\b",
            r"^\W*(?:un(?:known|clear|answerable|certain|specified)|n/?a|none|no answer|"
            r"not (?:known|sure|stated|specified|mentioned|given|available|found|provided|answerable|applicable))\W*$",
            r"\b(?:sorry|apologi[sz]e)\b.{0,40}\b(?:can't|cannot|unable|not able|don't|no)\b",
            r"(?:^|\b(?:question|this|it) )(?:cannot|can't|can not) be answered\b",
            rf"\b{_HOLDERS}\b.{{0,40}}\b(?:(?:is|are) silent|lacks?|leaves? (?:it|this|that) open)\b",
            r"\bbeyond (?:the scope|what) .{0,30}\b(?:passage|text|context|document|given|provided|know)",
            r"\bunanswerable\b|\bi would need more (?:information|context|detail)",
            r"\bas an ai\b.{0,60}\b(?:can't|cannot|don't|do not|unable)\b",
        ]
    ),
    re.IGNORECASE | re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|;\s+|,? (?=(?:but|however|although)\b)")
_ITSELF = """passage text context document source excerpt paragraph article information material answer question
    provid given know say tell mention stat specify sorry please check look find help assist more detail
    specific ask let need else want anything feel free there here based however answered quest
    unfortunately provide give contain hold"""
_ABOUT_ITSELF = frozenset(_ITSELF.split())
"""Stems with which an answer speaks of itself and its passages, and states nothing."""
_EMPTY_LEAD = re.compile(
    r"(?:the )?(?:complete |correct |final )?answer(?: to (?:the|this|your) question)?(?: is| can be found)?\s*:?|\W+",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[,:()]|\s[-\u2013\u2014]+\s|(?=\b(?:maybe|perhaps|probably|possibly|i (?:think|guess|believe))\b)", re.I
)
_GUESS = re.compile(r"\b(?:maybe|perhaps|probably|possibly|i (?:think|guess|believe))\b", re.IGNORECASE)
_HOLDER = re.compile(rf"\b{_HOLDERS}\b", re.IGNORECASE)
_OFFERS = re.compile(
    r"\b(?:would you like|let me know|feel free|please (?:provide|give|share|ask|check|consult|let)|"
    r"i(?:'d| would) (?:be happy|recommend|suggest|need)|if you (?:can|could|have|provide|need|want)|"
    r"you (?:could|may|might|should) (?:check|look|consult|want)|i(?:'ll| will) be (?:happy|glad)|i hope)\b",
    re.IGNORECASE,
)


def abstains(answer: str, question: str = "") -> bool:
    """Whether an answer says that it has none, and states nothing besides.

    Args:
        answer: what was answered; empty and blank ones abstain.
        question: what was asked; an abstention may repeat its words ("The passages do not say where Tesla lived.").
    """
    text = " ".join(answer.replace("’", "'").split())
    if not _EMPTY_LEAD.sub("", text).strip(" .:"):
        return True
    sentences = [part for part in _SENTENCE.split(text) if any(c.isalnum() for c in part)]
    denied = [_DENIALS.search(part) for part in sentences]
    if not any(denied):
        return False
    asked = {token.key for token in tokens_of(question)}
    return not any(
        _adds(part[denial.end() :], asked) if denial else _states(part, asked)
        for part, denial in zip(sentences, denied, strict=True)
    )


def _adds(rest: str, asked: set[str]) -> bool:
    """Does what follows a denial in its sentence answer after all, as in "I don't know, 1851"?

    Facts before the first break belong to what is denied, and so do those beside them: "does not name Tesla, Edison".
    """
    denied, *clauses = _CLAUSE.split(rest)
    return not _facts(denied, asked) and any(
        _states(clause, asked) if _GUESS.search(clause) else _facts(clause, asked)
        for clause in clauses
        if not (_DENIALS.search(clause) or _HOLDER.search(clause) or _OFFERS.search(clause))
    )


def _facts(text: str, asked: set[str]) -> bool:
    """Does a piece of a sentence hold a number or a name that the question did not?"""
    tokens = tokens_of(f"so {text}")  # a capital at the start of a sentence is no name
    return any(token.is_fact and token.key not in asked and token.key not in _ABOUT_ITSELF for token in tokens)


def _states(sentence: str, asked: set[str]) -> bool:
    """Does the sentence say anything that the question did not?"""
    if _OFFERS.search(sentence):
        return False
    return any(
        token.is_fact or token.key not in _ABOUT_ITSELF
        for token in tokens_of(sentence)
        if token.key not in asked and token.text.casefold() not in STOP_WORDS
    )
