"""What the graders that ask a model share: their messages, the question, and a JSON object in the reply."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pydantic import Field

from luthier.config import Settings
from luthier.errors import EvaluationError
from luthier.evaluation.graders._template import Template, render
from luthier.evaluation.graders.base import (
    HOST_ERRORS,
    Errors,
    Grader,
    Host,
    ModelReply,
    NoScore,
    Sample,
    SamplingParams,
    Score,
)
from luthier.evaluation.metrics._json import NotJson, find
from luthier.examples import Message

MAX_REPLY_CHARS = 200_000


class GraderText(Settings):
    """A piece of a message. Blocks of images and sound are refused: models here read text."""

    type: Literal["input_text", "output_text"]
    """As the API names it."""
    text: Template
    """May hold variables."""


Block: TypeAlias = Template | GraderText


class GraderMessage(Settings):
    """A message to the grading model."""

    role: Literal["user", "assistant", "system", "developer"]
    """Who says it."""
    content: Template | GraderText | tuple[Block, ...]
    """What is said: a text, or text blocks, which are joined by line ends."""
    type: Literal["message"] | None = None
    """Always `message`."""


class ModelGrader(Grader):
    """A grader that asks a model of the host."""

    model: str = Field(min_length=1, max_length=256)
    """The host knows what it means."""
    input: tuple[GraderMessage, ...] = Field(min_length=1, max_length=64)
    """The messages; what form the answer must have is said after the last one."""

    def models_asked(self) -> tuple[str, ...]:
        """One."""
        return (self.model,)

    def require(self, host: Host) -> None:
        """Raise an EvaluationError if the host has no model."""
        if host.ask_model is None:
            raise EvaluationError(
                f"grader {self.name!r} asks the model {self.model!r}, and there is no model to grade with here; "
                "serve one, or use a grader that needs none (string_check, text_similarity, python)"
            )

    def ask(
        self, sample: Sample, item: Mapping[str, Any], host: Host, form: str, sampling: SamplingParams
    ) -> tuple[str, Score]:
        """The reply without the model's thinking, and a score of 0 that knows the model and its tokens.

        Raises:
            NoScore: a variable has no value, or the model could not be asked or refused.
        """
        messages = self._messages(sample, item, host.limits.text_chars, form)
        asked = Score(0.0, model=self.model)
        if host.ask_model is None:
            raise _no_reply("no model is at hand to grade with", asked)
        try:
            reply: ModelReply = host.ask_model(self.model, messages, sampling)
        except HOST_ERRORS as error:
            raise _no_reply(str(error)[:1000] or type(error).__name__, asked) from None
        asked = Score(0.0, model=self.model, tokens={} if reply.tokens is None else {self.model: reply.tokens})
        if reply.refused:
            raise NoScore("the grading model refused", Errors(model_grader_refusal_error=True), asked)
        if len(reply.text) > MAX_REPLY_CHARS:
            raise unreadable(reply.text, f"end within {MAX_REPLY_CHARS} characters", asked)
        return _without_thinking(reply.text), asked

    def _messages(self, sample: Sample, item: Mapping[str, Any], longest: int, form: str) -> list[Message]:
        messages = rendered(self.input, sample, item, longest)
        last = messages[-1]
        if last.role == "assistant":  # templates of models want the two to alternate, and a question at the end
            return [*messages, Message("user", form)]
        return [*messages[:-1], Message(last.role, f"{last.content}\n\n{form}")]


def rendered(messages: Sequence[GraderMessage], sample: Sample, item: Mapping[str, Any], longest: int) -> list[Message]:
    """The messages with the values of their variables.

    Raises:
        NoScore: a variable has no value, or a text becomes too long.
    """
    found = []
    for message in messages:
        blocks = message.content if isinstance(message.content, tuple) else (message.content,)
        texts = [b if isinstance(b, str) else b.text for b in blocks]
        found.append(Message(message.role, "\n".join(render(t, sample, item, longest) for t in texts)))
    return found


def _without_thinking(text: str) -> str:
    """The text after the thinking that it begins with; a tag elsewhere may be quoted from the answer that is graded."""
    text = text.strip()
    return text.partition("</think>")[2].strip() if text.startswith("<think>") else text


def _no_reply(why: str, asked: Score) -> NoScore:
    errors = Errors(model_grader_server_error=True, model_grader_server_error_details=why)
    return NoScore(f"the grading model gave no reply: {why}", errors, asked)


def unreadable(reply: str, expected: str, asked: Score) -> NoScore:
    """The error for a reply without what was asked for."""
    problem = f"the grading model's reply {reply[:200]!r} has no {expected}"
    return NoScore(problem, Errors(model_grader_parse_error=True), asked)


def value_in(reply: str, keys: Sequence[str]) -> Any:
    """The value of the first of `keys` in the first JSON object of a reply; None if there is none."""
    start = reply.find("{")
    if start < 0:
        return None
    try:
        found = find(reply[start:])
    except NotJson:
        return None
    return next((found[key] for key in keys if key in found), None) if isinstance(found, dict) else None
