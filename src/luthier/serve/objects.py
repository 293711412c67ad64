"""OpenAI's completions, vectors and decisions as they are answered here: return types that mypy holds the code to."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class Usage(TypedDict):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(TypedDict):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Of a chat choice."""

    content: list[TokenLogprob]
    refusal: NotRequired[None]
    """Told by our own engine; vLLM leaves it out."""


class CalledFunction(TypedDict):
    """Its name and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallObject(TypedDict):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCallObject]]


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(TypedDict):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(TypedDict):
    """Of a plain completion: one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One of the continuations."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(TypedDict):
    """The continuation of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage


class EmbeddingObject(TypedDict):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Base64 is of little-endian float32."""


class EmbeddingUsage(TypedDict):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors of a request."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


class PredicateAnswer(TypedDict):
    """How probable a statement is."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(TypedDict):
    """Of one choice."""

    value: str | bool
    probability: float


class ChoiceAnswer(TypedDict):
    """The likeliest choice."""

    type: Literal["choice"]
    name: str | None
    confidence: float
    choice: str | bool
    probabilities: list[ChoiceProbability]


class LevelProbability(TypedDict):
    """Of one level; `value` is its number, from 0."""

    label: str
    value: int
    probability: float


class ScoreAnswer(TypedDict):
    """The mean level."""

    type: Literal["score"]
    name: str | None
    confidence: float
    score: float
    probabilities: list[LevelProbability]


class InputDetails(TypedDict):
    """Of what was read."""

    cache_write_tokens: int
    cached_tokens: int


class OutputDetails(TypedDict):
    """Of what was written."""

    reasoning_tokens: int


class DecisionUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Decision(TypedDict):
    """The answers to the questions of a request, in their order."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage
