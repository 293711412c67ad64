"""The formula of a `multi` grader: arithmetic over the rewards of its graders.

Python's own parser reads it; only numbers, names, `+ - * / **`, signs, parentheses and a few functions are let through,
and the tree is walked here. Everything is a float, so no power can fill the memory.
"""

import ast
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import did_you_mean

MAX_CHARS = 2000
MAX_DEPTH = 100
MAX_NODES = 1000
LARGEST_EXPONENT = 64.0

FUNCTIONS: Mapping[str, tuple[Callable[..., float], int, int]] = {
    "min": (min, 2, 32),
    "max": (max, 2, 32),
    "abs": (abs, 1, 1),
    "floor": (lambda x: float(math.floor(x)), 1, 1),
    "ceil": (lambda x: float(math.ceil(x)), 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}
"""Name: function, fewest and most arguments."""


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > LARGEST_EXPONENT:
        raise ValueError(f"the exponent {exponent:g} is beyond {LARGEST_EXPONENT:g}")
    return math.pow(base, exponent)


_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: _power,
}


@dataclass(frozen=True)
class Formula:
    """A formula that was found to be arithmetic over known names."""

    text: str
    names: frozenset[str]
    """Those that it uses."""
    tree: ast.expr

    def value(self, rewards: Mapping[str, float]) -> float:
        """What it is worth.

        Raises:
            ValueError: it has no finite value for these rewards.
        """
        try:
            value = _walk(self.tree, rewards)
        except (ArithmeticError, ValueError) as error:
            raise ValueError(f"{self.text!r:.200} has no value for {dict(rewards)}: {error}") from None
        if not math.isfinite(value):
            raise ValueError(f"{self.text!r:.200} is {value} for {dict(rewards)}")
        return value


def parse_formula(text: str, known: Collection[str]) -> Formula:
    """The formula in `text` over the names `known`.

    Raises:
        ValueError: it is not arithmetic, too large, or names something else.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"the formula has {len(text)} characters; expected at most {MAX_CHARS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the formula cannot be read: {error}") from None
    count = _require_arithmetic(tree, known, 0)
    if count > MAX_NODES:
        raise ValueError(f"the formula has {count} parts; expected at most {MAX_NODES}")
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
    return Formula(text, frozenset(used), tree)


def _require_arithmetic(node: ast.expr, known: Collection[str], depth: int) -> int:
    """How many parts the tree has.

    Raises:
        ValueError: one of them is not allowed.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"the formula is nested more than {MAX_DEPTH} deep")
    return 1 + sum(_require_arithmetic(inner, known, depth + 1) for inner in _operands(node, known))


def _operands(node: ast.expr, known: Collection[str]) -> list[ast.expr]:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        _number(node.value)
        return []
    if isinstance(node, ast.Name):
        if node.id not in known:
            raise ValueError(f"the formula names {node.id!r}, which is no grader{did_you_mean(node.id, sorted(known))}")
        return []
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return [node.operand]
    if isinstance(node, ast.Call):
        return _arguments(node)
    raise ValueError(
        f"the formula holds {ast.unparse(node)[:80]!r}; expected numbers, graders' names, + - * / **, parentheses and "
        + ", ".join(FUNCTIONS)
    )


def _arguments(call: ast.Call) -> list[ast.expr]:
    name = call.func.id if isinstance(call.func, ast.Name) else ast.unparse(call.func)[:80]
    if not isinstance(call.func, ast.Name) or name not in FUNCTIONS:
        raise ValueError(f"the formula calls {name!r}{did_you_mean(name, list(FUNCTIONS))}")
    _, fewest, most = FUNCTIONS[name]
    if call.keywords or not fewest <= len(call.args) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"the formula gives {name} {len(call.args)} values; expected {wanted}, without keywords")
    return call.args


def _number(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("the formula holds a number that is too large for a 64-bit float")
    return number


def _walk(node: ast.expr, rewards: Mapping[str, float]) -> float:
    """The value of a tree that `_require_arithmetic` let through."""
    if isinstance(node, ast.Constant):
        return _number(node.value)
    if isinstance(node, ast.Name):
        return rewards[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_walk(node.left, rewards), _walk(node.right, rewards))
    if isinstance(node, ast.UnaryOp):
        value = _walk(node.operand, rewards)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id][0](*(_walk(argument, rewards) for argument in node.args))
    raise ValueError(f"{type(node).__name__} is no arithmetic")
