"""The directory is the registry: `luthier/objectives/dpo.py` is what `objective.type = "dpo"` means.

Listing the choices imports none of them. A package from outside adds one with an entry point whose group is the
directory's module name, such as `luthier.objectives`.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from luthier.config import did_you_mean
from luthier.errors import RecipeError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """What can be chosen in `package`, without importing any of it."""
    spec = importlib.util.find_spec(package)
    home = list(spec.submodule_search_locations or []) if spec else []
    built_in = [m.name for m in pkgutil.iter_modules(home) if m.name != "base" and not m.name.startswith("_")]
    return sorted({*built_in, *(e.name for e in entry_points(group=package))})


def load(package: str, name: str) -> ModuleType:
    """Import the module that `name` means in `package`.

    Raises:
        RecipeError: nothing is called `name`; the message suggests the closest names.
    """
    known = names(package)
    if name not in known:
        raise RecipeError(f"unknown {package.rpartition('.')[2]} {name!r}{did_you_mean(name, known)}")
    for plugin in entry_points(group=package, name=name):
        loaded = plugin.load()
        module = loaded if isinstance(loaded, ModuleType) else inspect.getmodule(loaded)
        if module is not None:
            return module
    return importlib.import_module(f"{package}.{name}")


def load_class(package: str, name: str, base: type[T]) -> type[T]:
    """The one public subclass of `base` that the module called `name` defines.

    Raises:
        RecipeError: nothing is called `name`, or the module defines no such class or more than one.
    """
    module = load(package, name)
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__ and not c.__name__.startswith("_")
    ]
    if len(found) != 1:
        listed = ", ".join(c.__name__ for c in found) or "none"
        raise RecipeError(f"{module.__name__} must define one public {base.__name__}; it defines {listed}")
    return found[0]


def name_of(part: Any) -> str:
    """The registry name of an object or class that came from `load_class`: the name of its file."""
    cls = part if inspect.isclass(part) else type(part)
    return cls.__module__.rpartition(".")[2]


def summary(package: str, name: str) -> str:
    """The first line of a module's docstring, read without importing it; empty for one from outside."""
    spec = importlib.util.find_spec(package)
    for home in list(spec.submodule_search_locations or []) if spec else []:
        path = Path(home) / f"{name}.py"
        if path.exists():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            return text.splitlines()[0] if text else ""
    return ""
