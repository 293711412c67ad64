"""Personal data in the rows: a fine-tuned model repeats rare strings, and can be asked for them.

Numbers that carry check digits are verified (IBAN modulo 97, cards by Luhn), so order numbers are not taken for them.
What was found is counted and placed, never shown.
"""

from collections.abc import Mapping
from typing import ClassVar

from luthier.data.checks import _patterns
from luthier.data.checks._scan import Kind, TextScan

_ADVICE = "replace them with placeholders or made-up values, unless you may train on them and the task needs them"


class PersonalData(TextScan):
    """Counts the rows that hold each kind of personal data."""

    check: ClassVar[str] = "personal_data"
    kinds: ClassVar[Mapping[str, Kind]] = {
        "email": Kind("warning", "an email address", _ADVICE),
        "phone": Kind("warning", "a phone number", _ADVICE),
        "ssn": Kind("warning", "what has the form of a US social security number", _ADVICE),
        "card": Kind("warning", "a payment card number (it passes the Luhn check)", _ADVICE),
        "iban": Kind("warning", "a bank account number (IBAN with valid check digits)", _ADVICE),
        "ip": Kind("note", "a public IP address", _ADVICE),
    }

    def scan(self, text: str) -> set[str]:
        """Kinds of personal data in a text."""
        return _patterns.personal(text)
