"""What the model writes is scored by training as it was when it was written.

Answers come from an attention of its own, which keeps what it has read and adds one token at a time; baselines,
evaluation and the server all use it. If it differs from the attention of training, a model that learned well answers
badly, and nothing else shows it.
"""

from typing import ClassVar

from luthier.examples import Row
from luthier.models.generate import Generation, generate
from luthier.models.load import LoadedModel
from luthier.preflight._cases import spread
from luthier.preflight._probe import PROBE_ROWS, evaluating, in_float32, scored, tolerance
from luthier.preflight.base import Gate, GateResult, Stage, Subject

PROMPT_TOKENS = 256
NEW_TOKENS = 8


class DecodeEquivalence(Gate):
    """Token by token and all at once, an answer has one probability."""

    proves: ClassVar[str] = "Answers written token by token score, in the pass of training, as they did when written."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "This model's attention does not fit generation; please report the model's name."

    def check(self, subject: Subject) -> GateResult:
        """Answer two real prompts greedily, once together and one of them alone, and score each answer again."""
        loaded, scorer = subject.need_model(), subject.need_models().policy
        prompts = _prompts(subject, loaded)
        if not prompts:
            return self.fails("There is no prompt to answer.")
        pairs: list[tuple[Row, Generation]] = []
        with evaluating(loaded.model), in_float32():
            for asked in (prompts, prompts[:1]):  # together they share a prefix, if they have one; alone there is none
                answers = generate(loaded, asked, max_new_tokens=NEW_TOKENS, stop_ids=frozenset())
                pairs += [(_row(p, a), a) for p, a in zip(asked, answers, strict=True)]
            batch = subject.batches.build([row for row, _ in pairs]).to(loaded.device)
            sums = [float(logprobs.sum()) for logprobs in scored(scorer, batch)]
        # a mean over tokens, so that the tolerance of one log-probability fits
        off = [abs(a.logprob_sum - total) / len(a.ids) for (_, a), total in zip(pairs, sums, strict=True)]
        allowed = tolerance(loaded.dtype).mean
        tokens = sum(len(a.ids) for _, a in pairs)
        said = (
            f"{tokens} tokens of {len(pairs)} answers: their log-probabilities differ on average by "
            f"{max(off):.2g} nats (allowed: {allowed:g})."
        )
        details = {"answers": len(pairs), "tokens": tokens, "mean_difference": max(off), "allowed": allowed}
        fits = all(value <= allowed for value in off)  # written so that a NaN fails
        return self.passes(said, **details) if fits else self.fails(said, **details)


def _prompts(subject: Subject, loaded: LoadedModel) -> list[list[int]]:
    """The two shortest of a few prompts, as they are served; of raw text, its beginning."""
    served = [list(turn.prompt_ids) for case in subject.cases for turn in case.turns[:1]]
    texts = served or [list(row.ids[: len(row.ids) // 2]) for row in subject.trained_rows]
    longest = min(PROMPT_TOKENS, loaded.max_tokens - NEW_TOKENS)
    return [ids[:longest] for ids in sorted(spread([t for t in texts if t], PROBE_ROWS), key=len)[:2]]


def _row(prompt: list[int], answer: Generation) -> Row:
    return Row((*prompt, *answer.ids), (0.0,) * len(prompt) + (1.0,) * len(answer.ids))
