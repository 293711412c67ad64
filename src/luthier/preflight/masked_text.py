"""The trained tokens, decoded, are the replies of the data and nothing else.

A mask that runs on into the next question, stops early, or selects the wrong message gives a smooth loss curve and a
wrong model. The text under the mask is compared with the source, reply by reply, weight included.
"""

import re
from typing import Any, ClassVar

from luthier.examples import Row
from luthier.preflight._cases import Case, Span, Turn, spans
from luthier.preflight._text import decode, forms, message_leaves, occurs
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class MaskedText(Gate):
    """What is under the loss mask is what the data says the assistant wrote."""

    proves: ClassVar[str] = "The trained tokens decode to the trained replies of the data, each with its end mark."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "What is trained on is not what the data says: if nothing_dropped fails too, mend that first; "
        "otherwise this is a fault of the template's mask."
    )

    def check(self, subject: Subject) -> GateResult:
        """Pair the spans of trained tokens with the replies and compare their texts."""
        if subject.settings.loss_on == "all":
            return self.passes("Every token is trained on because data.loss_on = 'all' says so.")
        compare = _Comparison(subject)
        faults: list[Fault] = []
        compared = 0
        for case in subject.cases:
            if not case.turns or not case.turn_rows():
                continue  # a document, or a case that `rendered` has reported
            compared += len(case.turns)
            faults.extend(Fault(case.row_id, problem, case.where) for problem in compare.problems(case))
        return self.judge(faults, f"{compared:,} replies are trained on as the data has them.", replies=compared)


class _Comparison:
    def __init__(self, subject: Subject) -> None:
        self.tokenizer = subject.tokenizer
        self.stops = subject.template.stop_ids
        added: dict[int, Any] = subject.tokenizer.added_tokens_decoder
        self.special = {i for i, t in added.items() if t.special}
        # models write these themselves (thinking tags)
        self.spoken = [str(t.content) for i, t in added.items() if not t.special and str(t.content).strip()]

    def problems(self, case: Case) -> list[str]:
        """What is wrong with the uncut rows of a case."""
        pairs = [(row, span) for row in case.whole for span in spans(row)]
        if len(pairs) != len(case.turns):
            return [f"{len(pairs)} runs of trained tokens for {len(case.turns)} replies"]
        found = ((turn, self._wrong(turn, row, span)) for turn, (row, span) in zip(case.turns, pairs, strict=True))
        return [f"message {turn.index}: {problem}" for turn, problem in found if problem]

    def _wrong(self, turn: Turn, row: Row, span: Span) -> str:
        ids = row.ids[span.start : span.end]
        if any(weight != turn.weight for weight in row.loss_mask[span.start : span.end]):
            return f"its tokens do not all have the weight {turn.weight:g}"
        body = ids[:-1] if ids[-1] in self.stops else ids
        if any(i in self.special for i in body):
            return "control tokens inside the reply are trained on"
        text = decode(self.tokenizer, body)
        if turn.message.tool_calls:
            leaves = message_leaves(turn.message, "reply")
            missing = list(dict.fromkeys(path for path, leaf in leaves if not occurs(leaf, text)))
            return f"trained text lacks {', '.join(missing[:3])}" if missing else ""
        if not any(self._plain(text, form) == self._plain(form, form) for form in forms(turn.message.content)):
            return f"trained text of {len(text)} characters, reply of {len(turn.message.content)}; they differ"
        return ""

    def _plain(self, text: str, source: str) -> str:
        """The text without the spoken tokens that `source` holds, and without one empty pair of such tokens.

        A template may move the tags of a thought, or put an empty pair before a reply that has no thought. A tag that
        is in neither place was not written by the data, and stays.
        """
        for word in self.spoken:
            if word not in source and word.startswith("<") and f"</{word[1:]}" in self.spoken:
                text = re.sub(rf"{re.escape(word)}\s*</{re.escape(word[1:])}", "", text, count=1)
        for word in self.spoken:
            text = text.replace(word, "", source.count(word))
        return text.strip()
