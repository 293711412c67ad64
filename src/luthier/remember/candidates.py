"""Which remedies are tried for a recipe, in which order: what costs only measuring first.

A remedy is a setting that the recipe could have had, written as `--set` takes it, or a share of what was trained. Each
has one or two strengths that are usual or follow from the run itself; they are no search.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from luthier.config import Tree, build, override
from luthier.recipe import Recipe

Remedy: TypeAlias = Literal["plain", "interpolation", "replay", "kl", "pull", "rank", "rate"]

SHARES = (0.75, 0.5, 0.25)
"""Of the trained update that is kept (Wortsman et al. 2021, arXiv:2109.01903)."""
REPLAYED = (0.1, 0.3)
KL_WEIGHTS = (0.3, 1.0)
PULL = 3.0
"""Times 1 / (learning rate * steps): of a way gone at once at the full rate, e^-3 would be left at the end."""
LOWER_RANK = 4
LOWER_RATE = 3.0


@dataclass(frozen=True)
class Candidate:
    """One training, or one share of a training, that is measured."""

    name: str
    """Of its folder, and in the table."""
    remedy: Remedy
    settings: tuple[str, ...] = ()
    """What differs from the recipe, `key=value`."""
    share: float | None = None
    """Of the plain training's update that is kept; None: it is a training of its own."""

    @property
    def trains(self) -> bool:
        """Whether it needs a training of its own."""
        return self.share is None and self.remedy != "plain"


PLAIN = Candidate("plain", "plain")


def candidates(recipe: Recipe, learning_rate: float, steps: int) -> list[Candidate]:
    """Every remedy that the recipe's parts know, the plain training first.

    Args:
        recipe: as it trains without a remedy.
        learning_rate: that it trains with, also where it names none.
        steps: that it takes.
    """
    tree = recipe.dump()
    weak = [
        *_replay(tree, REPLAYED[0]),
        *_kl(tree, KL_WEIGHTS[0]),
        *_pull(tree, learning_rate, steps),
        *_rank(tree["adapter"]),
        Candidate("rate", "rate", (f"optimizer.learning_rate={learning_rate / LOWER_RATE:.2g}",)),
    ]
    strong = [*_kl(tree, KL_WEIGHTS[1]), *_replay(tree, REPLAYED[1])]
    shares = [Candidate(f"share-{share:g}", "interpolation", share=share) for share in SHARES]
    return [PLAIN, *shares, *weak, *strong]


def recipe_with(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe of a candidate's training."""
    return build(Recipe, override(recipe.dump(), candidate.settings))


def _replay(tree: Tree, share: float) -> Iterator[Candidate]:
    data: Mapping[str, Any] = tree["data"]
    if data["replay"] is not None and data["replay_share"] < share:
        yield Candidate(f"replay-{share:g}", "replay", (f"data.replay_share={share:g}",))


def _kl(tree: Tree, weight: float) -> Iterator[Candidate]:
    """Of supervised fine-tuning: preference learning has its own pull towards the base (beta)."""
    kind, given = tree["objective"]["type"], tree["objective"].get("kl_weight", 0.0)
    if kind in ("sft", "sft_kl") and given < weight:
        settings = ("objective.type=sft_kl", f"objective.kl_weight={weight:g}")
        yield Candidate(f"kl-{weight:g}", "kl", settings)


def _pull(tree: Tree, learning_rate: float, steps: int) -> Iterator[Candidate]:
    given, pull = tree["optimizer"].get("pull_to_start"), PULL / (learning_rate * steps)
    if given is not None and given < pull:
        yield Candidate("pull", "pull", (f"optimizer.pull_to_start={pull:.2g}",))


def _rank(adapter: Mapping[str, Any]) -> Iterator[Candidate]:
    """A quarter of the rank, at the scale that the update has: it is less room that is tried, not a smaller step."""
    if not {"rank", "alpha", "scaling"} <= adapter.keys() or adapter["rank"] < 2 * LOWER_RANK:
        return
    rank = adapter["rank"] // LOWER_RANK
    share = rank / adapter["rank"]  # less than a quarter where the rank is no multiple of 4
    alpha = adapter["alpha"] * (share if adapter["scaling"] == "rank" else share**0.5)
    yield Candidate(f"rank-{rank}", "rank", (f"adapter.rank={rank}", f"adapter.alpha={alpha:g}"))
