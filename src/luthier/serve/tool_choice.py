"""What a request says about calls: whether one must be made, of which tools, how many, and how strictly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.fields import NAME_LIMIT, Fields

MAX_TOOLS = 128
Tools: TypeAlias = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class CallRule:
    """What replies are held to while they are written."""

    param: str
    """The field that asked for it."""
    must: bool = False
    """A reply is a call, or calls; otherwise text, in which a call may open."""
    single: bool = False
    """One call at most."""
    names: tuple[str, ...] | None = None
    """The tools that may be called; None: all."""


def tools_of(fields: Fields) -> Tools:
    """The tools that are offered."""
    values = fields.array("tools", MAX_TOOLS) or []
    tools = tuple(_tool(value, f"tools[{i}]") for i, value in enumerate(values))
    names = [name_of(tool) for tool in tools]
    if twice := next((i for i, name in enumerate(names) if name in names[:i]), None):
        at = f"tools[{twice}].function.name"
        raise ApiError(f"{at!r} is the name of another tool, too: {names[twice]!r}.", param=at)
    return tools


def name_of(tool: Mapping[str, Any]) -> str:
    """What calls of a tool call it."""
    return str(tool["function"]["name"])


def is_strict(tool: Mapping[str, Any]) -> bool:
    """Whether arguments must fit the tool's schema."""
    return tool["function"].get("strict") is True


def _tool(value: Any, at: str) -> Mapping[str, Any]:
    fields = Fields(value, at)
    if fields.required_text("type") != "function":
        raise unsupported(fields.path("type"), "only functions can be called")
    function = Fields(fields.get("function"), fields.path("function"))
    function.required_text("name", NAME_LIMIT)
    function.text("description")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise function.wrong("parameters", "an object")
    function.flag("strict")
    function.finish()
    fields.finish()
    return dict(value)  # as it came, key order and all: so it stands in training rows, and so it must be rendered


def calling_of(fields: Fields, tools: Tools) -> tuple[Tools, CallRule | None]:
    """The tools that the prompt shows ("none" leaves them out), and what calls are held to; None: to nothing.

    Raises:
        ApiError: 400, naming the field.
    """
    given, choice = fields.get("parallel_tool_calls"), fields.get("tool_choice")
    single = given is not None and not fields.flag("parallel_tool_calls")
    if choice == "none":
        return (), None
    rule = _chosen(fields, choice, [name_of(tool) for tool in tools])
    if not tools:
        return (), None
    if single:
        rule = replace(rule or CallRule("parallel_tool_calls"), single=True)
    strict = next((i for i, tool in enumerate(tools) if is_strict(tool)), None)
    if rule is None and strict is not None:
        rule = CallRule(f"tools[{strict}].function.strict")
    return tools, rule


def _chosen(fields: Fields, choice: Any, offered: Sequence[str]) -> CallRule | None:
    at = fields.path("tool_choice")
    if choice in (None, "auto"):
        return None
    if choice != "required" and not isinstance(choice, dict):
        raise ApiError(f"{at!r} must be 'auto', 'none', 'required' or an object that names tools.", param=at)
    if not offered:
        raise ApiError(f"{at!r} asks for a call, and there are no 'tools'.", param=at)
    if choice == "required":
        return CallRule(at, must=True)
    own = Fields(choice, at)
    kind = own.required_text("type")
    if kind == "function":
        name = _named(choice, at, offered)
        return CallRule(at, must=True, single=True, names=(name,))
    if kind != "allowed_tools":
        raise unsupported(own.path("type"), "only functions can be called")
    allowed = Fields(own.get("allowed_tools"), own.path("allowed_tools"))
    mode = allowed.required_text("mode")
    if mode not in ("auto", "required"):
        raise ApiError(f"{allowed.path('mode')!r} must be 'auto' or 'required'.", param=allowed.path("mode"))
    listed = allowed.array("tools", MAX_TOOLS) or []
    names = [_named(one, f"{allowed.path('tools')}[{i}]", offered) for i, one in enumerate(listed)]
    allowed.finish()
    own.finish()
    if not names:
        raise ApiError(f"{allowed.path('tools')!r} must name at least one tool.", param=allowed.path("tools"))
    return CallRule(at, must=mode == "required", names=tuple(dict.fromkeys(names)))


def _named(value: Any, at: str, offered: Sequence[str]) -> str:
    """The tool that `{"type": "function", "function": {"name": ...}}` names."""
    own = Fields(value, at)
    if own.required_text("type") != "function":
        raise unsupported(own.path("type"), "only functions can be called")
    function = Fields(own.get("function"), own.path("function"))
    name = function.required_text("name", NAME_LIMIT)
    function.finish()
    own.finish()
    if name not in offered:
        raise ApiError(f"{function.path('name')!r} is none of 'tools': {name!r}.", param=function.path("name"))
    return name
