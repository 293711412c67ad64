"""Several replies share a row only if the earlier ones look the same when the later ones are served.

Some templates render the past otherwise (Qwen3 removes earlier thinking). One row for the whole conversation would
then train on histories that no server sends; such a conversation has to become one row for each reply.
"""

from typing import ClassVar

from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class PrefixPreserved(Gate):
    """The prompt of each reply begins with the prompt, and the tokens, of the replies before it."""

    proves: ClassVar[str] = (
        "Where several replies are trained in one row, each later prompt begins with the earlier ones."
    )
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "This template rewrites the past; train one row for each reply (data.loss_on = 'last_assistant')."
    )

    def check(self, subject: Subject) -> GateResult:
        """For each pair of neighboring replies in one row, compare the prompts and the reply between them."""
        faults, pairs = [], 0
        for case in subject.cases:
            if len(case.whole) != 1:
                continue
            row = case.whole[0].ids
            for earlier, later in zip(case.turns, case.turns[1:], strict=False):
                pairs += 1
                n = len(earlier.prompt_ids)
                if later.prompt_ids[:n] != earlier.prompt_ids:
                    message = f"the prompt of message {later.index} does not begin with that of message {earlier.index}"
                    faults.append(Fault(case.row_id, message, case.where))
                elif row[n : len(later.prompt_ids)] != later.prompt_ids[n:]:
                    message = (
                        f"message {earlier.index} is trained otherwise than it is served before message {later.index}"
                    )
                    faults.append(Fault(case.row_id, message, case.where))
        return self.judge(faults, f"{pairs:,} pairs of replies share a row, all with one history.", pairs=pairs)
