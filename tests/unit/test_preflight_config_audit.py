"""Every setting that is accepted is read: a static search of the source for each field of each Settings class.

A read is an attribute access such as `recipe.training.keep`, `settings.keep` or `self.keep`: the name before the dot
must be one that holds such settings, so that a common word like `name` does not count wherever it stands.
"""

import ast
import importlib
import pkgutil
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import luthier
from luthier.config import Settings

SOURCE = Path(luthier.__file__).parent


def _settings_classes() -> list[type[Settings]]:
    for module in pkgutil.walk_packages([str(SOURCE)], "luthier."):
        if not module.name.startswith("luthier.cli"):
            importlib.import_module(module.name)
    found: list[type[Settings]] = []
    waiting: list[type[Settings]] = [Settings]
    while waiting:
        children = waiting.pop().__subclasses__()
        found += [c for c in children if c.__module__.startswith("luthier.")]
        waiting += children
    return sorted(found, key=lambda c: (c.__module__, c.__qualname__))


def _reads(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Field name -> the names that stand before the dot where it is read."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                base = node.value
                found[node.attr].add(
                    base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
                )
    return found


def _annotated(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Class name -> names of parameters and variables that are declared to hold one."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and node.annotation is not None:
                found[ast.unparse(node.annotation).strip("'")].add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[ast.unparse(node.annotation).strip("'")].add(node.target.id)
    return found


def _holders(cls: type[Settings], classes: list[type[Settings]], annotated: Mapping[str, set[str]]) -> set[str]:
    """Names under which code may hold an object of this class."""
    module, _, name = cls.__module__.rpartition(".")
    words = re.findall(r"[A-Z]+[a-z0-9]*", cls.__name__.removesuffix("Settings"))
    holders = {"settings", "self", name, "_".join(words).lower()}
    holders.add(module.rpartition(".")[2].removesuffix("s"))  # adapters -> adapter, optimizers -> optimizer
    holders |= {n for other in classes for n, field in other.model_fields.items() if field.annotation is cls}
    return holders | annotated.get(cls.__name__, set())


def _trees() -> dict[str, ast.Module]:
    return {str(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}


def _unread(classes: list[type[Settings]], trees: Mapping[str, ast.Module]) -> list[str]:
    reads, annotated = _reads(trees), _annotated(trees)
    return [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in classes
        for name in cls.model_fields
        if not reads[name] & _holders(cls, classes, annotated)
    ]


def test_every_setting_is_read_somewhere() -> None:
    classes = _settings_classes()
    assert {"Recipe", "TrainingSettings", "LoRA", "DPO"} <= {c.__name__ for c in classes}
    assert _unread(classes, _trees()) == [], "accepted settings that no code reads"


def test_the_audit_notices_a_setting_that_nobody_reads() -> None:
    class Probe(Settings):
        quite_unused_option: int = 1
        """Nobody reads this."""
        used_option: int = 1
        """The line below does."""

    tree = ast.parse("def f(settings): return settings.used_option + other.quite_unused_option")
    assert [name.rpartition(".")[2] for name in _unread([Probe], {"x": tree})] == ["quite_unused_option"]
