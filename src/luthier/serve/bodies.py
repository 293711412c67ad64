"""The bodies that `chat`, `completion`, `decision` and `embedding_request` read, as models: for documents alone.

The readers say what is wrong in OpenAI's words, down to a part of a message; these say the same as JSON Schema. A
test holds one against the other. What a schema cannot say stands in a description.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from luthier.serve.chat import (
    MAX_BIASES,
    MAX_MESSAGES,
    MAX_N,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
)
from luthier.serve.completion import MAX_LOGPROBS, MAX_PROMPT_IDS
from luthier.serve.decision import MAX_CHOICES, MAX_ITEMS, MAX_OPTIONS, MAX_QUESTIONS
from luthier.serve.embedding_request import MAX_INPUTS, MAX_TOKENS
from luthier.serve.fields import NAME_LIMIT
from luthier.serve.tool_choice import MAX_TOOLS
from luthier.serve.work import MAX_PROMPTS

Name: TypeAlias = Annotated[str, Field(max_length=NAME_LIMIT)]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Tokens: TypeAlias = Annotated[int, Field(ge=1, le=2**31)]
Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
Filled: TypeAlias = Annotated[str, Field(min_length=1)]
Said: TypeAlias = Annotated[str, Field(pattern=r"\S")]
Ids: TypeAlias = Annotated[list[int], Field(min_length=1, max_length=MAX_PROMPT_IDS)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=())


class TextPart(_Closed):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Instruction(_Closed):
    """What the model is told, or asked."""

    role: Literal["system", "developer", "user"]
    content: str | list[TextPart]
    name: Name | None = None


class ToolReply(_Closed):
    """What a tool gave."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: Name
    name: Name | None = None


class Called(_Closed):
    """A function that the model called."""

    name: Name
    arguments: str
    """JSON text of an object; an empty one is `{}`."""


class Call(_Closed):
    """A call that the model asked for."""

    function: Called
    id: Name | None = None
    type: Literal["function"] | None = None
    index: Any = None


class Reply(_Closed):
    """What the model said before; without `tool_calls` its content is required."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MAX_TOOLS)] | None = None
    name: Name | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


ChatMessageBody: TypeAlias = Annotated[Instruction | ToolReply | Reply, Field(discriminator="role")]


class Function(_Closed):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Whether arguments are held to `parameters` while they are written."""


class Tool(_Closed):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Closed):
    """One of the functions."""

    name: Name


class NamedTool(_Closed):
    """One of the tools; as `tool_choice` it must be called."""

    type: Literal["function"]
    function: NamedFunction


class SomeTools(_Closed):
    """Some of the tools, of which one may or must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(_Closed):
    """Only some of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: SomeTools


class StreamOptions(_Closed):
    """With `stream` alone."""

    include_usage: bool | None = None
    include_obfuscation: Any = None


class TextFormat(_Closed):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"]


class NamedSchema(_Closed):
    """A schema that answers are held to; of at most 64 KiB, and of what can be enforced."""

    name: Name
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class SchemaFormat(_Closed):
    """JSON by a schema; not together with tools."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


Format: TypeAlias = Annotated[TextFormat | SchemaFormat, Field(discriminator="type")]


class _Common(_Closed):
    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias | None], Field(max_length=MAX_BIASES)]
        | None
    ) = None
    """By token id."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    """Only if `stream` is true."""
    user: Any = None
    """No effect."""


class ChatBody(_Common):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessageBody], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    """The older name; if both are given they are equal."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Only if `logprobs` is true."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Literal["auto", "none", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")] | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    metadata: Any = None
    """No effect."""
    store: Any = None
    """No effect."""
    service_tier: Any = None
    """No effect."""
    safety_identifier: Any = None
    """No effect."""
    prompt_cache_key: Any = None
    """No effect."""
    prompt_cache_retention: Any = None
    """No effect."""
    prompt_cache_options: Any = None
    """No effect."""
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    reasoning_effort: None = None
    verbosity: None = None


class CompletionBody(_Common):
    """POST /v1/completions"""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    """Texts or token ids, one or several."""
    max_tokens: Tokens | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    """Only if it equals `n`."""
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class EmbeddingBody(_Closed):
    """POST /v1/embeddings"""

    model: Name
    input: Annotated[
        Filled | Ids | Annotated[list[Filled | Ids], Field(min_length=1, max_length=MAX_INPUTS)],
        Field(description=f"Texts or token ids, one or several; of at most {MAX_TOKENS:,} tokens in all."),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Tokens | None = None
    """Only if it is what the model has."""
    user: Any = None
    """No effect."""


class JudgedText(_Closed):
    """A piece of what is judged."""

    type: Literal["input_text", "output_text"]
    text: str
    prompt_cache_breakpoint: Any = None
    """No effect."""


class JudgedRefusal(_Closed):
    """What the model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str
    prompt_cache_breakpoint: Any = None
    """No effect."""


class JudgedJson(_Closed):
    """Values that are judged."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]
    prompt_cache_breakpoint: Any = None
    """No effect."""


Judged: TypeAlias = str | list[Annotated[JudgedText | JudgedRefusal | JudgedJson, Field(discriminator="type")]]


class JudgedMessage(_Closed):
    """A turn of the chat that is judged."""

    role: Literal["system", "developer", "user"]
    content: Judged
    type: Literal["message"] | None = None


class JudgedReply(_Closed):
    """What the model said in it."""

    role: Literal["assistant"]
    content: Judged
    type: Literal["message"] | None = None
    phase: Literal["final_answer"] | None = None


class JudgedCall(_Closed):
    """A call that the model asked for."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    """JSON text of an object; an empty one is `{}`."""
    id: Any = None
    """No effect."""
    status: Literal["completed"] | None = None
    namespace: None = None


class JudgedOutput(_Closed):
    """What a function gave; `call_id` names a call before it."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Judged
    id: Any = None
    """No effect."""
    status: Literal["completed"] | None = None


JudgedItem: TypeAlias = JudgedMessage | JudgedReply | JudgedCall | JudgedOutput


class Choice(_Closed):
    """One that can be made; no two of a question are the same."""

    value: Said | bool
    description: str | None = None


class Level(_Closed):
    """One of a scale; no two are called the same."""

    label: Said
    description: str | None = None


class Predicate(_Closed):
    """Whether a statement is true."""

    type: Literal["predicate"]
    instructions: Judged
    name: Name | None = None


class ChoiceQuestion(_Closed):
    """Which of some choices."""

    type: Literal["choice"]
    instructions: Judged
    name: Name | None = None
    choices: Annotated[list[Choice], Field(min_length=2, max_length=MAX_CHOICES)]


class ScoreQuestion(_Closed):
    """Which level of a scale, from the lowest."""

    type: Literal["score"]
    instructions: Judged
    name: Name | None = None
    levels: Annotated[list[Level], Field(min_length=2, max_length=MAX_CHOICES)]


Question: TypeAlias = Annotated[Predicate | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionBody(_Closed):
    """POST /v1/decisions"""

    model: Name
    input: str | Annotated[list[JudgedItem], Field(min_length=1, max_length=MAX_ITEMS)]
    questions: Annotated[
        list[Question],
        Field(min_length=1, max_length=MAX_QUESTIONS, description=f"With at most {MAX_OPTIONS:,} options in all."),
    ]
    prompt_cache_key: Any = None
    """No effect."""
    prompt_cache_options: Any = None
    """No effect."""
    safety_identifier: Any = None
    """No effect."""
