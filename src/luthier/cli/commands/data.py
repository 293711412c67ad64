"""Make the data of an example, preference pairs or replies, or look at each row of a file and keep the best.

  luthier data                                   list the examples there are
  luthier data addresses                         make the data of one
  luthier data score FILE                        figures of each row: repeats, outliers, label errors, loss
  luthier data select FILE --keep K --out FILE   keep the K best rows, as they stand
  luthier data preferences RECIPE --out DIR      pairs for dpo: replies that a model writes, graded or judged
  luthier data replies RECIPE --out DIR          rows for sft: replies that a model writes, the best or all good ones

`score` and `select` read any file that training reads; --model adds the loss of each row under a base model.
`preferences` and `replies` ask the recipe's training rows, as its [rollout] says; given again, they go on where they
were stopped.

An example is a folder with an importer.py, whose function `import_rows(out)` writes the files and returns what to say
about them. It is looked for in ./examples, beside the installed package's checkout, or at a path. Its code is run.
"""

import argparse
import ast
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import luthier
from luthier.config import did_you_mean
from luthier.errors import DataError

IMPORTER = "importer.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier data` takes."""
    parser.add_argument(
        "example", nargs="?", help="score, select, preferences, replies, a folder in examples/, or the path of one"
    )
    parser.add_argument(
        "file", nargs="?", type=Path, help="rows to score or to select from; preferences, replies: a recipe"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="score: figures, .jsonl or .csv; select: rows; else a folder, for preferences and replies by default "
        "runs/<name of the recipe>-preferences or -replies",
    )
    parser.add_argument("--keep", type=_count, metavar="K", help="select: how many rows")
    parser.add_argument(
        "--by",
        choices=[choice for choices in BY.values() for choice in choices],
        help="what counts; select: coverage (the default), easy, hard; preferences: rewards (the default), judge; "
        "replies: best (the default), passing",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="select, preferences, replies: every row's figures and fate, .jsonl or .csv",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="score, select: the model whose loss is measured; preferences, replies: who writes in place of the "
        "recipe's model, a table of evaluation.systems with type = 'remote', or `teacher`, whom [teacher] names",
    )
    parser.add_argument("--format", metavar="NAME", help="score, select: how rows are read; default: found out")
    parser.add_argument(
        "--margin", type=_margin, metavar="X", help="preferences: least difference of rewards; default: any"
    )
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="preferences, replies: change a setting, such as rollout.group_size=4",
    )
    parser.add_argument(
        "--least", type=_finite, metavar="X", help="replies: least reward of one that is kept; default: any"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of rows, at least 1")
    return int(text)


def _margin(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return found


def _finite(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number")
    return found


BY = {"select": ("coverage", "easy", "hard"), "preferences": ("rewards", "judge"), "replies": ("best", "passing")}
"""What may count, by action."""
TAKEN = {
    "score": ("file", "out", "model", "format"),
    "select": ("file", "out", "keep", "by", "report", "model", "format"),
    "preferences": ("file", "out", "by", "report", "model", "margin", "set"),
    "replies": ("file", "out", "by", "report", "model", "least", "set"),
}
"""What each action takes; the examples take `out` alone."""
OF_RECIPES = ("preferences", "replies")


def run(arguments: argparse.Namespace) -> int:
    """Score or select rows, make pairs or replies, run the importer of the named example, or list the examples.

    Raises:
        DataError: options do not go together, or a file or example cannot be used.
    """
    _require_taken(arguments)
    if arguments.example in TAKEN:
        from luthier.cli import data_preferences, data_quality, data_replies

        actions = {
            "score": data_quality.score,
            "select": data_quality.select,
            "preferences": data_preferences.preferences,
            "replies": data_replies.replies,
        }
        return actions[arguments.example](arguments)
    if arguments.example is None:
        print(_listing())
        return 0
    folder = find_example(arguments.example)
    out = arguments.out or Path("runs") / f"{folder.name}-data"
    if out.exists() and not out.is_dir():
        raise DataError("is a file; expected a folder to write into", out)
    for line in load_importer(folder)(out):
        print(line)
    return 0


def _require_taken(arguments: argparse.Namespace) -> None:
    """No option is accepted and ignored."""
    action = arguments.example
    taken = TAKEN.get(action, ("out",))
    for name, value in vars(arguments).items():
        if name != "example" and value is not None and name not in taken:
            raise DataError(f"luthier data {action or ''}: takes no {name if name == 'file' else '--' + name}")
    if action in TAKEN and arguments.file is None:
        raise DataError(f"luthier data {action}: expected a {'recipe' if action in OF_RECIPES else 'data file'}")
    if arguments.by is not None and arguments.by not in BY[action]:
        raise DataError(f"luthier data {action}: --by {arguments.by}: expected {' or '.join(BY[action])}")
    if arguments.by in ("easy", "hard") and arguments.model is None:
        raise DataError(f"--by {arguments.by} goes by the loss under a model; expected --model NAME")


def example_homes() -> list[Path]:
    """Folders in which examples are looked for: ./examples, and that of the checkout this package runs from."""
    checkout = Path(luthier.__file__).resolve().parents[2] / "examples"
    homes = [Path("examples").resolve(), checkout]
    return [home for home in dict.fromkeys(homes) if home.is_dir()]


def find_example(name: str) -> Path:
    """The folder of an example, by name or by path.

    Raises:
        DataError: there is none; the message lists those that there are.
    """
    candidates = [Path(name).expanduser(), *(home / name for home in example_homes())]
    for folder in candidates:
        if (folder / IMPORTER).is_file():
            return folder.resolve()
    known = sorted(_known())
    where = " or ".join(str(home) for home in example_homes()) or "./examples"
    raise DataError(
        f"no example {name!r}: neither a folder with an {IMPORTER}, nor in {where}{did_you_mean(name, known)}"
        "; examples come with a checkout of the repository, not with the installed package"
    )


def load_importer(folder: Path) -> Callable[[Path], Sequence[str]]:
    """`import_rows` of a folder's importer.py: it writes into the folder it is given, and returns what to say of that.

    Files beside importer.py can be imported by it, as if it were run as a script.

    Raises:
        DataError: it cannot be imported, or defines no function `import_rows`.
    """
    path = folder / IMPORTER
    spec = importlib.util.spec_from_file_location(f"luthier_example_{folder.name}", path)
    if spec is None or spec.loader is None:
        raise DataError("cannot be imported as Python", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is somebody's program, and anything can be wrong with it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        raise DataError(f"cannot be imported: {type(error).__name__}: {error}", path, line) from error
    finally:
        sys.path.remove(str(folder))
    function = vars(module).get("import_rows")
    if not callable(function):
        raise DataError("defines no function import_rows(out: Path) -> list[str]", path)
    importer: Callable[[Path], Sequence[str]] = function
    return importer


def _known() -> dict[str, Path]:
    """Examples with an importer, by name; the first home that has one counts."""
    found: dict[str, Path] = {}
    for home in example_homes():
        for path in sorted(home.glob(f"*/{IMPORTER}")):
            found.setdefault(path.parent.name, path)
    return found


def _listing() -> str:
    known = _known()
    if not known:
        return "no examples here; run this in a checkout of the repository, or name the path of a folder"
    lines = [f"  {name:<12} {_first_line(path)}" for name, path in known.items()]
    return "\n".join(["examples with data:", *lines, "", "luthier data NAME makes the data of one."])


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (OSError, SyntaxError, ValueError) as error:
        return f"(its {IMPORTER} cannot be read: {error})"
    return text.partition("\n")[0]
