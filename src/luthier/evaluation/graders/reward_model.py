"""Reward models that were trained here judge the answer: one run, or several whose rewards are combined."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import EvaluationError
from luthier.evaluation.ensemble import Combination, combine
from luthier.evaluation.graders._asking import GraderMessage, rendered
from luthier.evaluation.graders.base import HOST_ERRORS, Errors, Grader, Host, NoScore, Sample, Score
from luthier.examples import ROLES, Message


class RewardModel(Grader):
    """The reward of the answer, normalized by what each model was validated on: 0 is an ordinary reply.

    It has no bounds. The chat before the answer is `input`, or the item's `messages` without a reply at their end, or
    its `prompt`.
    """

    of_openai: ClassVar[bool] = False  # a request must not name folders of this machine

    runs: tuple[str, ...] = Field(min_length=1, max_length=32)
    """Folders of trained runs whose objective is `reward` or `process_reward`."""
    combine: Combination = "mean"
    """`mean`, `minimum`, or `deviation`: the mean less `k` standard deviations."""
    k: float = Field(1.0, ge=0)
    """Of `deviation`."""
    input: tuple[GraderMessage, ...] = Field((), max_length=64)
    """The messages that the answer replies to; absent: the item's own."""

    def runs_asked(self) -> Sequence[str]:
        """All of them."""
        return self.runs

    def require(self, host: Host) -> None:
        """Raise an EvaluationError if the host opens no reward models, or not these."""
        if host.judge is None:
            raise EvaluationError(
                f"grader {self.name!r} asks trained reward models ({', '.join(self.runs)}), and none can be opened here"
            )

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """The combined reward; each model's own is a sub-reward."""
        chat = self._chat(sample, item, host.limits.text_chars)
        reply = Message("assistant", sample.output_text)
        if sample.output_tools:
            raise NoScore("the answer calls tools, and a reward is that of a text", Errors(other_error=True))
        if host.judge is None:
            raise NoScore("no reward model is at hand", Errors(model_grader_server_error=True))
        try:
            rewards = host.judge(self.runs, [*chat, reply])
        except HOST_ERRORS as error:
            why = str(error)[:1000] or type(error).__name__
            errors = Errors(model_grader_server_error=True, model_grader_server_error_details=why)
            raise NoScore(f"the reward models could not judge the answer: {why}", errors) from None
        parts = {} if len(self.runs) == 1 else dict(zip(self.runs, rewards, strict=True))
        return Score(combine(rewards, self.combine, self.k), parts)

    def _chat(self, sample: Sample, item: Mapping[str, Any], longest: int) -> list[Message]:
        if self.input:
            return rendered(self.input, sample, item, longest)
        messages = _listed(item.get("messages"))
        if messages is not None:  # turns of the assistant before the end belong to what was asked
            return messages[:-1] if messages[-1].role == "assistant" else messages
        prompt = item.get("prompt")
        found = [Message("user", prompt)] if isinstance(prompt, str) else _listed(prompt)
        if found is None:
            raise NoScore(
                "the item has neither 'messages' nor 'prompt', so there is no chat that the answer replies to; name it "
                "in the grader's 'input'",
                Errors(invalid_variable_error=True),
            )
        return found


def _listed(value: Any) -> list[Message] | None:
    """The messages of a list of `{"role", "content"}`; None if it is none.

    Raises:
        NoScore: one calls tools, which would be lost.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if not all(isinstance(m, Mapping) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in value):
        return None
    if any(m.get("tool_calls") for m in value):
        raise NoScore("the chat before the answer calls tools, and a reward is that of texts", Errors(other_error=True))
    return [Message(m["role"], m["content"]) for m in value]
