"""Would more rows help? Repeat a run's training on fewer of its rows, and say what more of them would bring.

Each share is trained as the run was, with as many steps, and answers the same test rows. What was trained before is
used again, so a stopped curve goes on. It takes about as long as one training for each share.

example:
  luthier curve runs/demo
  luthier curve runs/demo --shares 0.25,0.5,0.75 --more 200,1000
"""

import argparse
from pathlib import Path

SHARES, MORE = (0.0625, 0.125, 0.25, 0.5), (100, 500, 2000)


def _shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < share < 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers between 0 and 1, with commas between them")
    return found


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers of rows, with commas between them")
    return tuple(int(part) for part in parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier curve`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that was trained")
    parser.add_argument(
        "--shares",
        type=_shares,
        default=SHARES,
        metavar="A,B,...",
        help=f"of the training rows (default: {','.join(f'{share:g}' for share in SHARES)})",
    )
    parser.add_argument(
        "--more",
        type=_counts,
        default=MORE,
        metavar="N,M,...",
        help=f"speak of so many more rows (default: {','.join(map(str, MORE))})",
    )


def run(args: argparse.Namespace) -> int:
    """Train, fit, and print the curve.

    Raises:
        RecipeError: the folder is no run's.
        LuthierError: as `learn_curve`.
    """
    from luthier.curve import learn_curve
    from luthier.evaluation.learning_curve import FURTHEST, furthest
    from luthier.progress import Terminal
    from luthier.report import build_report, write_report
    from luthier.report.phrases import promise_text
    from luthier.report.text import interval
    from luthier.run_folder import RunFolder, recipe_of

    recipe_of(args.run)  # before a lock is put into a folder that is no run's
    folder, progress = RunFolder(args.run), Terminal()
    with folder.locked():
        curve = learn_curve(folder, args.shares, args.more, progress)
        report = build_report(folder.path)
        page = write_report(report, folder.path)[1]
    for n, found in zip(curve.rows, curve.values, strict=True):
        print(f"{n:>7,} rows  {curve.metric} {interval(found.value, found.low, found.high)}")
    for promise in report.curve.promises if report.curve else ():
        print(f"{promise_text(promise, curve.metric)}.")
    limit = furthest(curve.rows[-1])
    if max(args.more) > limit:
        print(f"Of more than {limit:,} more rows, {FURTHEST:g} times those there are, nothing is said.")
    print(page)
    return 0
