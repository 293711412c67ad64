"""Parts of a recipe that are chosen by name: the packages they come from, and their settings from plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier import registry
from luthier.config import Settings, Tree, build, did_you_mean, nested
from luthier.errors import RecipeError

ADAPTERS = "luthier.adapters"
OBJECTIVES = "luthier.objectives"
OPTIMIZERS = "luthier.engine.optimizers"
SCHEDULES = "luthier.engine.schedules"
SYSTEMS = "luthier.evaluation.systems"
METRICS = "luthier.evaluation.metrics"
QUANTIZERS = "luthier.models.quantize"
TRACKERS = "luthier.trackers"
GRADERS = "luthier.evaluation.graders"
ENVIRONMENTS = "luthier.environments"

PARTS: Mapping[str, tuple[str, str]] = {
    "adapter": (ADAPTERS, "lora"),
    "objective": (OBJECTIVES, "sft"),
    "optimizer": (OPTIMIZERS, "adamw"),
    "schedule": (SCHEDULES, "cosine"),
}
"""Keys of a recipe whose settings come from a registry: its package, and the `type` when none is given."""


def require_quantizer(value: str, key: str) -> str:
    """The name of a format that weights are held in, or `none`; `key`: the setting that has it.

    Raises:
        RecipeError: there is no such format.
    """
    known = ["none", *registry.names(QUANTIZERS)]
    if value not in known:
        with nested():
            raise RecipeError(f"{key}: unknown format {value!r}{did_you_mean(value, known)}")
    return value


def build_part(package: str, values: Any, default: str, at: Sequence[str]) -> Settings:
    """Settings of the part that `values["type"]` names in `package`.

    Raises:
        RecipeError: `values` is not a table, the type is unknown, or a setting of it is wrong.
    """
    if isinstance(values, Settings):
        return values
    cls = chosen_class(package, values, default, at)
    return build(cls, {k: v for k, v in values.items() if k != "type"}, at)


def chosen_class(package: str, values: Any, default: str, at: Sequence[str]) -> type[Settings]:
    """The settings class of the part that `values["type"]` names; raises as `build_part`."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{'.'.join(at)} = {values!r}: expected a table such as {{ type = {default!r} }}")
    kind = values.get("type", default)
    if not isinstance(kind, str):
        raise RecipeError(f"{'.'.join(at)}.type = {kind!r}: expected a name, one of {registry.names(package)}")
    return registry.load_class(package, kind, Settings)


def dump_part(part: Settings) -> Tree:
    """The plain values of a part, its `type` first."""
    return {"type": registry.name_of(part), **part.model_dump(mode="json")}
