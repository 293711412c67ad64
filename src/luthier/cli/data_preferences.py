"""`luthier data preferences`: pairs of replies that a model writes, and what came of every row that was asked."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.preferences import Outcome


def preferences(args: argparse.Namespace) -> int:
    """Make the pairs, and say what gave none and why.

    Raises:
        DataError: no pair came of any row, or `--report` is of no ending that figures have.
        LuthierError: as `make_preferences`.
    """
    from luthier.cli.data_quality import require_ending, require_places, write_figures
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.preferences import Choices, make_preferences, require_fit
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder

    require_places(args.file, {"--report": args.report})
    require_ending(args.report)
    recipe, choices = load(args.file, args.set or ()), Choices(args.by or "rewards", args.margin, args.model)
    require_fit(recipe, choices)
    source_of(recipe.model.name)
    choose_device(recipe.model.device)
    folder = RunFolder(args.out or Path("runs") / f"{args.file.stem}-preferences", listed=False)
    with folder.locked():
        folder.open(recipe, args.file)
        outcome = make_preferences(recipe, folder, choices, Terminal())
    if args.report is not None:
        write_figures(args.report, [fate.values() for fate in outcome.fates])
    if not outcome.pairs:
        raise DataError("\n".join(["no pair came of any row", *_without(outcome)]), folder.path)
    print("\n".join(_told(outcome)))
    return 0


def _told(outcome: "Outcome") -> list[str]:
    unseen = " and ".join(f"{count:,} {split}" for split, count in outcome.unseen.items())
    lines = [
        f"{outcome.path}: {len(outcome.pairs):,} pairs",
        f"  asked were the {outcome.asked:,} training rows alone; {unseen} rows were not",
        *_without(outcome),
    ]
    told = [fate.told for fate in outcome.fates if fate.pair is not None]
    if any("chosen_reward" in one for one in told):
        chosen, rejected = (sum(one[f"{side}_reward"] for one in told) / len(told) for side in ("chosen", "rejected"))
        means = [fate.told["mean_reward"] for fate in outcome.fates if "mean_reward" in fate.told]
        lines.append(f"mean reward: {chosen:.3f} chosen, {rejected:.3f} rejected, {sum(means) / len(means):.3f} all")
    else:
        asked = sum(bool(fate.told.get("orders")) for fate in outcome.fates)
        lines.append(f"of {asked:,} judgements {len(told):,} name the same reply in both orders")
    if problems := sum(fate.told.get("problems", 0) for fate in outcome.fates):
        lines.append(f"{problems:,} replies could not be graded by every grader, which counts 0 (replies/ says why)")
    return lines


def _without(outcome: "Outcome") -> list[str]:
    return [f"  {count:,} without a pair: {reason}" for reason, count in outcome.reasons().items()]
