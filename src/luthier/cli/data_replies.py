"""`luthier data replies`: rows of replies that a model writes, the best or all that are good enough."""

import argparse
from typing import TYPE_CHECKING

from luthier.cli.data_sampled import made, unseen, without
from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.preferences.replies import ReplyOutcome


def replies(args: argparse.Namespace) -> int:
    """Make the rows, and say what gave none and why.

    Raises:
        DataError: no reply is kept, or `--report` is of no ending that figures have.
        LuthierError: as `make_replies`.
    """
    from luthier.preferences.replies import ReplyChoices, make_replies, require_reply_fit

    outcome = made(args, ReplyChoices(args.by or "best", args.least, args.model), require_reply_fit, make_replies)
    if not outcome.kept:
        raise DataError("\n".join(["no reply is kept", *without(outcome, "reply")]), outcome.path.parent)
    print("\n".join(_told(outcome)))
    return 0


def _told(outcome: "ReplyOutcome") -> list[str]:
    asked = [fate.told for fate in outcome.fates if "replies" in fate.told]
    written, passing = (sum(one[name] for one in asked) for name in ("replies", "passing"))
    lines = [
        f"{outcome.path}: {len(outcome.kept):,} rows",
        f"  asked were the {len(outcome.fates):,} training rows alone; {unseen(outcome)} rows were not",
        f"  {passing:,} of {written:,} replies are whole and good enough",
        *without(outcome, "reply"),
    ]
    rewards = [row.extra["reward"] for row in outcome.kept if "reward" in row.extra]
    if rewards:
        mean = sum(one["mean_reward"] for one in asked) / len(asked)
        lines.append(f"mean reward: {sum(rewards) / len(rewards):.3f} of what is kept, {mean:.3f} of all")
    if problems := sum(one["problems"] for one in asked):
        lines.append(f"{problems:,} replies could not be graded by every grader, which counts 0 (replies/ says why)")
    return lines
