"""`luthier data preferences`: pairs of replies that a model writes, and what came of every row that was asked."""

import argparse
from typing import TYPE_CHECKING

from luthier.cli.data_sampled import made, unseen, without
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.preferences import Outcome


def preferences(args: argparse.Namespace) -> int:
    """Make the pairs, and say what gave none and why.

    Raises:
        DataError: no pair came of any row, or `--report` is of no ending that figures have.
        LuthierError: as `make_preferences`.
    """
    from luthier.preferences import Choices, make_preferences, require_fit

    outcome = made(args, Choices(args.by or "rewards", args.margin, args.model), require_fit, make_preferences)
    if not outcome.pairs:
        raise DataError("\n".join(["no pair came of any row", *without(outcome, "pair")]), outcome.path.parent)
    print("\n".join(_told(outcome)))
    return 0


def _told(outcome: "Outcome") -> list[str]:
    lines = [
        f"{outcome.path}: {len(outcome.pairs):,} pairs",
        f"  asked were the {outcome.asked:,} training rows alone; {unseen(outcome)} rows were not",
        *without(outcome, "pair"),
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
