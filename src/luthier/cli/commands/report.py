"""Write a run's report: report.html to read, report.json for programs; works on unfinished runs too.

examples:
  luthier report runs/demo                   writes report.json and report.html into the run's folder
  luthier report runs/demo --out page.html   writes the page there and nothing else
  luthier report runs/demo --out facts.json  writes the data there and nothing else
  luthier report --schema                    prints the JSON schema of report.json
"""

import argparse
from pathlib import Path

from luthier.errors import LuthierError, RecipeError
from luthier.report import Report, build_report, write_report
from luthier.report.build import report_json, write_text
from luthier.report.page import BADGES, render_page
from luthier.report.schema import schema_text
from luthier.report.text import visible
from luthier.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier report`."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write one file only: the page (.html) or the data (.json)"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of report.json")


def run(args: argparse.Namespace) -> int:
    """Write the report and print the verdict.

    Raises:
        RecipeError: no run is given, it trained a retriever, or --out has an ending that says neither page nor data.
    """
    if args.schema:
        print(schema_text(), end="")
        return 0
    if args.run is None:
        raise RecipeError("which run? Give its folder, such as `luthier report runs/demo`")
    if args.out is not None and args.out.suffix not in (".html", ".json"):
        raise RecipeError(f"--out {args.out}: expected a file name that ends in .html (the page) or .json (the data)")
    _require_writes(args.run)
    report = build_report(args.run)
    if args.out is None:
        page = write_report(report, args.run)[1]
        RunFolder(args.run).enter()
    else:
        page = write_text(args.out, render_page(report) if args.out.suffix == ".html" else report_json(report))
    print(summary(report, page))
    return 0


def _require_writes(folder: Path) -> None:
    """Check that a run trains a model that writes: what is measured of a retriever is no matter of answers."""
    from luthier.objectives._retriever import RetrieverObjective
    from luthier.recipe.parts import OBJECTIVES, chosen_class

    try:
        objective = (RunFolder(folder).recipe_values() or {}).get("objective") or {}
        kind = chosen_class(OBJECTIVES, objective, "sft", ["objective"])
    except LuthierError:  # a damaged file is told by who reads them all; a plug-in may be elsewhere
        return
    if issubclass(kind, RetrieverObjective):
        raise kind.refusal()


def summary(report: Report, page: Path) -> str:
    """The verdict, what is missing, and where the page is; safe to print, whatever the data holds."""
    lines = [f"{BADGES[report.verdict.recommendation]}.", report.verdict.sentence]
    lines += [f"  ! {warning}" for warning in report.verdict.warnings]
    lines += [f"  missing: {m.part} {m.reason} ({m.remedy})" for m in report.missing]
    return visible("\n".join([*lines, str(page)]))
