"""Write a commented recipe that fits a data file: kind of answer, lengths, instruction, metrics, defaults by size.

    luthier init train.jsonl --test test.jsonl -o recipe.toml
    luthier init questions.jsonl --corpus passages.jsonl -o recipe.toml     with retrieval on the ladder

Nothing is trained and no model is needed. The recipe is a start: every line says why it stands there.
"""

import argparse
import shlex
from pathlib import Path

from luthier.data.profile import Profile, profile
from luthier.data.write import atomic_text
from luthier.draft import Facts, find_schema, findings, render, require_same_kind, rows_of, task_of
from luthier.errors import DataError, RecipeError
from luthier.evaluation.fitting import SCORED_TASKS
from luthier.rag.corpus import corpus_files
from luthier.recipe import ModelSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier init` takes."""
    parser.add_argument("train", type=Path, help="training rows: JSONL, JSON, CSV, TSV or Parquet")
    parser.add_argument(
        "--test", type=Path, metavar="FILE", help="rows of their own to test on; absent: a share of train"
    )
    parser.add_argument("--validation", type=Path, metavar="FILE", help="rows of their own that choose the checkpoint")
    parser.add_argument(
        "--corpus", type=Path, metavar="FILE", help="texts that answer the questions: a file or a folder of them"
    )
    parser.add_argument("--format", default="auto", help="how a row is read; absent: found by looking at the rows")
    parser.add_argument("--model", default=ModelSettings().name, help="base model (default: %(default)s)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("recipe.toml"), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(args: argparse.Namespace) -> int:
    """Look at the data, write the recipe, and say what was found and what comes next.

    Raises:
        DataError: a file or row cannot be read, or the files do not fit together.
        RecipeError: the recipe exists and --force was not given.
        StorageError: the recipe cannot be written.
    """
    output: Path = args.output
    if output.is_dir():
        raise RecipeError(f"{output}: is a folder; name the file too, such as -o {output / 'recipe.toml'}")
    if output.exists() and not args.force:
        raise RecipeError(f"{output}: exists already, and may hold your changes; name another with -o, or add --force")
    train = profile(args.train, args.format)
    test, validation = (profile(p, args.format) if p else None for p in (args.test, args.validation))
    for held_out in (test, validation):
        require_same_kind(train, held_out)
    schema, said = find_schema(train)
    if args.corpus is not None:
        _require_corpus(args.corpus, train)
    facts = Facts(train, test, validation, args.model, output.resolve().parent, schema, args.corpus)
    text = render(facts)
    with atomic_text(output) as file:
        file.write(text)
    print("\n".join([*findings(facts), *said, "", f"Wrote {output}. Look at it, then:"]))
    there = shlex.quote(str(output))
    print(f"  luthier check {there}   what is wrong with the data, and what will be trained, token by token")
    print(f"  luthier run {there}     baselines, training, test, verdict")
    return 0


def _require_corpus(corpus: Path, train: Profile) -> None:
    """Check that there is something to retrieve, and something that is asked.

    Raises:
        DataError: there is no such file or folder, or it is of a kind that is not read.
        RecipeError: rows are scored and not answered.
    """
    if not corpus.exists():
        raise DataError("no such file or folder; --corpus names the texts that answer the questions", corpus)
    corpus_files(corpus)
    if task_of(train) in SCORED_TASKS:
        raise RecipeError(
            f"--corpus: passages stand before a question, and {train.path} has {rows_of(train)}, which ask nothing"
        )
