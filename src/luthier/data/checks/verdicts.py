"""How many judged replies are good: with one kind alone nothing is compared, and an even weight wants even numbers.

Says nothing of other rows. KTO's authors (arXiv:2402.01306) weigh both kinds so that good rows times their weight are 1
to 4/3 times as many as bad rows times theirs.
"""

from luthier.data.checks._text import rows, share
from luthier.data.checks.base import Check, Finding
from luthier.examples import Example, Judged

EVEN = (1.0, 4 / 3)


class Verdicts(Check):
    """Counts good and bad replies of each split."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def see(self, example: Example, split: str) -> None:
        """Count the verdict."""
        if isinstance(example, Judged):
            good, bad = self._counts.get(split, (0, 0))
            self._counts[split] = (good + example.good, bad + (not example.good))

    def findings(self) -> list[Finding]:
        """An error where training rows have one verdict alone; a note where they are uneven."""
        good, bad = self._counts.get("train", (0, 0))
        total = good + bad
        if not total:
            return []
        if not (good and bad):
            message = f"all {rows(total)} of train are judged {'good' if good else 'bad'}"
            advice = "add replies of the other kind; to learn from good ones alone, train on them with sft"
            return [Finding("verdicts", "error", message, advice, (), total)]
        least, most = EVEN
        if least <= good / bad <= most:
            return []
        name, factor = (
            ("undesirable_weight", good / bad / most) if good > bad else ("desirable_weight", least * bad / good)
        )
        message = f"{share(good, total)} of the judged replies of train are good ({good:,} good, {bad:,} bad)"
        advice = f"with kto, objective.{name} = {factor:.2g} evens that out"
        return [Finding("verdicts", "note", message, advice, (), total)]
