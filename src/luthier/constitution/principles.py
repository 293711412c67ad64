"""A constitution: principles by which replies are criticized, revised and compared; and which of them is asked when.

What is drawn is a pure function of (seed, place of the prompt), so that no order of work and no stop changes it.
"""

from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from luthier.config import Settings, build, nested, read_toml
from luthier.engine.rollout import seed_of
from luthier.errors import RecipeError, did_you_mean
from luthier.recipe.constitution import BUILTIN, ConstitutionSettings

Kind: TypeAlias = Literal["red_team", "harmless"]
KINDS: tuple[Kind, ...] = ("red_team", "harmless")
"""Of prompts."""
_REVISED, _COMPARED = 1, 2
"""What principles are drawn for."""


class Principle(Settings):
    """One thing that a reply should be."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """In lower case, with underscores."""
    critique: str = Field(min_length=1)
    """What to look for in a reply."""
    revise: str = Field(min_length=1)
    """How to mend it."""
    prefer: str = Field(min_length=1)
    """A question whose answer is one of two replies."""
    prompts: Literal["all", "red_team", "harmless"] = "all"
    """Which replies it is asked of."""

    def is_for(self, kind: Kind) -> bool:
        """Whether it is asked of replies to such prompts."""
        return self.prompts in ("all", kind)


class Example(Settings):
    """A critique and a revision, as they should be."""

    principle: str
    """The name of the one that it follows."""
    prompt: str = Field(min_length=1)
    """What was asked."""
    reply: str = Field(min_length=1)
    """What is wrong with it."""
    critique: str = Field(min_length=1)
    """What the critic says of it."""
    revision: str = Field(min_length=1)
    """The better reply."""


class Constitution(Settings):
    """Principles, and examples of how they are used."""

    principle: tuple[Principle, ...] = Field(min_length=1)
    """In the order in which `draw = "all"` takes them."""
    example: tuple[Example, ...] = ()
    """The first ones are shown to the critic."""

    @model_validator(mode="after")
    def _require_sound(self) -> "Constitution":
        names = [principle.name for principle in self.principle]
        with nested():
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise RecipeError(f"principle {twice[0]!r} stands there twice; expected different names")
            for example in self.example:
                if example.principle not in names:
                    raise RecipeError(
                        f"an example follows the principle {example.principle!r}, and there is none"
                        f"{did_you_mean(example.principle, names)}"
                    )
            for kind in KINDS:
                if not self.of(kind):
                    raise RecipeError(f"no principle is for replies to {kind} prompts; expected at least one")
        return self

    def of(self, kind: Kind) -> tuple[Principle, ...]:
        """Those that are asked of replies to such prompts."""
        return tuple(principle for principle in self.principle if principle.is_for(kind))

    def named(self, name: str) -> Principle:
        """The principle of this name."""
        return next(principle for principle in self.principle if principle.name == name)


def shipped() -> Path:
    """The constitution that ships."""
    return Path(str(files("luthier.constitution") / "constitution.toml"))


def constitution_of(settings: ConstitutionSettings) -> tuple[Constitution, str]:
    """The recipe's constitution, and the text of its file.

    Raises:
        RecipeError: there is no such file, or it is none; or fewer examples are in it than are to be shown.
    """
    path = shipped() if settings.principles == BUILTIN else Path(settings.principles)
    tree = read_toml(path)
    try:
        found = build(Constitution, tree)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if len(found.example) < settings.shots:
        raise RecipeError(
            f"{path} has {len(found.example)} examples, and constitution.shots = {settings.shots}: write more of them, "
            "or lower it"
        )
    return found, path.read_text(encoding="utf-8-sig")


def revised_by(
    constitution: Constitution, settings: ConstitutionSettings, seed: int, place: int
) -> tuple[Principle, ...]:
    """The principles that the reply to a red-team prompt is revised by, one after the other."""
    known = constitution.of("red_team")
    if settings.draw == "all":
        return known * settings.rounds
    return _drawn(known, settings.rounds, (seed, _REVISED, place))


def compared_by(
    constitution: Constitution, settings: ConstitutionSettings, kind: Kind, seed: int, place: int
) -> tuple[Principle, ...]:
    """The principles that two replies to a prompt are compared by; no one twice."""
    known = constitution.of(kind)
    return _drawn(known, min(settings.votes, len(known)), (seed, _COMPARED, KINDS.index(kind), place))


def _drawn(known: tuple[Principle, ...], count: int, key: tuple[int, ...]) -> tuple[Principle, ...]:
    """So many of them by chance, none again before all have been drawn."""
    chance = np.random.Generator(np.random.Philox(seed_of(*key)))
    found: list[Principle] = []
    while len(found) < count:
        found += [known[at] for at in chance.permutation(len(known))]
    return tuple(found[:count])
