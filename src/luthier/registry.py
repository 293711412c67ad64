"""The directory is the registry: `luthier/objectives/dpo.py` is what `objective.type = "dpo"` means.

Listing the choices imports none of them. A package from outside adds one with an entry point whose group is the
directory's module name, such as `luthier.objectives`.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from luthier.errors import RecipeError, did_you_mean

T = TypeVar("T")

_NAMES: dict[type, str] = {}  # a class from outside need not be called what its file is called


def names(package: str) -> list[str]:
    """What can be chosen in `package`, without importing any of it."""
    return sorted({*_built_in(package), *_installed(package).names})


def load(package: str, name: str) -> ModuleType:
    """Import the module that `name` means in `package`.

    Raises:
        RecipeError: nothing is called `name` (the message suggests the closest names), two parts are, or a package
            from outside cannot be imported.
    """
    loaded = _load(package, name)
    module = loaded if isinstance(loaded, ModuleType) else inspect.getmodule(loaded)
    if module is None:
        raise RecipeError(f"{_kind(package)} {name!r} is a {type(loaded).__name__}; expected a module or a class")
    return module


def load_class(package: str, name: str, base: type[T]) -> type[T]:
    """The class that an entry point names, or the one public subclass of `base` that the module `name` defines.

    Raises:
        RecipeError: as `load`; or the module defines no such class, or more than one.
    """
    loaded = _load(package, name)
    if inspect.isclass(loaded) and issubclass(loaded, base):
        found: list[type[T]] = [loaded]
    else:
        module = load(package, name)
        found = [c for c in vars(module).values() if _is_part(c, base, module.__name__)]
        if len(found) != 1:
            listed = ", ".join(c.__name__ for c in found) or "none"
            raise RecipeError(f"{module.__name__} must define one public {base.__name__}; it defines {listed}")
    _NAMES[found[0]] = name
    return found[0]


def name_of(part: Any) -> str:
    """The registry name of an object or class that came from `load_class`: its file's name, or its entry point's."""
    cls = part if inspect.isclass(part) else type(part)
    return _NAMES.get(cls, cls.__module__.rpartition(".")[2])


@cache
def _built_in(package: str) -> tuple[str, ...]:
    """Names of a folder's modules; each setting of a recipe that names a part asks for them."""
    spec = importlib.util.find_spec(package)
    home = list(spec.submodule_search_locations or []) if spec else []
    return tuple(m.name for m in pkgutil.iter_modules(home) if m.name != "base" and not m.name.startswith("_"))


@cache
def _installed(package: str) -> EntryPoints:
    """Entry points of a group; to find them reads the metadata of all installed packages, every time."""
    return entry_points(group=package)


def _kind(package: str) -> str:
    """What one choice of `package` is called: `luthier.objectives` holds objectives, each an objective."""
    return package.rpartition(".")[2].removesuffix("s")


def _load(package: str, name: str) -> Any:
    """The module, or what an entry point of that name points to."""
    built_in, plugins = _built_in(package), list(_installed(package).select(name=name))
    if name not in built_in and not plugins:
        raise RecipeError(f"unknown {_kind(package)} {name!r}{did_you_mean(name, names(package))}")
    if len(plugins) + (name in built_in) > 1:
        sources = [*(["luthier"] if name in built_in else []), *(p.dist.name if p.dist else p.value for p in plugins)]
        raise RecipeError(f"{_kind(package)} {name!r} is given by {' and '.join(sources)}: uninstall or rename one")
    if not plugins:
        return importlib.import_module(f"{package}.{name}")
    plugin = plugins[0]
    try:
        return plugin.load()
    except (ImportError, AttributeError) as error:
        source = plugin.dist.name if plugin.dist else "an installed package"
        raise RecipeError(
            f"{_kind(package)} {name!r} of {source} ({plugin.value}) cannot be loaded: {error}"
        ) from error


def _is_part(value: Any, base: type[T], module: str) -> bool:
    """Whether `value` is a public class that `module` itself defines; classes that it imports do not count."""
    return (
        inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module
        and not value.__name__.startswith("_")
    )


def summary(package: str, name: str) -> str:
    """The first line of a module's docstring, read without importing it; empty for one from outside."""
    spec = importlib.util.find_spec(package)
    for home in list(spec.submodule_search_locations or []) if spec else []:
        path = Path(home) / f"{name}.py"
        if path.exists():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            return text.splitlines()[0] if text else ""
    return ""
