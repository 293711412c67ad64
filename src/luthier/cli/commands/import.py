"""Move house: make recipes, rows, graders and old answers of what was exported from OpenAI.

Read are training files, fine-tuning jobs (single or pages of a list), result tables (plain or base64), lists of files,
Evals with runs and output items, and stored completions with their messages; what a file is, is seen by its content.
What is not understood is refused with its file and line, and nothing is written. summary.md tells what became of every
setting, and what has no equivalent.

examples:
  luthier import openai exported/ -o moved
  luthier import openai job.json train.jsonl valid.jsonl -o moved --model qwen2.5-coder-0.5b-instruct
  luthier run moved/ftjob-abc/recipe.toml --out moved/ftjob-abc/run
  luthier parity moved/ftjob-abc/run --answers moved/ftjob-abc/answers.jsonl
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier import` takes."""
    from luthier.recipe import ModelSettings

    parser.add_argument("source", choices=("openai",), help="where the files come from")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="exported files, or folders of them")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument(
        "--model", default=ModelSettings().name, help="base model of every recipe (default: %(default)s)"
    )
    parser.add_argument(
        "--file", action="append", default=[], metavar="ID=PATH", help="which file an id of a job means"
    )
    parser.add_argument(
        "--without", action="append", default=[], type=Path, metavar="PATH", help="a file of a folder to leave out"
    )


def run(args: argparse.Namespace) -> int:
    """Read, write the folder, and say what comes next.

    Raises:
        DataError: a file is not understood, or a job and its files do not fit together.
        RecipeError: a setting of a job is out of range.
        StorageError: the folder is there already, or cannot be written.
    """
    from luthier.moving.answers import collect
    from luthier.moving.exports import files_of, read_export
    from luthier.moving.make import make
    from luthier.moving.summary import commands

    given = _given(args.file)
    paths, hidden = files_of([*args.paths, *given.values()], args.without)
    export = read_export(paths)
    answers, said = collect(export)
    said = [*said, *(f"left out with --without: `{path}`" for path in args.without)]
    summaries = make(export, answers, args.out, args.model, given, (said, hidden))
    print(f"Read {len(paths)} files. Wrote {args.out}/summary.md, which tells what became of everything.")
    for summary in summaries:
        print(f"\n{summary.name}: {summary.refused or summary.told}")
        for line in [] if summary.refused else commands(summary, args.out):
            print(f"  {line}")
    return 0


def _given(pairs: list[str]) -> dict[str, Path]:
    """Files by the ids that the command line names.

    Raises:
        DataError: a pair is none, or an id is given twice.
    """
    from luthier.errors import DataError

    found: dict[str, Path] = {}
    for pair in pairs:
        identifier, equals, path = pair.partition("=")
        if not equals or not identifier or not path or identifier in found:
            raise DataError(f"--file {pair}: expected ID=PATH, each id once, such as file-abc=train.jsonl")
        found[identifier] = Path(path)
    return found
