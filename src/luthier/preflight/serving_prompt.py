"""A reply is trained after exactly the tokens that the server will send before it.

Training and serving that render prompts by different code drift apart: a system message, a tool list, a space before
the reply. Here both are compared token for token, for every trained reply of every row.
"""

from typing import ClassVar

from luthier.preflight._cases import shared_length
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class ServingPrompt(Gate):
    """What stands before a reply in training is what will be served."""

    proves: ClassVar[str] = "Before every trained reply stands, token for token, the prompt that will be served."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = (
        "Train and serve with one template; a row that cannot hold several turns must be split by turn."
    )

    def check(self, subject: Subject) -> GateResult:
        """Compare the row up to each reply with the served prompt for the messages before it."""
        if not subject.objective.writes:
            return self.passes("A head reads what is asked, rendered as it is served.")
        faults, compared = [], 0
        for case in subject.cases:
            for turn, row in case.turn_rows():
                compared += 1
                n = len(turn.prompt_ids)
                if row.ids[:n] != turn.prompt_ids:
                    at = shared_length(row.ids, turn.prompt_ids)
                    here, there = row.ids[at : at + 3], turn.prompt_ids[at : at + 3]
                    message = f"message {turn.index}: token {at} on, trained {list(here)}, served {list(there)}"
                    faults.append(Fault(row.id, message, case.where))
                elif not any(row.loss_mask[n : n + 1]):
                    message = (
                        f"message {turn.index}: the served prompt ends at token {n}, but training does not begin there"
                    )
                    faults.append(Fault(row.id, message, case.where))
        documents = not any(case.turns for case in subject.cases)
        success = (
            "Documents have no prompt." if documents else f"{compared:,} prompts are equal in training and serving."
        )
        return self.judge(faults, success, prompts=compared)
