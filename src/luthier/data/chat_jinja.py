"""Chat templates run here: other people's Jinja, in an immutable sandbox, with the helpers that templates expect.

The environment behaves as the one of `transformers` does (block trimming, `raise_exception`, `strftime_now`, `tojson`
without HTML escaping, loop controls), so a model's own template renders the text its authors meant. `{% generation %}`
marks are accepted and change nothing: which tokens are trained on is decided elsewhere, from the prompt's own end.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from luthier.data.strict_json import MAX_DEPTH
from luthier.errors import TemplateError
from luthier.examples import Message

Change: TypeAlias = Callable[[str], str]

PRIVATE_USE = range(0xE000, 0xF900)
"""Code points that no text uses by agreement; one of them serves as the escape character."""


class _GenerationMark(Extension):
    """`{% generation %}...{% endgeneration %}` renders its body and nothing else."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body of the block, as if the marks were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """Jinja's namespace without underscore names, which lead from data into the interpreter."""

    def __init__(self, *args: Any, **values: Any) -> None:
        merged = dict(*args, **values)
        for name in merged:
            _require_plain(name)
        super().__init__(merged)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set the attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateRuntimeError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _plain_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    # escape characters must come through whole, or they could not be taken out again
    return "".join(c if ord(c) < 128 or ord(c) in PRIVATE_USE else json.dumps(c)[1:-1] for c in text)


def compile_template(source: str, name: str) -> jinja2.Template:
    """Compile a chat template once; rendering it touches neither files nor the interpreter.

    Raises:
        TemplateError: the source is not Jinja, with the line.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMark, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_plain_dict, namespace=_PlainNamespace
    )
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"template {name!r}, line {error.lineno}: not Jinja: {error.message}") from None


def message_dict(message: Message, arguments_as_text: bool, developer_as_system: bool) -> dict[str, Any]:
    """What a template sees of one message: the shape of the OpenAI API, with arguments as an object or as text."""
    role = "system" if developer_as_system and message.role == "developer" else message.role
    seen: dict[str, Any] = {"role": role, "content": message.content}
    if message.tool_calls:
        calls = []
        for call in message.tool_calls:
            arguments = plain(call.arguments)
            text_or_object = json.dumps(arguments, ensure_ascii=False) if arguments_as_text else arguments
            function = {"name": call.name, "arguments": text_or_object}
            calls.append({"type": "function", "function": function} | ({"id": call.id} if call.id is not None else {}))
        seen["tool_calls"] = calls
    if message.tool_call_id is not None:
        seen["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        seen["name"] = message.name
    return seen


def tool_values(tool: Mapping[str, Any]) -> Any:
    """What a template sees of a tool: all but `strict`, which tells the server how to hold calls and the model nothing.

    Raises:
        TemplateError: as `plain`.
    """
    values = plain(tool)
    if isinstance(values.get("function"), dict):
        values["function"].pop("strict", None)
    return values


def plain(value: Any, depth: int = 0) -> Any:
    """`value` rebuilt from dicts, lists and scalars, so that a template gets nothing with methods of its own.

    Raises:
        TemplateError: it holds what JSON cannot, or is nested deeper than a data file may be.
    """
    if depth > MAX_DEPTH:
        raise TemplateError(f"a value is nested too deeply; expected at most {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TemplateError(f"a value of type {type(value).__name__} is not JSON and cannot be shown to a chat template")


def with_texts(message: dict[str, Any], content: Callable[[str, bool], str], other: Change) -> dict[str, Any]:
    """A message with its content changed by `content(text, is_reply)`, every other text but the role by `other`."""
    changed = {key: value if key == "role" else map_texts(value, other) for key, value in message.items()}
    return {**changed, "content": content(message["content"], message["role"] == "assistant")}


def map_texts(value: Any, change: Change) -> Any:
    """Plain data with every text and key changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    return value


def all_strings(value: Any) -> list[str]:
    """Leaf strings and keys of plain data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *all_strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in all_strings(item)]
    return []
