"""List all runs, newest first; show one with its descent; compare two in settings, rows and results.

A run is named by its folder or by the first characters of its id. Runs are listed in a registry of this user
($LUTHIER_HOME/runs.sqlite, else ~/.local/share/luthier/runs.sqlite), which is read from their folders.

examples:
  luthier runs                           one line a run
  luthier runs runs/demo                 one run, where it came from, and what came from it
  luthier runs runs/demo runs/second     what differs, and who is better on the test rows that both have
  luthier runs --scan runs               find runs that were moved or copied here, and forget those that are gone
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import RecipeError

if TYPE_CHECKING:
    from luthier.run_registry import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier runs`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="none: list all; one: show it; two: compare them")
    parser.add_argument(
        "--scan", type=Path, metavar="FOLDER", help="read the registry anew from the runs in this folder"
    )
    parser.add_argument("--all", action="store_true", help="list the trials of searches, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List, show or compare.

    Raises:
        RecipeError: more than two runs are named, or there is no such run.
        DataError, StorageError: a file of a run, or the registry, is damaged.
    """
    from luthier import run_registry

    if len(args.runs) > 2:
        raise RecipeError(f"{len(args.runs)} runs are named; two can be compared")
    if args.scan is not None:
        found, damaged = run_registry.scan(args.scan)
        print(f"{len(found)} runs found in {args.scan}", file=sys.stderr)
        for trouble in damaged:
            print(f"passed over: {trouble}", file=sys.stderr)
    if len(args.runs) == 2:
        return _compare(args.runs, args.json)
    if args.runs:
        return _show(args.runs[0], args.json)
    return _list(args.all, args.json)


def _list(trials: bool, as_json: bool) -> int:
    from luthier import run_registry
    from luthier.cli.show_runs import entry_lines

    known = run_registry.entries()
    listed = [entry for entry in known if trials or entry.trial is None]
    if as_json:
        print(json.dumps([_dump(entry) for entry in listed], indent=1))
        return 0
    if not known:
        print(
            "no runs are listed yet: `luthier run` makes one, `luthier runs --scan FOLDER` finds those that there are"
        )
    for line in entry_lines(listed):
        print(line)
    if len(listed) < len(known):
        print(f"({len(known) - len(listed)} trials of searches are left out; --all lists them)")
    return 0


def _show(name: str, as_json: bool) -> int:
    from luthier import run_registry
    from luthier.cli.show_runs import entry_text

    entry = run_registry.find(name)
    descent = run_registry.children(entry.id)
    if as_json:
        print(json.dumps({**_dump(entry), "children": [_dump(child) for child in descent]}, indent=1))
    else:
        print(entry_text(entry, descent))
    return 0


def _dump(entry: "Entry") -> dict[str, object]:
    return {**entry.model_dump(), "state": "gone" if entry.is_gone else entry.state}


def _compare(names: list[str], as_json: bool) -> int:
    from luthier import run_registry
    from luthier.cli.show_runs import comparison_text
    from luthier.comparison import compare_runs, read_side

    folders = [Path(run_registry.find(name).folder) for name in names]
    found = compare_runs(read_side(folders[0]), read_side(folders[1]))
    print(json.dumps(found.dump(), indent=1) if as_json else comparison_text(found))
    return 0
