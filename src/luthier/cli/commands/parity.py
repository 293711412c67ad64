"""Compare a run with the recorded answers of the model that it shall replace, on the same test rows.

The answers are a file that `luthier import openai` wrote, or your own with a JSON object a line: `id` of the test row
or its `messages`, `output`, and where known `model`, `prompt_tokens`, `completion_tokens`, `seconds`, `usd`. Stored
completions and output items of Evals are read as they are exported. parity.json and parity.html in the run's folder
have the metrics of both with paired intervals, how often both say the same, and what answers cost and take.

example:
  luthier parity moved/ftjob-abc/run --answers moved/ftjob-abc/answers.jsonl --graders moved/ftjob-abc/graders.json
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier parity` takes."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of an evaluated run")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="recorded answers of the old model")
    parser.add_argument("--graders", type=Path, metavar="FILE", help="graders for both, as the import wrote them")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="the old job's result table (CSV)")
    parser.add_argument("--system", default="fine_tuned", help="which system of the run (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Compare, write both files, and print what came of it.

    Raises:
        DataError: a file cannot be used, or no row has both answers.
        StorageError: the run's folder cannot be written.
    """
    from luthier.moving.answers import read_answers
    from luthier.moving.parity import compare_with
    from luthier.report.parity import write_parity
    from luthier.report.text import difference, label, visible

    parity = compare_with(args.run, read_answers(args.answers), args.system, args.graders, args.curve)
    page = write_parity(parity, args.run)
    print(visible(parity.sentence))
    for one in parity.compared[1:]:
        d = one.difference
        print(f"  {visible(label(one.name))} {difference(d.difference, d.low, d.high)} on {one.rows:,} rows")
    for note in (*parity.notes, *parity.not_graded):
        print(f"  note: {visible(note)}")
    print(page)
    return 0
