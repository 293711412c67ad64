"""Merge trained LoRAs of one base into one, or scale a single one towards its base.

examples:
  luthier merge runs/dates runs/names --out runs/both                     the mean of both updates
  luthier merge runs/dates=0.7 runs/names=0.3 --out runs/both             weighted
  luthier merge runs/dates runs/names --method ties --out runs/both       where their signs agree
  luthier merge runs/dates runs/names --method svd --out runs/both        no larger than the larger of them
  luthier merge runs/dates=0.5 --out runs/half                            half the update: less learned, less forgotten

OUT is a run's folder with the rows of the first run: `luthier evaluate` says what the merge is worth on them, and
`luthier serve` and `luthier export` take it as they take a run. Full weights are made by `luthier export`.
"""

import argparse
from pathlib import Path

from luthier import registry
from luthier.config import build
from luthier.errors import RecipeError

MERGING = "luthier.merging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier merge`."""
    parser.add_argument("runs", nargs="+", metavar="RUN[=WEIGHT]", help="a run's folder, and how much of it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the merged adapter goes")
    parser.add_argument("--method", default="linear", choices=registry.names(MERGING), help="how updates are combined")
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="largest rank of the result; absent: the sum of all ranks, with svd the largest of them",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method, such as density=0.3"
    )
    parser.add_argument("--seed", type=int, default=0, help="of methods that draw")


def run(args: argparse.Namespace) -> int:
    """Merge, and tell how much of the combined update the result keeps."""
    from luthier.config import override
    from luthier.merge import merged_layers, read_source, require_same_base, write_merged
    from luthier.merging.base import Merge

    if args.rank is not None and args.rank < 1:
        raise RecipeError(f"--rank {args.rank}: expected 1 or more")
    kind = registry.load_class(MERGING, args.method, Merge)  # type: ignore[type-abstract]
    method = build(kind, override({}, args.set))
    parts = [_weighted(text, method.default_weight(len(args.runs))) for text in args.runs]
    sources = [read_source(folder, weight) for folder, weight in parts]
    require_same_base(sources)
    layers = merged_layers(sources, method, args.rank, args.seed)
    settings = ", ".join(f"{key} = {value}" for key, value in method.model_dump().items())
    write_merged(args.out, sources, layers, f"{args.method}{f' ({settings})' if settings else ''}")
    kept = sorted((share, name) for name, (_, share) in layers.items())
    mean = sum(share for share, _ in kept) / len(kept)
    print(f"{len(kept)} layers merged; {mean:.1%} of the combined update is kept on average", end="")
    print(f", least in {kept[0][1]}: {kept[0][0]:.1%}" if kept[0][0] < 0.9995 else "")
    print(args.out / "adapter")
    return 0


def _weighted(text: str, default: float) -> tuple[Path, float]:
    """Folder and weight of `RUN` or `RUN=WEIGHT`."""
    folder, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return Path(text), default
    try:
        return Path(folder), float(weight)
    except ValueError:
        raise RecipeError(f"{text}: expected RUN=WEIGHT with a number such as 0.5") from None
