"""A calculator that the model may ask: it calls the tool `calculate`, or writes `[calculate: 12 * 7]`.

Each call gets its result as the tool's answer; where the reply was text, the user says what its first question gives. A
reply that asks nothing ends the conversation, and the graders look at it. Numbers, + - * / and parentheses; everything
else is answered with what is wrong, which a model can learn from, too.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from luthier.environments.base import EnvironmentSettings
from luthier.examples import Message, ToolCall

TOOL = "calculate"
LONGEST = 200
"""Characters of an expression."""
_ASKED = re.compile(r"\[calculate:([^\[\]]*)\]")
_OPERATIONS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class Calculator(EnvironmentSettings):
    """Arithmetic for the asking."""

    call_reward: float = Field(0.0, ge=-1, le=1)
    """What each call earns that has a result; below 0 it costs."""

    def make(self) -> "Calculating":
        """A fresh one."""
        return Calculating(self.call_reward)


class Calculating:
    """One conversation with the calculator."""

    def __init__(self, call_reward: float = 0.0) -> None:
        self.call_reward = call_reward

    def reset(self, item: Mapping[str, Any]) -> None:
        """The rows differ in nothing that a calculator knows."""

    def step(self, reply: Message) -> tuple[tuple[Message, ...], float, bool]:
        """The results of what the reply asks, or the end if it asks nothing."""
        if reply.tool_calls:
            found = [(call, *_answer(call)) for call in reply.tool_calls]
            said = tuple(Message("tool", text, tool_call_id=call.id, name=call.name) for call, text, _ in found)
            return said, self.call_reward * sum(is_number for *_, is_number in found), False
        asked = _ASKED.search(reply.content)
        if asked is None:
            return (), 0.0, True
        text, is_number = result(asked.group(1))
        return (Message("user", text),), self.call_reward * is_number, False


def _answer(call: ToolCall) -> tuple[str, bool]:
    text = str(call.arguments.get("expression", "")) if call.name == TOOL else ""
    return result(text) if text else (f"there is only the tool {TOOL}(expression)", False)


def result(expression: str) -> tuple[str, bool]:
    """The value of an expression as text, and whether it has one."""
    try:
        if len(expression) > LONGEST:
            raise ValueError(f"longer than {LONGEST} characters")
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        if not math.isfinite(value):
            raise OverflowError("the result is too large")
        return f"{value:.10g}", True
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        return f"cannot be calculated: {error}", False


def _value(node: ast.AST) -> float:
    """The number that a part of an expression stands for.

    Raises:
        ValueError: it is no arithmetic.
        ArithmeticError: it has no value.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers, + - * / and parentheses are known")
