"""The model is taught to stop.

If the token that ends a turn is not trained on (masked because it is also the padding token, or never written), the
tuned model talks without end.
"""

from typing import ClassVar

from luthier.preflight._cases import Case, spans
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

LEAST_SHARE = 0.99


class EndOfTurn(Gate):
    """A stop token ends each trained reply and is trained on."""

    proves: ClassVar[str] = "At least 99 % of the trained replies end with a trained token that stops the server."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "The template must write the model's end-of-turn token after each reply, and that token must be trained on; "
        "choose another model.template, or mend the file that it names."
    )

    def check(self, subject: Subject) -> GateResult:
        """Look at the last token of each trained span; spans that the cut ended are the gate `truncation`'s matter."""
        stops = subject.template.stop_ids
        ended, faults = 0, []
        for case in subject.cases:
            for wanted, found, row_id in _ends(case, stops):
                ended += min(wanted, found)
                if found < wanted:
                    faults.append(
                        Fault(row_id, f"{wanted - found} of {wanted} replies have no trained end", case.where)
                    )
        total = ended + sum(1 for _ in faults)
        share = ended / total if total else 0.0
        details = {"replies_ended": ended, "share": share, "stop_ids": sorted(stops)}
        if total and share >= LEAST_SHARE:
            return self.passes(f"{share:.1%} of the replies end with a trained stop token.", **details)
        if not total:
            return self.fails("There is no reply that ends within its row.", **details)
        return self.judge(faults, "", **details)


def _ends(case: Case, stops: frozenset[int]) -> list[tuple[int, int, str]]:
    """(ends wanted, ends found, row id) of each row that the cut left whole."""
    result = []
    for index, row in enumerate(case.whole):
        if index >= len(case.rows) or len(case.rows[index].ids) < len(row.ids):
            continue
        kept = case.rows[index]
        everything = len(spans(kept)) == 1 and spans(kept)[0].start <= 1  # loss on all tokens: one span, many replies
        turns = [turn for turn, holder in case.turn_rows() if holder is row]
        if everything and turns:
            first = min(len(turn.prompt_ids) for turn in turns)
            found = sum(1 for i in range(first, len(kept.ids)) if kept.loss_mask[i] and kept.ids[i] in stops)
            result.append((len(turns), found, kept.id))
        else:
            ends = [kept.ids[span.end - 1] in stops for span in spans(kept)]
            result.append((max(len(turns), 1), sum(ends), kept.id))
    return result
