"""The token that begins a sequence stands once, at the beginning, in training as in serving.

A template that writes it and a tokenizer that adds it give two; a server that forgets it gives none. Either makes a
worse model without an error. Some models use the same token to open every turn, which is told apart by a probe.
"""

from itertools import pairwise
from typing import Any, ClassVar

from luthier.examples import Message
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject


class SingleBos(Gate):
    """At most one beginning-of-sequence token, and the same one in training and serving."""

    proves: ClassVar[str] = "The beginning-of-sequence token stands at most once, at position 0, as it does in serving."
    stage: ClassVar[Stage] = "rows"
    advice: ClassVar[str] = "The template must write the token once, at its beginning, or leave it to the tokenizer."

    def check(self, subject: Subject) -> GateResult:
        """Count the token in each row and compare the first token with that of a served prompt."""
        bos: int | None = subject.tokenizer.bos_token_id
        if bos is None:
            return self.passes("This tokenizer has no such token.")
        short, long = [], []
        if any(case.messages for case in subject.cases):  # a base model may have no chat template to probe
            short = subject.template.prompt_ids((Message("user", "a"),))
            long = subject.template.prompt_ids((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
        opens_turns = long.count(bos) > short.count(bos)
        faults = [Fault("", problem) for problem in [_served(subject.tokenizer, bos, short)] if problem and short]
        for case in subject.cases:
            for row in case.rows:
                problem = _wrong(row.ids, bos, opens_turns)
                begins = bool(case.turns) and row.ids[:1] == (bos,)
                if not problem and case.turns and begins != (short[:1] == [bos]):
                    problem = "it begins otherwise than a served prompt: one has the token, the other has not"
                if problem:
                    faults.append(Fault(row.id, problem, case.where))
        kind = "opens every turn" if opens_turns else "stands once or not at all"
        return self.judge(faults, f"The token {bos} {kind}.", bos_id=bos, opens_turns=opens_turns)


def _served(tokenizer: Any, bos: int, prompt: list[int]) -> str:
    """What is wrong with the beginning of a served prompt; empty if nothing."""
    adds = list(tokenizer("a")["input_ids"])[:1] == [bos]
    if adds and prompt[:1] != [bos]:
        return f"the tokenizer begins every text with {bos}, but a served prompt begins with {prompt[:1]}"
    return "a served prompt begins with the token twice" if prompt[:2] == [bos, bos] else ""


def _wrong(ids: tuple[int, ...], bos: int, opens_turns: bool) -> str:
    places = [i for i, token in enumerate(ids) if token == bos]
    doubled = [a for a, b in pairwise(places) if b == a + 1]
    if doubled:
        return f"the token {bos} stands twice in a row at position {doubled[0]}"
    if not opens_turns and len(places) > 1:
        return f"the token {bos} stands {len(places)} times, at positions {places[:5]}"
    if not opens_turns and places and places[0] != 0:
        return f"the token {bos} stands at position {places[0]}, expected 0"
    return ""
