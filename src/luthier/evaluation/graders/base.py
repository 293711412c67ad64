"""What a grader is: a number for one answer to one row, and the truth about everything that went wrong with it.

What is wrong with a grader itself is an `EvaluationError` of `validate`. What goes wrong while one answer is graded is
no exception: the reward is 0 and a flag says why, since one answer must not end the training of all others.

The wire shape is that of `openai.types.graders` and of `GraderRunResponse` in the openai client 3.54.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field
from typing_extensions import TypedDict

from luthier import registry
from luthier.config import Settings, build
from luthier.errors import EvaluationError, LuthierError, RecipeError
from luthier.evaluation.metrics._json import MAX_DEPTH, NotJson, is_too_deep, parse
from luthier.examples import Message

GRADERS = "luthier.evaluation.graders"
HOST_ERRORS = (LuthierError, OSError, RuntimeError, ValueError)
"""What a host's callables may raise; anything else is a mistake in the program, and is not taken for a bad answer."""


class Unanswered(Exception):
    """What a host raises that could not ask a model and wants no grade without its answer: no grader takes it for a bad
    answer, as it takes `HOST_ERRORS`."""


@dataclass(frozen=True)
class Sample:
    """An answer of the model that is trained: `sample` in templates and in Python graders."""

    output_text: str
    output_json: Any = None
    is_json: bool = False
    """Whether the text is JSON; `null` is JSON whose value is None."""
    output_tools: Sequence[Mapping[str, Any]] = ()
    """Tool calls as the API writes them: `{"id", "type", "function": {"name", "arguments"}}`."""

    @classmethod
    def of(cls, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> "Sample":
        """The sample of an answer's text; its JSON is there if the whole text is strict JSON."""
        try:
            return cls(text, parse(text), True, tools)
        except NotJson:
            return cls(text, output_tools=tools)

    def values(self) -> dict[str, Any]:
        """What templates and Python graders see."""
        return {
            "output_text": self.output_text,
            "output_json": self.output_json,
            "output_tools": list(self.output_tools),
        }


@dataclass(frozen=True)
class ModelReply:
    """What a host's model answered to a grader."""

    text: str
    tokens: int | None = None
    """Prompt and answer together, if the host counts them."""
    refused: bool = False
    """The model refused to answer, as hosted models can say beside their text."""


class SamplingParams(Settings):
    """How the grading model writes; what is not set is the host's choice."""

    max_completions_tokens: int | None = Field(None, ge=1, le=1_000_000)
    """The longest reply."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """Of models that reason."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Of the sampling."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is the likeliest reply."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Of the probability that is sampled from."""


@dataclass(frozen=True)
class Limits:
    """What one grade may take."""

    seconds: float = 60.0
    """Of a Python grader, by the clock and of processor time."""
    memory_bytes: int = 512 * 2**20
    """Address space of a Python grader."""
    text_chars: int = 1_000_000
    """The longest text that a template may become, and the longest input of a Python grader."""


AskModel: TypeAlias = Callable[[str, Sequence[Message], SamplingParams], ModelReply]
"""Called with the grader's `model`, the messages, and the sampling parameters that the grader sets."""
Embed: TypeAlias = Callable[[Sequence[str]], Sequence[Sequence[float]]]
Judge: TypeAlias = Callable[[Sequence[str], Sequence[Message]], Sequence[float]]
"""Called with the folders of trained reward models and a chat that ends with the answer; a reward from each."""


@dataclass(frozen=True)
class Host:
    """What graders may use of the program that they run in; what is absent is refused by `validate`."""

    ask_model: AskModel | None = None
    embed: Embed | None = None
    judge: Judge | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Errors:
    """`metadata.errors` of a response, with what raises each flag here."""

    formula_parse_error: bool = False
    """The formula has no finite value for these rewards, such as after a division by zero."""
    invalid_variable_error: bool = False
    """A template names what the item or the sample does not have."""
    model_grader_parse_error: bool = False
    """The grading model's reply holds no score in the range, or no label of the list."""
    model_grader_refusal_error: bool = False
    """The grading model refused."""
    model_grader_server_error: bool = False
    """The grading model, or the embedder, could not be asked."""
    model_grader_server_error_details: str | None = None
    other_error: bool = False
    """Anything without a flag of its own, such as vectors that cannot be compared."""
    python_grader_runtime_error: bool = False
    """The source raised, gave no number, ran into a limit, or was ended."""
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    """The jail could not be set up; the source did not run."""
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = False
    """`sample.output_json` is wanted, and the answer is not JSON."""
    truncated_observation_error: bool = False
    """What should be graded is too long. It is not cut: a part might be graded as if it were the whole."""
    unresponsive_reward_error: bool = False
    """The grader ran and its result is not a finite number."""

    @property
    def any(self) -> bool:
        """Whether a flag is set."""
        return any(value is True for value in asdict(self).values())

    def joined(self, other: "Errors") -> "Errors":
        """All flags of both; where both have details, the first ones stay."""
        return Errors(**{name: value or asdict(other)[name] for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Score:
    """What a grader found, before it is told as `Graded`."""

    reward: float
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    """The grading model that was asked."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """By grading model, where the host counts them."""


class NoScore(Exception):
    """An answer that cannot be graded; `Grader.grade` turns it into flags."""

    def __init__(self, problem: str, errors: Errors, so_far: Score | None = None) -> None:
        super().__init__(problem)
        self.problem, self.errors, self.so_far = problem, errors, so_far or Score(0.0)


@dataclass(frozen=True)
class Graded:
    """One grade."""

    name: str
    type: str
    reward: float
    errors: Errors
    execution_time: float
    """Seconds."""
    problem: str = ""
    """What went wrong, in words; the response has only flags for most of it."""
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    sampled_model_name: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


class Grader(Settings, ABC):
    """Implement `score` in one new file beside this one; nothing else changes."""

    of_openai: ClassVar[bool] = True
    """Whether OpenAI's API has it. Others are for recipes, whose writer owns the machine: the service refuses them."""

    name: str = Field(min_length=1, max_length=256)
    """What it is called in results."""

    @abstractmethod
    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """The reward of an answer.

        Raises:
            NoScore: it cannot be graded.
        """

    def parts(self) -> "Sequence[Grader]":
        """The graders that it is made of."""
        return ()

    def runs_asked(self) -> Sequence[str]:
        """Folders of the runs whose trained models it asks."""
        return ()

    def models_asked(self) -> Sequence[str]:
        """Models of the host that it asks."""
        return ()

    def require(self, host: Host) -> None:
        """Whether it can work at all with this host.

        Raises:
            EvaluationError: the host lacks what it needs, or it is wrong in a way that its settings do not show.
        """
        return None

    def grade(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Graded:
        """The grade of an answer to the row `item`; whatever is wrong with either is a flag, never an exception."""
        start = time.perf_counter()
        errors, problem = Errors(), ""
        try:
            score = self.score(sample, item, host)
            if not math.isfinite(score.reward):
                raise NoScore(f"the reward is {score.reward}", Errors(unresponsive_reward_error=True), score)
        except NoScore as failure:
            score, errors, problem = replace(failure.so_far, reward=0.0), failure.errors, failure.problem
        return Graded(
            self.name,
            registry.name_of(self),
            float(score.reward),
            errors,
            time.perf_counter() - start,
            problem,
            dict(score.sub_rewards),
            score.model,
            dict(score.tokens),
        )


def build_grader(values: Mapping[str, Any], at: Sequence[str] = ("grader",)) -> Grader:
    """The grader that plain values describe; `at` is where they stand, for messages.

    Raises:
        RecipeError: the type is unknown, or a setting is unknown, missing or wrong.
    """
    kind = values.get("type")
    if not isinstance(kind, str):
        known = ", ".join(registry.names(GRADERS))
        raise RecipeError(f"'{'.'.join(at)}.type' is {kind!r:.80}; expected one of {known}")
    cls = registry.load_class(GRADERS, kind, Grader)  # type: ignore[type-abstract]
    return build(cls, {key: value for key, value in values.items() if key != "type"}, at)


def validate(values: Mapping[str, Any], host: Host) -> Grader:
    """The grader that a request describes, once it is sure that it can work here.

    Raises:
        EvaluationError: it is wrong in itself, is none of OpenAI's, or needs what the host does not have.
    """
    if is_too_deep(values):
        raise EvaluationError(f"the grader is nested more than {MAX_DEPTH} deep; no grader needs that")
    try:
        grader = build_grader(values)
    except RecipeError as error:
        raise EvaluationError(str(error)) from None
    for one in (grader, *grader.parts()):
        if not one.of_openai:
            raise EvaluationError(
                f"grader {one.name!r} is of type {registry.name_of(one)!r}, which this API does not have"
            )
    grader.require(host)
    return grader


class GradeMetadata(TypedDict):
    """How a grade came to be."""

    name: str
    type: str
    errors: dict[str, bool | str | None]
    """The fields of `Errors`."""
    execution_time: float
    scores: dict[str, float]
    sampled_model_name: str | None
    token_usage: int | None


class GradeObject(TypedDict):
    """One grade."""

    reward: float
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, int]
    metadata: GradeMetadata


def response_body(graded: Graded) -> GradeObject:
    """The answer of `POST /fine_tuning/alpha/graders/run`, as JSON values."""
    return {
        "reward": graded.reward,
        "sub_rewards": dict(graded.sub_rewards),
        "model_grader_token_usage_per_model": {_whole(model): count for model, count in graded.tokens.items()},
        "metadata": {
            "name": _whole(graded.name),
            "type": graded.type,
            "errors": {key: _whole(v) if isinstance(v, str) else v for key, v in asdict(graded.errors).items()},
            "execution_time": graded.execution_time,
            "scores": dict(graded.sub_rewards) or {_whole(graded.name): graded.reward},
            "sampled_model_name": None if graded.sampled_model_name is None else _whole(graded.sampled_model_name),
            "token_usage": sum(graded.tokens.values()) if graded.tokens else None,
        },
    }


def _whole(text: str) -> str:
    """The text without halves of characters, which no UTF-8 body can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
