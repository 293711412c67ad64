"""The directory is the registry; listing imports nothing."""

import subprocess
import sys

import pytest

from luthier import registry
from luthier.config import Settings
from luthier.engine.schedules.base import Schedule
from luthier.errors import RecipeError

SCHEDULES = "luthier.engine.schedules"


def test_names_are_the_files_without_base_and_private_ones() -> None:
    names = registry.names("luthier.objectives")
    assert {"sft", "dpo"} <= set(names)
    assert "base" not in names and not any(name.startswith("_") for name in names)
    assert names == sorted(names)


def test_listing_imports_none_of_the_choices() -> None:
    program = (
        "import sys; from luthier import registry\n"
        "for package in ('luthier.objectives', 'luthier.adapters', 'luthier.engine.schedules'):\n"
        "    for name in registry.names(package): assert registry.summary(package, name), name\n"
        "print(sorted(m for m in sys.modules if m.startswith(('torch', 'luthier.objectives.', 'luthier.adapters.'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_load_class_finds_the_one_public_class_and_its_name_leads_back() -> None:
    cls = registry.load_class(SCHEDULES, "cosine", Settings)
    assert issubclass(cls, Schedule)
    assert registry.name_of(cls) == registry.name_of(cls()) == "cosine"


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        registry.load(SCHEDULES, "cosin")
    with pytest.raises(RecipeError, match=r"unknown schedule 'zzzz'; known here: .*cosine.*linear"):
        registry.load_class(SCHEDULES, "zzzz", Settings)


@pytest.mark.parametrize("name", ["base", "", "..config", "cosine.x", "__init__"])
def test_only_listed_names_are_imported(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown schedule"):
        registry.load(SCHEDULES, name)


def test_a_module_must_define_exactly_one_part() -> None:
    class Other:
        """No part derives from it."""

    with pytest.raises(RecipeError, match="must define one public Other; it defines none"):
        registry.load_class(SCHEDULES, "cosine", Other)
    with pytest.raises(RecipeError, match="must define one public object; it defines"):
        registry.load_class("luthier.adapters", "ia3", object)


def test_a_package_that_is_not_there_has_no_names() -> None:
    assert registry.names("luthier.nothing_here") == []


def test_summary_is_the_first_line_of_the_module() -> None:
    assert registry.summary("luthier.objectives", "dpo").startswith("Direct preference optimization")
    assert registry.summary("luthier.objectives", "absent") == ""
