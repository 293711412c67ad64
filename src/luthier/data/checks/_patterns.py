"""How secrets and personal data look. A text is searched for the few letters a kind cannot do without before any
regular expression runs, which is what makes the search fast on rows that hold none.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Pattern(NamedTuple):
    """A secret's kind, what to look for first (any of `hints`), its form, and the least bits per character in it."""

    kind: str
    hints: tuple[str, ...]
    form: re.Pattern[str]
    least_entropy: float = 0.0


def _pattern(kind: str, hints: str, form: str, least_entropy: float = 0.0) -> Pattern:
    return Pattern(kind, tuple(hints.split()), re.compile(form), least_entropy)


SECRETS: tuple[Pattern, ...] = (
    Pattern(
        "private key",
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    ),
    _pattern("AWS access key id", "AKIA ASIA", r"(?<![A-Z0-9])((?:AKIA|ASIA)[A-Z0-9]{16})(?![A-Z0-9])", 3.0),
    _pattern("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"\b(gh[pousr]_[A-Za-z0-9]{36,})\b", 3.0),
    _pattern("GitHub token", "github_pat_", r"\b(github_pat_[A-Za-z0-9_]{22,})\b", 3.0),
    _pattern("GitLab token", "glpat-", r"\b(glpat-[\w-]{20,})", 3.0),
    _pattern("Slack token", "xox", r"\b(xox[abeoprs]-[A-Za-z0-9-]{10,})", 2.5),
    _pattern("Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/(T\w+/B\w+/\w{16,})"),
    _pattern(
        "API key (sk-...)",
        "sk-",
        r"(?<![\w-])(sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])(?:[a-z]{2,8}-)?(?:[a-z0-9]{3,6}-)?[A-Za-z0-9_-]{20,})",
        3.5,
    ),
    _pattern("Google API key", "AIza", r"\b(AIza[\w-]{35})(?![\w-])", 3.0),
    _pattern("Stripe key", "sk_live_ rk_live_ sk_test_", r"\b((?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,})", 3.0),
    _pattern("Hugging Face token", "hf_", r"\b(hf_[A-Za-z0-9]{30,})\b", 3.0),
    _pattern("package index token", "npm_ pypi-", r"\b(npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,})", 3.0),
    _pattern("SendGrid key", "SG.", r"\b(SG\.[\w-]{16,}\.[\w-]{16,})", 3.0),
    _pattern("JSON web token", "eyJ", r"(?<![\w-])(eyJ[\w-]{8,2000}\.eyJ[\w-]{8,4000}\.[\w-]{8,})", 3.5),
    _pattern("password in a URL", "://", r"://[^\s/:@]{1,64}:([^\s/:@]{3,64})@[\w.-]+", 1.5),
)
_ASSIGNED = re.compile(
    r"(?:passw(?:or)?d|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|auth)[\w-]{0,12}[\"']?\s{0,2}(?:[:=]|=>)"
    r"\s{0,2}(?:bearer\s)?[\"'`]?([^\s\"'`,;<>{}()\[\]]{8,128})",
    re.IGNORECASE,
)
_ASSIGNED_HINT = re.compile(r"passw|pwd|secret|token|[-_ i]key|auth", re.IGNORECASE)

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@((?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24})\b")
_RESERVED_DOMAIN = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|example\.(?:com|org|net|edu))$", re.IGNORECASE
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+?1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-. ]\d{4}(?![\w-])"
    r"|(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)|\d{2,4})(?:[ .-]?\d{2,4}){2,4}(?![\w+])"
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:\d{9,15}|(?:[ -]\d{4}){2,3}(?:[ -]?\d{1,3})?|[ -]\d{6}[ -]\d{5})(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24,
    "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f:]{6,39}(?![\w:])")
_SEVEN_DIGITS = re.compile(r"\d(?:[^\dA-Za-z]{0,3}\d){6}")
_LONG_RUN = re.compile(r"[\w.-]{15}")


def entropy(text: str) -> float:
    """Shannon entropy of the characters of `text`, in bits per character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


class Span(NamedTuple):
    """Where a kind of secret or personal data stands in a text."""

    kind: str
    start: int
    end: int


ASSIGNED = "assigned password or token"


def secrets(text: str) -> set[str]:
    """Kinds of secrets that `text` holds."""
    return {span.kind for span in secret_spans(text)}


def secret_spans(text: str) -> Iterator[Span]:
    """Where secrets stand; of a private key the line that it begins with. Spans may overlap."""
    if _LONG_RUN.search(text) or "://" in text or "PRIVATE KEY" in text:
        for kind, hints, form, least in SECRETS:
            if any(hint in text for hint in hints):
                for match in form.finditer(text):
                    if not least or entropy(match.group(form.groups)) >= least:
                        yield Span(kind, *match.span(form.groups))
    if ("=" in text or ":" in text) and _ASSIGNED_HINT.search(text) is not None:
        for match in _ASSIGNED.finditer(text):
            if _looks_random(match.group(1)):
                yield Span(ASSIGNED, *match.span(1))


def _looks_random(value: str) -> bool:
    """Letters and digits mixed, as people and generators write passwords; not a word, a variable or a URL."""
    if "://" in value or value.startswith(("$", "%", "os.", "process.")) or "." in value[:-1].strip("."):
        return False
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and entropy(value) >= 2.75


def personal(text: str) -> set[str]:
    """Kinds of personal data that `text` holds; numbers with check digits are checked."""
    return {span.kind for span in personal_spans(text)}


def personal_spans(text: str, also_reserved: bool = False) -> Iterator[Span]:
    """Where personal data stands; spans may overlap.

    Args:
        text: what is searched.
        also_reserved: tell of addresses, too, that lead to nobody on the Internet: domains and blocks that are reserved
            or private, and blocks that versions such as 2.1.0.4 look like.
    """
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if also_reserved or not _RESERVED_DOMAIN.search(match.group(1)):
                yield Span("email", *match.span())
    for form, sign, least in ((_IPV4, ".", 3), (_IPV6, ":", 2)):
        if text.count(sign) >= least:
            for match in form.finditer(text):
                if _is_address(match.group(), also_reserved):
                    yield Span("ip", *match.span())
    if _SEVEN_DIGITS.search(text):
        yield from _number_spans(text)


def _number_spans(text: str) -> Iterator[Span]:
    for kind, form in (("phone", _PHONE), ("ssn", _SSN)):
        for match in form.finditer(text):
            yield Span(kind, *match.span())
    for match in _CARD.finditer(text):
        if _passes_luhn(match.group()):
            yield Span("card", *match.span())
    for match in _IBAN.finditer(text):
        if length := _iban_characters(match.group()):
            yield Span("iban", match.start(), match.start() + length)


def _passes_luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban_characters(text: str) -> int:
    """Characters, blanks included, of the account number that `text` begins with; 0 if it is none: right length for its
    country and 1 modulo 97 (ISO 13616). Words that follow the number are not of it."""
    compact = text.replace(" ", "")
    length = _IBAN_LENGTHS.get(compact[:2], 0)
    if not length or len(compact) < length:
        return 0
    moved = compact[4:length] + compact[:4]
    if int("".join(str(int(c, 36)) for c in moved)) % 97 != 1:
        return 0
    places = [place for place, character in enumerate(text) if character != " "]
    return places[length - 1] + 1


def _is_address(text: str, also_reserved: bool) -> bool:
    """An address that leads to a machine on the Internet, not a private, reserved or documentation one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if also_reserved:
        return not address.is_unspecified  # `::` is punctuation of many languages
    # versions such as 2.1.0.4 look like addresses; the blocks that begin with 1 to 4 are given up for them
    return address.is_global and not (address.version == 4 and text.startswith(("1.", "2.", "3.", "4.")))


def printable_label(text: str) -> str:
    """A label as a finding may quote it: hidden if it looks like a secret or personal data."""
    return "(hidden: looks like a secret or personal data)" if secrets(text) or personal(text) else text
