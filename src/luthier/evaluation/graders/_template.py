"""Templates: `{{item.x.y[0]}}`, `{{sample.output_text}}`, `{{sample.output_json.x}}`, `{{sample.output_tools[0].id}}`.

Nothing but variables: no expressions, filters or loops. A text is read once from left to right, in linear time, and
what is inserted is never read again, so no row and no answer can name a variable.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field

from luthier.errors import did_you_mean
from luthier.evaluation.graders.base import Errors, NoScore, Sample

MAX_CHARS = 100_000
MAX_VARIABLES = 1000
MAX_VARIABLE_CHARS = 300
NAMESPACES = ("item", "sample")
SAMPLE_FIELDS = ("output_text", "output_json", "output_tools")

_STEP = re.compile(r"\.([\w-]+)|\[(\d{1,6})\]")


@dataclass(frozen=True)
class Variable:
    """A place in a template, and the way to its value."""

    text: str
    """As it is written, without the braces."""
    namespace: str
    steps: tuple[str | int, ...]


@lru_cache(maxsize=256)
def parse_template(template: str) -> tuple[str | Variable, ...]:
    """The literal texts and the variables of a template, in their order.

    Raises:
        ValueError: `{{` is not closed or holds no variable, or a namespace or field of the sample is unknown.
    """
    parts: list[str | Variable] = []
    end = 0
    while (start := template.find("{{", end)) >= 0:
        close = template.find("}}", start, start + MAX_VARIABLE_CHARS)
        if close < 0:
            raise ValueError(
                f"'{{{{' at character {start + 1} is not followed by '}}}}' within {MAX_VARIABLE_CHARS} characters; "
                "close the variable, or put a space between braces that are text"
            )
        parts += [template[end:start], _variable(template[start + 2 : close].strip())]
        end = close + 2
        if len(parts) > 2 * MAX_VARIABLES:
            raise ValueError(f"more than {MAX_VARIABLES} variables")
    parts.append(template[end:])
    return tuple(part for part in parts if part != "")


def _variable(text: str) -> Variable:
    name = re.match(r"\w*", text)
    namespace = name.group() if name else ""
    if namespace not in NAMESPACES:
        raise ValueError(f"unknown namespace {namespace or text!r} in '{{{{{text}}}}}'; expected item or sample")
    steps: list[str | int] = []
    end = len(namespace)
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None:
            raise ValueError(f"'{{{{{text}}}}}' is no variable; expected a way such as item.answers[0].text")
        key, index = step.groups()
        steps.append(key if key is not None else int(index))
        end = step.end()
    if namespace == "sample" and steps and steps[0] not in SAMPLE_FIELDS:
        raise ValueError(f"unknown variable '{{{{{text}}}}}'{did_you_mean(str(steps[0]), SAMPLE_FIELDS)}")
    return Variable(text, namespace, tuple(steps))


def _checked(template: str) -> str:
    parse_template(template)
    return template


Template: TypeAlias = Annotated[str, Field(max_length=MAX_CHARS), AfterValidator(_checked)]
"""A text that may hold variables; checked when the grader is built."""


def render(template: str, sample: Sample, item: Mapping[str, Any], longest: int) -> str:
    """The template with its variables replaced: texts as they are, everything else as JSON.

    Raises:
        NoScore: a variable has no value here, or the text would be longer than `longest`.
    """
    texts: list[str] = []
    room = longest
    for part in parse_template(template):
        texts.append(part if isinstance(part, str) else as_text(_value(part, sample, item)))
        room -= len(texts[-1])
        if room < 0:
            problem = f"a template becomes longer than {longest} characters"
            raise NoScore(problem, Errors(truncated_observation_error=True))
    return "".join(texts)


def _value(variable: Variable, sample: Sample, item: Mapping[str, Any]) -> Any:
    if variable.namespace == "sample" and variable.steps[:1] == ("output_json",) and not sample.is_json:
        raise NoScore(f"{variable.text} is wanted, and the answer is not JSON", Errors(sample_parse_error=True))
    value: Any = item if variable.namespace == "item" else sample.values()
    for step in variable.steps:
        is_there = step in value if isinstance(value, Mapping) else _is_list(value) and step in range(len(value))
        if not is_there:
            raise NoScore(f"{variable.text} has no value: there is no {step!r}", Errors(invalid_variable_error=True))
        value = value[step]
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def as_text(value: Any) -> str:
    """A text as it is, everything else as JSON.

    Raises:
        NoScore: the value cannot be written as JSON.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise NoScore(f"a value cannot be written as JSON: {error}", Errors(other_error=True)) from None
