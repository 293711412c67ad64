"""`luthier data score` and `luthier data select`: figures of each row, and the rows worth keeping.

Neither touches the file that it reads.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError
from luthier.examples import Example

if TYPE_CHECKING:
    from luthier.data.quality import Quality
    from luthier.data.selection import Selection

SHOWN = 5
"""Rows listed at each end of a figure."""
LISTED = 10
"""Dropped rows listed for each reason; `--report` has them all."""
_FIGURES = {
    "outlier": "like no other row",
    "characters": "longest",
    "loss": "hardest for the model",
}


def score(args: argparse.Namespace) -> int:
    """Print a report of the figures, and write them to `--out` if that is given.

    Raises:
        DataError: the file cannot be read, or `--out` is that file or not of an ending that figures have.
    """
    require_places(args.file, {"--out": args.out})
    require_ending(args.out)
    quality = _measured(args)
    values = [quality.values(row) for row in range(len(quality.examples))]
    if args.out is not None:
        write_figures(args.out, values)
    print(_report(quality, values))
    return 0


def select(args: argparse.Namespace) -> int:
    """Choose rows, write them to `--out` as they are, and say what was dropped and why.

    Raises:
        DataError: the file cannot be read, or `--out`, `--report` or `--keep` is missing or wrong.
    """
    from luthier.data.selection import select as choose

    if args.keep is None or args.out is None:
        raise DataError("luthier data select: expected --keep K and --out FILE", args.file)
    require_places(args.file, {"--out": args.out, "--report": args.report})
    _require_ending_of_rows(args.file, args.out)
    require_ending(args.report)
    quality = _measured(args)
    selection = choose(quality, args.keep, args.by or "coverage")
    _write_rows(args.file, args.out, [quality.examples[row] for row in selection.kept.tolist()])
    if args.report is not None:
        write_figures(args.report, [_verdict(quality, selection, row) for row in range(len(quality.examples))])
    print(_told(quality, selection, args))
    return 0


def require_places(source: Path, outputs: Mapping[str, Path | None]) -> None:
    """Check, before anything is measured, that nothing is written over the file that is read or over each other.

    Raises:
        DataError: two names are of one file, or one is a folder.
    """
    taken = {"the file that is read": source}
    for option, path in outputs.items():
        if path is None:
            continue
        if path.is_dir():
            raise DataError(f"{option} is a folder; expected a file", path)
        for what, other in taken.items():
            if _same_file(path, other):
                raise DataError(f"{option} must not be {what}, which would be lost; name another file", path)
        taken[f"that of {option}"] = path


def _same_file(a: Path, b: Path) -> bool:
    """Whether both names are of one file, which need not be there yet."""
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def require_ending(figures: Path | None) -> None:
    """Check that a file of figures, if there shall be one, is of a kind that they are written as.

    Raises:
        DataError: it is not.
    """
    if figures is not None and figures.suffix not in (".jsonl", ".csv"):
        raise DataError("figures are written as .jsonl or .csv; expected one of these endings", figures)


def _require_ending_of_rows(source: Path, out: Path) -> None:
    from luthier.data.read import is_jsonl

    if not is_jsonl(source) and out.suffix != ".jsonl":
        raise DataError(f"rows of a {source.suffix} file are written as JSON Lines; expected the ending .jsonl", out)


def _measured(args: argparse.Namespace) -> "Quality":
    from luthier.data.formats.base import read_examples
    from luthier.data.quality import measure

    examples = list(read_examples(args.file, args.format or "auto"))
    quality = measure(examples, _say)
    if args.model is not None:
        quality.losses = _losses(examples, args.model)
    return quality


def _losses(examples: Sequence[Example], model: str) -> Any:
    from luthier import assemble
    from luthier.config import build
    from luthier.data.losses import row_losses
    from luthier.models.scorer import Scorer
    from luthier.recipe import Recipe

    _say(f"asking {model}")
    recipe = build(Recipe, {"data": {"train": str(examples[0].where.path)}, "model": {"name": model}})
    loaded = assemble.open_model(recipe)
    loaded.model.eval()
    template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
    return row_losses(examples, template, Scorer(loaded.model), _counter(len(examples)))


def _counter(total: int) -> Callable[[int], None]:
    def done(count: int) -> None:
        _say(f"  {count:,} of {total:,} rows")

    return done


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# What is written


def write_figures(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Write figures of rows as `.jsonl` or `.csv`."""
    from luthier.data.write import atomic_text

    with atomic_text(path) as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in values)
            return
        names = list(dict.fromkeys(name for row in values for name in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: " ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in values)


def _write_rows(source: Path, out: Path, kept: Sequence[Example]) -> None:
    """JSON Lines byte for byte as they stand in the source; rows of other files in Luthier's one form."""
    from luthier.data.read import is_jsonl
    from luthier.data.write import atomic_bytes, write_examples

    if is_jsonl(source):
        lines = {example.where.line for example in kept}
        with atomic_bytes(out) as file:
            file.writelines(_lines(source, lines))
        return
    write_examples(out, kept)


def _lines(source: Path, wanted: set[int]) -> Iterator[bytes]:
    from luthier.data.read import lines_of

    for number, line in lines_of(source):
        if number in wanted:
            yield line if line.endswith(b"\n") else line + b"\n"


# What is said


def _report(quality: "Quality", values: Sequence[dict[str, Any]]) -> str:
    unit = quality.examples[0].where.parts()[1]
    lines = [
        f"{len(values):,} rows: {sum(v['repeats'] is not None for v in values):,} repeat an earlier one, "
        f"{sum(v['near_duplicate_of'] is not None and v['repeats'] is None for v in values):,} nearly repeat one, "
        f"{len(quality.faults):,} have faults"
    ]
    for name, count in Counter(fault for faults in quality.faults.values() for fault in faults).most_common():
        at = [values[row][unit] for row, faults in quality.faults.items() if name in faults]
        lines.append(f"  {name}: {count:,} (`luthier check` says more), {unit}s {_some(at)}")
    for name, most in _FIGURES.items():
        known = [v for v in values if v.get(name) is not None]
        if known:
            ordered = sorted(known, key=lambda v: (-v[name], v[unit]))
            lines.append(f"{name}: {_ends(ordered, name, unit, most)}")
    lines += _label_lines(quality, unit)
    return "\n".join([*lines, *quality.notes])


def _ends(ordered: Sequence[dict[str, Any]], name: str, unit: str, most: str) -> str:
    middle = ordered[len(ordered) // 2][name]
    top, bottom = (", ".join(f"{v[unit]} ({v[name]:g})" for v in part) for part in (ordered[:SHOWN], ordered[-SHOWN:]))
    return f"{most}: {unit}s {top}\n  least: {unit}s {bottom}; in the middle {middle:g}"


def _label_lines(quality: "Quality", unit: str) -> list[str]:
    if quality.suspected is None:
        return []
    from luthier.data.checks._text import safe

    found = list(quality.suspected.values())
    lines = [f"labels that look wrong: {len(found):,}, the least believable first"]
    for error in found[:LISTED]:
        number = quality.examples[error.row].where.parts()[2]
        lines.append(
            f"  {unit} {number}: {safe(error.label)} ({error.confidence:.3f}); "
            f"likelier {safe(error.likelier)} ({error.likelier_confidence:.3f})"
        )
    return lines


def _told(quality: "Quality", selection: "Selection", args: argparse.Namespace) -> str:
    from luthier.data.checks._text import safe
    from luthier.data.selection import REASONS

    kept, total = len(selection.kept), len(quality.examples)
    lines = [f"{args.out}: {kept:,} of {total:,} rows"]
    if kept < args.keep:
        lines[0] += f"; {args.keep:,} were asked for, and no more are fit"
    unit = quality.examples[0].where.parts()[1]
    for reason in REASONS:
        rows = [row for row, dropped in selection.dropped.items() if dropped.reason == reason]
        if not rows:
            continue
        lines.append(f"  {len(rows):,} dropped: {reason}")
        if reason == "not chosen":
            lines[-1] += f", {unit}s {_some([quality.examples[row].where.parts()[2] for row in sorted(rows)])}"
            continue
        for row in rows[:LISTED]:
            number = quality.examples[row].where.parts()[2]
            lines.append(f"    {unit} {number}: {safe(selection.dropped[row].detail)}")
        if len(rows) > LISTED:
            lines.append(f"    and {len(rows) - LISTED:,} more (--report FILE names all)")
    return "\n".join([*lines, *_curve(selection), *quality.notes])


def _curve(selection: "Selection") -> list[str]:
    """Coverage against the number of rows, at powers of two."""
    if not selection.coverage:
        return []
    counts = [2**n for n in range(len(selection.coverage).bit_length()) if 2**n < len(selection.coverage)]
    points = [f"{count:,} {selection.coverage[count - 1]:.2f}" for count in [*counts[-6:], len(selection.coverage)]]
    return [f"coverage (mean likeness of all fit rows to the nearest kept one) by rows kept: {', '.join(points)}"]


def _verdict(quality: "Quality", selection: "Selection", row: int) -> dict[str, Any]:
    dropped = selection.dropped.get(row)
    verdict = {"kept": dropped is None, "reason": dropped and dropped.reason, "detail": dropped and dropped.detail}
    return quality.values(row) | verdict


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:LISTED]))
    return shown if len(numbers) <= LISTED else f"{shown} and {len(numbers) - LISTED:,} more"
