"""The process of one look at a file, for the studio.

    python -m luthier.cli.look_process FOLDER

What it finds stands in `found.json` as soon as it is known, stage by stage: `rows` and `findings` as `luthier check`
has them, `settings` that a job would pick, `gates` and `shown` rows as tokens, `estimate` of memory and time. `done` is
last, with `trouble` if a stage could not be done.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier import system_memory
from luthier.cli.job_process import die_with_parent
from luthier.data.write import atomic_text
from luthier.errors import LuthierError
from luthier.jobs.job_folder import RECIPE, TRAIN
from luthier.recipe import Recipe
from luthier.web.looks import ASKED, FOUND

SHOWN_ROWS, SHOWN_CHARACTERS = 6, 6000
SPARE_BYTES = 2**30
"""Left to others when a model is loaded to be measured, besides twice its size."""


class Found:
    """What is known so far; each stage is written as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._values = folder, dict[str, Any]()

    def add(self, **values: Any) -> None:
        """Tell of more."""
        self._values |= values
        with atomic_text(self._folder / FOUND) as file:
            json.dump(self._values, file)

    def trouble(self, error: LuthierError) -> None:
        """Tell what ended the look, without the path of this folder."""
        self.add(done=True, trouble=str(error).replace(f"{self._folder}/", ""))


def main(arguments: list[str]) -> int:
    """Look; the exit code is 0 if every stage could be done."""
    folder = Path(arguments[0]).resolve()
    die_with_parent()
    os.nice(10)
    os.chdir(folder)  # places within it are told without its path
    found = Found(folder)
    try:
        look(folder, json.loads((folder / ASKED).read_text(encoding="utf-8")), found)
    except LuthierError as error:
        found.trouble(error)
        return 2
    found.add(done=True)
    return 0


def look(folder: Path, asked: Mapping[str, Any], found: Found) -> None:
    """All stages.

    Raises:
        LuthierError: one cannot be done; those before it were told.
    """
    from luthier import recipe as recipes

    kind = check_rows(folder / TRAIN, found)
    pick_settings(folder, asked["base"], kind, found)
    recipe = recipes.load(folder / RECIPE)
    show_tokens(recipe, found)
    measure(recipe, folder, found)


def check_rows(path: Path, found: Found) -> str:
    """The data checks, without torch; the format of the rows."""
    from luthier.cli.row_checks import Outcome, check_streams
    from luthier.data.formats.base import sniff

    outcome = Outcome(formats={str(path): sniff(path)})
    check_streams({"train": [path]}, None, outcome)
    findings = [
        {
            "check": one.check,
            "severity": one.severity,
            "message": one.message,
            "advice": one.advice,
            "lines": [where.row or where.line for where in one.where],
            "count": one.count,
        }
        for one in outcome.findings
    ]
    kind = outcome.formats[str(path)]
    found.add(rows=outcome.rows["train"], format=kind, findings=findings)
    return kind


def pick_settings(folder: Path, base: str, kind: str, found: Found) -> None:
    """What a job on these rows would train with."""
    from luthier.jobs.translate import write_recipe

    method = "dpo" if kind == "preference" else "supervised"
    picked = write_recipe(folder, base, {"method": {"type": method}}, seed=0)
    found.add(method=method, picked=picked.dump(), recipe=(folder / RECIPE).read_text(encoding="utf-8"))


def show_tokens(recipe: Recipe, found: Found) -> None:
    """The gates over rows, and some rows as the model would get them; no weights are loaded."""
    from luthier.assemble import adapter_of, template_for
    from luthier.data_stage import divide
    from luthier.models.catalog import resolve
    from luthier.models.load import open_without_weights
    from luthier.models.new_tokens import with_new_tokens
    from luthier.preflight._cases import spread
    from luthier.preflight._show import segments
    from luthier.preflight.base import run_gates
    from luthier.stages import row_subject

    data, _, _ = divide(recipe)
    loaded = with_new_tokens(open_without_weights(resolve(recipe.model.name)), adapter_of(recipe).added_tokens)
    longest = min(recipe.training.max_tokens, loaded.max_tokens)
    subject = row_subject(recipe, data, loaded, template_for(recipe, loaded, longest))
    gates = run_gates(subject, "rows")
    shown = []
    for case in spread([case for case in subject.cases if case.rows], SHOWN_ROWS):
        for row in case.rows:
            pieces, left = [], SHOWN_CHARACTERS
            for piece in segments(row, subject.tokenizer):
                pieces.append({**asdict(piece), "text": piece.text[: max(left, 0)]})
                left -= len(piece.text)
            told = {"line": case.where.row or case.where.line, "tokens": len(row.ids), "trained": row.trained_tokens}
            shown.append({**told, "pieces": [p for p in pieces if p["text"]], "cut": left < 0})
    found.add(gates=[gate.dump() for gate in gates], shown=shown)


def measure(recipe: Recipe, folder: Path, found: Found) -> None:
    """Memory and time of the training, by one step of it; where the model can be loaded beside what runs."""
    from luthier.data_stage import prepare_data
    from luthier.estimate import estimate_training
    from luthier.models.catalog import resolve
    from luthier.progress import Terminal
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    needed = 2 * resolve(recipe.model.name).stored_bytes + SPARE_BYTES
    if system_memory.free_bytes() < needed:
        found.add(no_estimate="There is too little free memory to load the model beside what runs now.")
        return
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run, progress = RunFolder(Path(place), listed=False), Terminal()
        run.open(recipe, folder / RECIPE)
        opened = open_run(recipe, run, prepare_data(recipe, run, progress), progress)
        found.add(estimate=asdict(estimate_training(opened)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
