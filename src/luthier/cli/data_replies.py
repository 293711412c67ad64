"""`luthier data replies`: rows of replies that a model writes, the best or all that are good enough."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.preferences.replies import ReplyOutcome


def replies(args: argparse.Namespace) -> int:
    """Make the rows, and say what gave none and why.

    Raises:
        DataError: no reply is kept, or `--report` is of no ending that figures have.
        LuthierError: as `make_replies`.
    """
    from luthier.cli.data_quality import require_ending, require_places, write_figures
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.preferences.replies import ReplyChoices, make_replies, require_reply_fit
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder

    require_places(args.file, {"--report": args.report})
    require_ending(args.report)
    recipe, choices = load(args.file, args.set or ()), ReplyChoices(args.by or "best", args.least, args.model)
    require_reply_fit(recipe, choices)
    source_of(recipe.model.name)
    choose_device(recipe.model.device)
    folder = RunFolder(args.out or Path("runs") / f"{args.file.stem}-replies", listed=False)
    with folder.locked():
        folder.open(recipe, args.file)
        outcome = make_replies(recipe, folder, choices, Terminal())
    if args.report is not None:
        write_figures(args.report, [fate.values() for fate in outcome.fates])
    if not outcome.kept:
        raise DataError("\n".join(["no reply is kept", *_without(outcome)]), folder.path)
    print("\n".join(_told(outcome)))
    return 0


def _told(outcome: "ReplyOutcome") -> list[str]:
    unseen = " and ".join(f"{count:,} {split}" for split, count in outcome.unseen.items())
    asked = [fate.told for fate in outcome.fates if "replies" in fate.told]
    written, passing = (sum(one[name] for one in asked) for name in ("replies", "passing"))
    lines = [
        f"{outcome.path}: {len(outcome.kept):,} rows",
        f"  asked were the {len(outcome.fates):,} training rows alone; {unseen} rows were not",
        f"  {passing:,} of {written:,} replies are whole and good enough",
        *_without(outcome),
    ]
    rewards = [row.extra["reward"] for row in outcome.kept if "reward" in row.extra]
    if rewards:
        mean = sum(one["mean_reward"] for one in asked) / len(asked)
        lines.append(f"mean reward: {sum(rewards) / len(rewards):.3f} of what is kept, {mean:.3f} of all")
    if problems := sum(one["problems"] for one in asked):
        lines.append(f"{problems:,} replies could not be graded by every grader, which counts 0 (replies/ says why)")
    return lines


def _without(outcome: "ReplyOutcome") -> list[str]:
    return [f"  {count:,} without a reply: {reason}" for reason, count in outcome.reasons().items()]
