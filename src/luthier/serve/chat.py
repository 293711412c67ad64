"""The body of /v1/chat/completions as typed values. A field is honored, documented to change nothing, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.examples import ROLES, Message, ToolCall
from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.fields import NAME_LIMIT, Fields, parse_body, parse_object, schema_text
from luthier.serve.tool_choice import MAX_TOOLS, CallRule, calling_of, tools_of
from luthier.serve.work import Sampling

NO_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
)
"""Fields that describe a request to a hosted service; no value of theirs changes an answer."""

MAX_N = 8
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_MESSAGES = 2048
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Common:
    """What both kinds of completion share. `max_tokens` is None if the client set none."""

    model: str
    sampling: Sampling
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request to /v1/chat/completions."""

    common: Common
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    """Empty also for `tool_choice` "none": then neither prompt nor answer knows of tools."""
    max_tokens: int | None
    schema: str | None = None
    """JSON schema that the answer is held to."""
    calls: CallRule | None = None
    """What calls are held to; None: to nothing."""


def parse_chat(body: bytes) -> ChatRequest:
    """Read and check a body.

    Raises:
        ApiError: 400, naming the field.
    """
    fields = Fields(parse_body(body))
    common = parse_common(fields, _chat_logprobs(fields))
    messages = messages_of(fields)
    tools, calls = calling_of(fields, tools_of(fields))
    max_tokens = _max_tokens(fields)
    schema = _response_format(fields)
    if schema is not None and tools:
        raise unsupported("response_format", "an answer that is held to a schema cannot call tools")
    _refuse_the_rest(fields)
    fields.without_effect(NO_EFFECT)
    fields.finish()
    return ChatRequest(common, messages, tools, max_tokens, schema, calls)


def parse_common(fields: Fields, top_logprobs: int | None) -> Common:
    """The fields that chat and plain completions share."""
    stream = fields.flag("stream")
    return Common(
        model=fields.required_text("model", NAME_LIMIT),
        sampling=Sampling(
            temperature=fields.number("temperature", 0, 2, 1.0),
            top_p=fields.number("top_p", 0, 1, 1.0),
            seed=fields.integer("seed", -(2**63), 2**63 - 1),
            presence_penalty=fields.number("presence_penalty", -2, 2, 0.0),
            frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
            logit_bias=_logit_bias(fields),
            top_logprobs=top_logprobs,
        ),
        n=fields.integer("n", 1, MAX_N) or 1,
        stop=_stop(fields),
        stream=stream,
        include_usage=_include_usage(fields, stream),
    )


def _chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise ApiError("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    return (top or 0) if wanted else None


def _logit_bias(fields: Fields) -> dict[int, float]:
    value = fields.get("logit_bias")
    if value is None:
        return {}
    bias = Fields(value, fields.path("logit_bias"))
    if len(value) > MAX_BIASES:
        raise ApiError(f"'logit_bias' may have at most {MAX_BIASES} entries.", param="logit_bias")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise ApiError("'logit_bias' must map token ids to numbers.", param="logit_bias")
    return {int(key): bias.number(key, -100, 100, 0.0) for key in value}


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise ApiError("'stop' must be a string or an array of strings that are not empty.", param="stop")
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_CHARACTERS for s in stops):
        raise ApiError(f"'stop' may hold {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters.", param="stop")
    return tuple(stops)


def _include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.get("stream_options")
    if value is None:
        return False
    if not stream:
        raise ApiError("'stream_options' needs 'stream' to be true.", param="stream_options")
    options = Fields(value, "stream_options")
    include = options.flag("include_usage")
    options.without_effect(["include_obfuscation"])  # pads hosted traffic; there is nobody to hide from here
    options.finish()
    return include


def _max_tokens(fields: Fields) -> int | None:
    new = fields.integer("max_completion_tokens", 1, 2**31)
    old = fields.integer("max_tokens", 1, 2**31)
    if new is not None and old is not None and new != old:
        raise ApiError("'max_tokens' and 'max_completion_tokens' differ; give one of them.", param="max_tokens")
    return new if new is not None else old


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The messages of a chat, at least one."""
    values = fields.array("messages", MAX_MESSAGES)
    if not values:
        raise ApiError(
            "'messages' must have at least one message.", param="messages", code="missing_required_parameter"
        )
    return tuple(_message(Fields(value, f"messages[{i}]")) for i, value in enumerate(values))


def _message(fields: Fields) -> Message:
    role = fields.required_text("role")
    if role not in ROLES:
        raise ApiError(f"{fields.path('role')!r} must be one of {', '.join(ROLES)}.", param=fields.path("role"))
    calls = _tool_calls(fields) if role == "assistant" else ()
    content = _content(fields, required=not calls)
    call_id = fields.text("tool_call_id", limit=NAME_LIMIT) if role == "tool" else None
    if role == "tool" and call_id is None:
        raise ApiError(f"{fields.path('tool_call_id')!r} is required.", param=fields.path("tool_call_id"))
    if role == "assistant":  # what the client's own message objects carry along
        for name in ("refusal", "audio", "function_call"):
            fields.only(name, (), "only text and tool calls can be part of the history")
        fields.only("annotations", ([],), "only text and tool calls can be part of the history")
    speaker = fields.text("name", limit=NAME_LIMIT)
    fields.finish()
    return Message(role, content, calls, call_id, speaker)


def _content(fields: Fields, required: bool) -> str:
    value = fields.get("content")
    if value is None:
        if required:
            raise ApiError(f"{fields.path('content')!r} is required.", param=fields.path("content"))
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", "a string or an array of parts")
    # joined as the reader of training rows joins them
    return "\n".join(_part(Fields(part, f"{fields.path('content')}[{i}]")) for i, part in enumerate(value))


def _part(fields: Fields) -> str:
    kind = fields.required_text("type")
    if kind != "text":
        raise unsupported(fields.path("type"), f"parts of the type {kind[:40]!r} cannot be read, only text")
    text = fields.required_text("text")
    fields.finish()
    return text


def _tool_calls(fields: Fields) -> tuple[ToolCall, ...]:
    values = fields.array("tool_calls", MAX_TOOLS) or []
    return tuple(_tool_call(Fields(value, f"{fields.path('tool_calls')}[{i}]")) for i, value in enumerate(values))


def _tool_call(fields: Fields) -> ToolCall:
    fields.only("type", ("function",), "only functions can be called")
    identity = fields.text("id", limit=NAME_LIMIT)
    fields.without_effect(["index"])  # streamed calls carry their position along
    function = Fields(fields.get("function"), fields.path("function"))
    name = function.required_text("name", NAME_LIMIT)
    text = function.required_text("arguments")
    function.finish()
    fields.finish()
    at = function.path("arguments")
    return ToolCall(name, parse_object(text or "{}", repr(at), at), identity)


def _refuse_the_rest(fields: Fields) -> None:
    fields.only("modalities", (["text"],), "answers are text")
    for name, why in (
        ("functions", "it is deprecated; use 'tools'"),
        ("function_call", "it is deprecated; use 'tool_choice'"),
        ("audio", "answers are text"),
        ("prediction", "there is no speculative decoding"),
        ("web_search_options", "nothing is fetched from the network"),
        ("moderation", "nothing is moderated"),
        ("reasoning_effort", "it is not a property of this model; say it in a message if it was trained so"),
        ("verbosity", "it is not a property of this model; say it in a message if it was trained so"),
    ):
        fields.only(name, (), why)


def _response_format(fields: Fields) -> str | None:
    """The JSON schema that the answer is held to; None: text."""
    value = fields.get("response_format")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.wrong("response_format", "an object")
    own = Fields(value, fields.path("response_format"))
    kind = own.required_text("type")
    schema: str | None = None
    if kind == "json_object":
        schema = schema_text({"type": "object"})
    elif kind == "json_schema":
        schema = _schema(own)
    elif kind != "text":
        raise unsupported(own.path("type"), "answers are text, a JSON object, or held to a JSON schema")
    own.finish()
    return schema


def _schema(fields: Fields) -> str:
    value = fields.get("json_schema")
    if not isinstance(value, dict):
        raise fields.wrong("json_schema", "an object")
    own = Fields(value, fields.path("json_schema"))
    own.required_text("name", NAME_LIMIT)
    own.text("description")
    own.flag("strict")  # answers are held to the schema either way
    schema = own.get("schema")
    if schema is not None and not isinstance(schema, dict):
        raise own.wrong("schema", "an object")
    own.finish()
    return schema_text({"type": "object"} if schema is None else schema)
