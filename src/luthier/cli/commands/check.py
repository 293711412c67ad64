"""Look at data before anything is trained: the checks over its rows, and the gates over the tokens made from them.

With data files: how they are read, every data check, rows per second. With a recipe: the same over its files and
their split, and the pre-flight gates over rows with its model's template; no weights are loaded. Rows that cannot be
read are all counted and the first of them named; the rest is checked. Exit code 2 if there is an error or a gate
refuses.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.row_checks import Broken, Outcome, check_streams, stream
from luthier.errors import DataError, LuthierError, RecipeError

if TYPE_CHECKING:
    from luthier.preflight.base import GateResult, Subject
    from luthier.recipe import Recipe

REFUSED = 2
LEARNED_BY = {"preference": "dpo", "unpaired_preference": "kto"}
"""Objectives of the formats that `sft` does not learn from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier check` takes."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="data files, or one recipe (.toml)")
    parser.add_argument(
        "--show", type=_count, default=0, metavar="N", help="print N rows with their trained tokens marked"
    )
    parser.add_argument("--test", type=Path, metavar="FILE", help="held-out rows, to find leaks (data files only)")
    parser.add_argument("--format", metavar="NAME", help="how rows are read; default: found out (data files only)")
    parser.add_argument("--model", metavar="NAME", help="run the gates over rows for this model (data files only)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (recipe only)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of rows, at least 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Check, print, and say whether a run may go on.

    Raises:
        RecipeError: options do not go together, or the recipe is wrong.
        DataError: a file cannot be read; carries file and line.
        ModelError: the model is missing.
        TrackingError: a tracker lacks a package, an address or a key.
    """
    try:
        outcome = _check_recipe(args) if _is_recipe(args) else _check_files(args)
    except LuthierError as error:
        if args.json:
            print(_as_json(Outcome(error=str(error))))
        raise
    print(_as_json(outcome) if args.json else _as_text(outcome))
    return 0 if outcome.passed else REFUSED


def _is_recipe(args: argparse.Namespace) -> bool:
    recipes = [path for path in args.paths if path.suffix == ".toml"]
    if not recipes:
        if args.set:
            raise RecipeError("--set changes a recipe, but only data files were given")
        return False
    if len(args.paths) > 1:
        raise RecipeError(f"{recipes[0]} is a recipe and names its own data files; expected it alone")
    for option, key in (("test", "data.test"), ("format", "data.format"), ("model", "model.name")):
        value = vars(args)[option]
        if value is not None:
            raise RecipeError(f"--{option} goes with data files; for a recipe use --set {key}={value}")
    return True


# Data files: streamed, and without torch unless rows are to be rendered


def _check_files(args: argparse.Namespace) -> Outcome:
    from luthier.data.formats.base import sniff

    outcome = Outcome()
    files = {"train": args.paths} | ({"test": [args.test]} if args.test is not None else {})
    for path in (path for paths in files.values() for path in paths):
        outcome.formats[str(path)] = args.format or sniff(path)
    check_streams(files, None, outcome)
    if (args.model or args.show) and outcome.rows["train"]:
        _render_files(args, outcome)
    return outcome


def _render_files(args: argparse.Namespace, outcome: Outcome) -> None:
    """Gates and rows of data files, with a recipe of defaults."""
    from luthier.config import build
    from luthier.data_stage import Data
    from luthier.recipe import Recipe

    seen = Broken()  # these rows were counted before
    examples = list(stream(args.paths, "train", None, outcome, seen))
    held_out = list(stream([args.test], "test", None, outcome, seen)) if args.test is not None else []
    table: dict[str, Any] = {"data": {"train": str(args.paths[0])}}
    if args.model is not None:
        table["model"] = {"name": args.model}
    for name in outcome.formats.values():
        if name in LEARNED_BY:
            table["objective"] = {"type": LEARNED_BY[name]}
    recipe = build(Recipe, table)
    _gates_and_rows(recipe, Data(examples, (), held_out), args, outcome)


# A recipe: its files, its split, its template


def _check_recipe(args: argparse.Namespace) -> Outcome:
    from luthier import recipe as recipes
    from luthier.data.formats.base import sniff
    from luthier.data_stage import divide
    from luthier.retrievers import train as retrievers
    from luthier.tracking import require_trackers

    recipe = recipes.load(args.paths[0], args.set)
    require_trackers(recipe)
    outcome = Outcome()
    settings = recipe.data
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    files = {name: [Path(path)] for name, path in named.items() if path is not None}
    for (path,) in files.values():
        outcome.formats[str(path)] = sniff(path) if settings.format == "auto" else settings.format
    started = time.perf_counter()
    try:
        data, counts, outcome.findings = divide(recipe)
    except DataError:
        check_streams(files, settings.instruction, outcome)
        if not any(finding.check == "schema" for finding in outcome.findings):
            raise  # not for a row that cannot be read
        outcome.notes = ["rows cannot be read, so they were neither split nor rendered: the gates were left out"]
        return outcome
    outcome.rows = {name: len(examples) for name, examples in data.named().items()}
    outcome.seconds = time.perf_counter() - started
    outcome.notes = [str(note) for note in counts["notes"]]
    if counts["dropped_duplicates"]:
        outcome.notes.append(f"{counts['dropped_duplicates']:,} repeated training rows are left out (data.duplicates)")
    if retrievers.is_wanted(recipe):
        if args.show:
            raise RecipeError("--show: an embedder or a reranker trains on no chat; see `luthier retrieve --query`")
        retrievers.require_sensible(recipe)
        outcome.notes.append("an encoder is proven when it is trained: the gates for models that write were left out")
        return outcome
    _gates_and_rows(recipe, data, args, outcome)
    return outcome


def _gates_and_rows(recipe: "Recipe", data: Any, args: argparse.Namespace, outcome: Outcome) -> None:
    from luthier.assemble import adapter_of, template_for
    from luthier.models.catalog import resolve
    from luthier.models.load import open_without_weights
    from luthier.models.new_tokens import with_new_tokens
    from luthier.preflight.base import run_gates
    from luthier.stages import row_subject

    loaded = with_new_tokens(open_without_weights(resolve(recipe.model.name)), adapter_of(recipe).added_tokens)
    longest = min(recipe.training.max_tokens, loaded.max_tokens)
    subject = row_subject(recipe, data, loaded, template_for(recipe, loaded, longest))
    if recipe.data.replay:
        replayed = len(subject.examples) - len(data.train)
        outcome.notes.append(f"{replayed:,} rows of data.replay are mixed into training")
    outcome.gates = run_gates(subject, "rows")
    outcome.shown = _rows_shown(subject, args.show, color=_colors() and not args.json)


def _rows_shown(subject: "Subject", count: int, color: bool) -> list[str]:
    from luthier.preflight._cases import spread
    from luthier.preflight._show import render_row

    cases = [case for case in subject.cases if case.rows]
    chosen = spread(cases, count) if count else []
    return [render_row(row, case.where, subject.tokenizer, color) for case in chosen for row in case.rows]


def _colors() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


# What is printed


def _as_text(outcome: Outcome) -> str:
    from luthier.data.checks._text import render_findings, safe

    blocks = [f"{safe(path)}: read as {name}" for path, name in outcome.formats.items()]
    rows = ", ".join(f"{count:,} {split}" for split, count in outcome.rows.items())
    blocks.append(f"rows: {rows}; {outcome.rows_per_second:,.0f} rows per second")
    blocks += outcome.notes
    blocks.append(render_findings(outcome.findings))
    if outcome.gates:
        blocks += [f"{'pass' if g.passed else 'FAIL':<6}{g.gate}: {_first(g)}" for g in outcome.gates]
        failed = sum(not g.passed for g in outcome.gates)
        blocks.append(f"pre-flight over rows: {len(outcome.gates) - failed} gates passed, {failed} refused")
    if outcome.shown:
        blocks += ["", "\n\n".join(outcome.shown)]
    return "\n".join(blocks)


def _first(gate: "GateResult") -> str:
    from luthier.data.checks._text import safe

    text = gate.message if gate.passed else f"{gate.proves} This does not hold. {gate.message}"
    return "\n".join(safe(line) for line in text.split("\n"))


def _as_json(outcome: Outcome) -> str:
    values: Mapping[str, Any] = {
        "passed": outcome.passed,
        "error": outcome.error,
        "rows": outcome.rows,
        "formats": outcome.formats,
        "seconds": round(outcome.seconds, 3),
        "rows_per_second": round(outcome.rows_per_second, 1),
        "notes": outcome.notes,
        "findings": [finding.to_dict() for finding in outcome.findings],
        "gates": [gate.dump() for gate in outcome.gates],
        "shown": outcome.shown,
    }
    return json.dumps(values, indent=1, ensure_ascii=False)
