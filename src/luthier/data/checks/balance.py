"""How evenly the answers of a classification are spread; says nothing about answers that are not labels.

With one answer in nearly every row a model scores well by always giving it, and a label seen twice is not learned.
Up to one answer in a hundred may be no label; such rows are named.
"""

from collections import Counter

from luthier.data.checks._patterns import printable_label
from luthier.data.checks._text import quoted, rows, share, view
from luthier.data.checks.base import Check, Finding, Tally
from luthier.examples import Conversation, Example

_LONGEST, _MOST_LABELS = 64, 5000
_LOPSIDED, _RARE, _ENOUGH = 0.8, 5, 20
_ODD = 0.01


class Balance(Check):
    """Counts the labels of each split, as long as the answers look like labels: short, one line, often repeated."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._odd = Tally()
        self._too_many = False

    def see(self, example: Example, split: str) -> None:
        """Count the answer, or give up for good when there are too many different ones."""
        if self._too_many or not isinstance(example, Conversation):
            return
        label = view(example).reply.strip()
        if not label:
            return
        if len(label) > _LONGEST or "\n" in label or label[0] in "{[":
            self._odd.add(example.where)
            return
        counts = self._counts.setdefault(split, Counter())
        counts[label] += 1
        self._too_many = len(counts) > _MOST_LABELS

    def findings(self) -> list[Finding]:
        """Warnings for a lopsided, a rare, an untrained and an inconsistently written label; a note with the spread."""
        labeled = sum(counts.total() for counts in self._counts.values())
        if self._too_many or not labeled or self._odd.count > _ODD * (labeled + self._odd.count):
            return []
        split, counts = next(iter(self._counts.items()))
        total = counts.total()
        if total < _ENOUGH or len(counts) * 3 > total:
            return []
        (most, size), *_ = counts.most_common(1)
        if len(counts) == 1:
            message = f"all {rows(total)} of {split} have the same answer"
            advice = "add rows with the other answers; a model can only learn to say this one"
            return [Finding("balance", "warning", message, advice, (), total), *self._no_labels()]
        found = [self._spread(split, counts, total), *self._no_labels()]
        if size > _LOPSIDED * total:
            message = f"{share(size, total)} of {split} have the answer {quoted([printable_label(most)])}"
            advice = "judge by macro-F1, not accuracy, and add rows of the other labels or drop some of this one"
            found.append(Finding("balance", "warning", message, advice, (), size))
        rare = [label for label, count in counts.items() if count < _RARE]
        if rare:
            message = f"labels with fewer than {_RARE} rows in {split}: {quoted(map(printable_label, rare))}"
            advice = "add rows for them, merge them with a neighbor, or leave them out"
            found.append(Finding("balance", "warning", message, advice, (), sum(counts[label] for label in rare)))
        return found + self._unseen(split) + self._spellings(counts)

    def _no_labels(self) -> list[Finding]:
        odd = self._odd
        if not odd.count:
            return []
        message = f"{rows(odd.count)} whose answer is no label, where the others' answers are"
        advice = "write the label that was meant, or remove these rows"
        return [Finding("balance", "warning", message, advice, tuple(odd.where), odd.count)]

    def _spread(self, split: str, counts: Counter[str], total: int) -> Finding:
        ordered = counts.most_common()
        message = (
            f"{len(counts):,} labels in {rows(total)} of {split}: the commonest has {share(ordered[0][1], total)}, "
            f"the rarest {share(ordered[-1][1], total)} ({rows(ordered[-1][1])})"
        )
        return Finding("balance", "note", message, "", (), total)

    def _unseen(self, trained: str) -> list[Finding]:
        found = []
        for split, counts in self._counts.items():
            unseen = [label for label in counts if label not in self._counts[trained]]
            if unseen:
                message = f"labels of {split} that {trained} never shows: {quoted(map(printable_label, unseen))}"
                advice = f"add rows of these labels to {trained}, or check their spelling"
                found.append(Finding("balance", "warning", message, advice, (), sum(counts[label] for label in unseen)))
        return found

    def _spellings(self, counts: Counter[str]) -> list[Finding]:
        spellings: dict[str, list[str]] = {}
        for label in counts:
            folded = "".join(c for c in label.casefold() if c.isalnum())
            spellings.setdefault(folded or label, []).append(label)
        variants = [labels for labels in spellings.values() if len(labels) > 1]
        if not variants:
            return []
        message = f"one label written in several ways: {quoted(map(printable_label, variants[0]))}"
        advice = "write each label in one way; every spelling is a class of its own to the model and to the metrics"
        affected = sum(counts[label] for labels in variants for label in labels)
        return [Finding("balance", "warning", message, advice, (), affected)]
