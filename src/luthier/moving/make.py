"""From an export to folders that can be run: a recipe for each job that succeeded, its rows, its graders, old answers.

OUT/summary.md                  what was found, what every setting became, and what has no equivalent
OUT/evals/ID.json               an Eval as it came
OUT/JOB/recipe.toml             for `luthier run`
OUT/JOB/train.jsonl test.jsonl  the job's files; the old validation file is our test file: nothing is chosen on it
OUT/JOB/answers.jsonl           what the old model answered to the rows of test.jsonl
OUT/JOB/unanswered.jsonl        rows of the validation file without a recorded answer; not used
OUT/JOB/graders.json            Evals' testing criteria, or the job's own grader, for `luthier parity`
OUT/JOB/old_curve.csv job.json  the result table, and the job as it came
"""

import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.config import build, write_toml
from luthier.data.asked import says_what_is_right
from luthier.data.formats.base import read_examples
from luthier.data.profile import profile
from luthier.data.read import lines_of
from luthier.data.write import atomic_text
from luthier.draft import Facts, require_same_kind
from luthier.errors import DataError, EvaluationError, StorageError
from luthier.examples import Conversation, Document, Example
from luthier.jobs.translate import (
    drafted,
    hyperparameters_of,
    method_of,
    require_graded,
    require_method,
    set_hyperparameters,
)
from luthier.moving.answers import Recorded, newest, prompt_key, write_answers
from luthier.moving.asked import asked_of
from luthier.moving.exports import Export, dumped
from luthier.moving.found import Found
from luthier.moving.graders import write_graders
from luthier.moving.summary import JobSummary, render
from luthier.recipe import Recipe, absolute_paths

TRAIN, TEST, ANSWERS, UNANSWERED = "train.jsonl", "test.jsonl", "answers.jsonl", "unanswered.jsonl"
SUMMARY = "summary.md"
RECIPE, JOB, CURVE, GRADERS = "recipe.toml", "job.json", "old_curve.csv", "graders.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


@dataclass
class Files:
    """Which file an id of the export means."""

    export: Export
    given: Mapping[str, Path]
    """What the user says."""
    used: set[Path] = field(default_factory=set)

    def find(self, identifier: str, among: Sequence[Path]) -> Path | None:
        """The file of an id: as the user says, by the id in its name, or by the name that the list of files tells."""
        name = self.export.files.get(identifier)
        found = [path for path in among if path.stem == identifier or path.name == identifier]
        found = found or [path for path in among if name is not None and path.name == name]
        path = self.given.get(identifier) or (found[0] if len(found) == 1 else None)
        if path is not None:
            self.used.add(path)
        return path

    def require(self, found: Found, key: str) -> Path:
        """The rows that a job names.

        Raises:
            DataError: they are not there, or it is not sure which file they are.
        """
        identifier = found.text(key)
        path = self.find(identifier, list(self.export.rows))
        if path is None:
            name = self.export.files.get(identifier)
            said = f" ({name})" if name else ""
            raise found.error(
                f"{key} {identifier}{said} is not among the files; name it {identifier}.jsonl, add the JSON of the "
                f"list of files, or say --file {identifier}=PATH"
            )
        if path not in self.export.rows:
            raise DataError(f"--file {identifier}: not a training file of the export", path)
        return path


def make(
    export: Export,
    answers: Sequence[Recorded],
    out: Path,
    model: str,
    given: Mapping[str, Path],
    told: tuple[Sequence[str], Sequence[Path]] = ((), ()),
) -> list[JobSummary]:
    """Write the folder of an export; it is there as a whole, or not at all.

    Args:
        export: what was read.
        answers: of old models.
        out: a folder that is not there yet.
        model: the base of all recipes, as `model.name`.
        given: files by id, as the user says.
        told: what else the summary shall say, and files that were left out.

    Raises:
        DataError: a job and its files do not fit together.
        RecipeError: a setting of a job is out of range.
        StorageError: the folder is there, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: is there already, and may hold your changes; name another folder with -o")
    parent = out.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        place = parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
        place.mkdir()  # as open to others as the user lets every new folder be
    except OSError as error:
        raise StorageError(f"{out}: cannot be made: {error.strerror or error}") from None
    try:
        summaries = _fill(place, _Making(export, answers, model, Files(export, _resolved(given, export))))
        _write(place / SUMMARY, render(export, summaries, *told, out))
        if out.exists():
            out.rmdir()
        os.rename(place, out)
    except BaseException:
        shutil.rmtree(place)
        raise
    return summaries


def _resolved(given: Mapping[str, Path], export: Export) -> dict[str, Path]:
    """The user's files as the export has them, which may have been found in a folder.

    Raises:
        DataError: no job has such an id.
    """
    ids = {str(one) for job in export.jobs.values() for one in _ids_of(job)}
    if unknown := sorted(given.keys() - ids):
        told = ", ".join(sorted(ids)) or "none"
        raise DataError(f"--file {unknown[0]}: no job of the export has a file with this id; ids are: {told}")
    known = {path.resolve(): path for path in (*export.rows, *export.curves)}
    return {identifier: known.get(path.resolve(), path) for identifier, path in given.items()}


def _ids_of(job: Found) -> list[Any]:
    results = job.values.get("result_files")
    named = [job.values.get(key) for key in ("training_file", "validation_file")]
    return [one for one in (*named, *(results if isinstance(results, list) else [])) if one is not None]


@dataclass(frozen=True)
class _Making:
    export: Export
    answers: Sequence[Recorded]
    model: str
    files: Files

    def made_by(self, model: str) -> Found | None:
        """The job that made a tuned model."""
        for job in self.export.jobs.values():
            if job.values.get("fine_tuned_model") == model:
                return job
        return None


def _fill(place: Path, making: _Making) -> list[JobSummary]:
    if making.export.evals:
        (place / "evals").mkdir()
    for identifier, one in making.export.evals.items():
        _write(place / "evals" / f"{_named(one, identifier)}.json", dumped(one))
    summaries = [_job(place, job, making) for job in making.export.jobs.values()]
    for path, (kind, count) in making.export.rows.items():
        if path not in making.files.used:
            summaries.append(_rows_alone(place, path, kind, count, making))
    return summaries


def _job(place: Path, job: Found, making: _Making) -> JobSummary:
    """A folder for a job."""
    name, kind = _named(job, job.text("id")), method_of(asked_of(job))
    summary = JobSummary(name, job, kind, making.model)
    folder = place / name
    folder.mkdir()
    _write(folder / JOB, dumped(job))
    train = making.files.require(job, "training_file")
    validation = making.files.require(job, "validation_file") if job.values.get("validation_file") else None
    summary.files = {"training_file": str(train), "validation_file": str(validation) if validation else None}
    _copy_curve(folder, job, making, summary)
    summary.graders = write_graders(folder / GRADERS, job, making.export, len(making.export.jobs) == 1)
    shutil.copyfile(train, folder / TRAIN)
    if validation is not None:
        _divide(folder, validation, job, making, summary)
    if job.text("status") != "succeeded":
        summary.refused = f"the job's status is {job.text('status')}, so there is nothing to make again"
    else:
        try:
            require_graded(asked_of(job))
        except EvaluationError as error:
            summary.refused = f"{error}; the rows and the grader are kept"
        else:
            _recipe(folder, job, making, summary)
    return summary


def _rows_alone(place: Path, path: Path, kind: str, count: int, making: _Making) -> JobSummary:
    """A recipe for rows that no job names, by our own rules alone."""
    nowhere = Found({"id": path.stem, "method": {"type": kind}}, next(iter(read_examples(path))).where)
    summary = JobSummary(_named(nowhere, path.stem), nowhere, kind, making.model, is_job=False)
    summary.files = {"training_file": str(path), "validation_file": None}
    folder = place / summary.name
    if folder.exists():
        raise DataError(f"its recipe would be written to {summary.name}, which is taken; rename the file", path)
    folder.mkdir()
    shutil.copyfile(path, folder / TRAIN)
    if kind == "reinforcement":
        summary.refused = "no job tells how its answers are graded; `[rollout.rewards]` of a recipe does"
    else:
        _recipe(folder, nowhere, making, summary)
    return summary


def _recipe(folder: Path, job: Found, making: _Making, summary: JobSummary) -> None:
    rows = profile(folder / TRAIN)
    held_out = profile(folder / TEST) if (folder / TEST).exists() else None
    require_same_kind(rows, held_out)
    require_method(summary.kind, rows, summary.files["training_file"] or "")
    tree: dict[str, Any] = {"seed": _seed(job), **drafted(Facts(rows, held_out, None, making.model, folder, None))}
    if (
        summary.kind == "dpo" and summary.is_compared
    ):  # pairs are scored; an old answer can only be met by a written one
        tree["evaluation"] |= {"task": "text", "metrics": ["rouge_l", "chrf"], "primary_metric": "rouge_l"}
    if (start := _start(job, making, summary)) is not None:
        tree["adapter"]["start_from"] = start
    asked = asked_of(job)
    set_hyperparameters(tree, asked)
    summary.given = hyperparameters_of(asked)
    if summary.kind == "reinforcement" and not any(map(_says_what_is_right, read_examples(folder / TRAIN))):
        summary.notes.append(
            "Its rows have no reply and no `target`, so its report goes by the reward; the parity report goes by the "
            "grader."
        )
        tree["evaluation"].pop("metrics", None)
        tree["evaluation"]["primary_metric"] = "reward"
    recipe = build(Recipe, absolute_paths(tree, folder.resolve()))
    summary.recipe = recipe
    head = (
        f"# Made by `luthier import openai` from {summary.name}; ../summary.md tells what became of each setting.\n\n"
    )
    _write(folder / RECIPE, head + write_toml(tree))


def _says_what_is_right(example: Example) -> bool:
    return isinstance(example, Conversation) and says_what_is_right(example)


def _seed(job: Found) -> int:
    seed = job.values.get("seed", 0)
    if seed is None:
        return 0
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise job.error(f"'seed' is {seed!r}; expected a whole number, 0 or more")
    return seed


def _start(job: Found, making: _Making, summary: JobSummary) -> str | None:
    """The run that this one goes on from, where the old job went on from a tuned model."""
    base = job.values.get("model")
    if not isinstance(base, str) or not base.startswith("ft:"):
        return None
    earlier = making.made_by(base)
    if earlier is None:
        summary.notes.append(
            f"It went on from {base}, and no job of the export made that; the recipe starts from the base model."
        )
        return None
    name = earlier.text("id")
    summary.notes.append(
        f"It went on from {base}: run {name} first, into {name}/run (`luthier run {name}/{RECIPE} --out {name}/run`)."
    )
    return f"../{name}/run"


def _copy_curve(folder: Path, job: Found, making: _Making, summary: JobSummary) -> None:
    names = job.values.get("result_files") or []
    for identifier in names if isinstance(names, list) else []:
        path = making.files.find(str(identifier), list(making.export.curves))
        if path in making.export.curves:
            (folder / CURVE).write_bytes(making.export.curves[path])
            summary.curve = str(path)
            return
    if names:
        summary.notes.append(f"Its result table ({names[0]}) is not among the files, so there is no old curve.")


def _divide(folder: Path, validation: Path, job: Found, making: _Making, summary: JobSummary) -> None:
    """Write the test rows and the old model's answers to them."""
    model = job.values.get("fine_tuned_model")
    mine = [one for one in making.answers if one.model in (None, model)]
    summary.other_models = Counter(one.model or "" for one in making.answers if one.model not in (None, model))
    by_prompt, by_id, summary.older = newest(mine)
    rows = list(_rows(validation))
    matched = [(line, by_prompt.get(key) or by_id.get(identifier)) for line, key, identifier in rows]
    answered = [one for _, one in matched if one is not None]
    summary.answered, summary.rows = len(answered), len(rows)
    used = {id(one) for one in answered}
    summary.unmatched = len(by_prompt) + len(by_id) - len(used)
    if not summary.is_compared:
        shutil.copyfile(validation, folder / TEST)
        return
    for name, is_answered in ((TEST, True), (UNANSWERED, False)):
        lines = [line for line, one in matched if (one is not None) == is_answered]
        if lines:
            (folder / name).write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in lines))
    write_answers(folder / ANSWERS, [one for one in mine if id(one) in used])


def _rows(path: Path) -> Iterator[tuple[bytes, str, str]]:
    """The lines of a file with rows, what each asks, and its id."""
    lines = [line for _, line in lines_of(path) if line.strip()]
    for line, example in zip(lines, read_examples(path), strict=True):
        yield line, prompt_key(_prompt(example)), example.id


def _prompt(example: Example) -> Any:
    return () if isinstance(example, Document) else example.prompt


def _named(found: Found, name: str) -> str:
    """A name that a folder can have.

    Raises:
        DataError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise found.error(f"{name!r:.60} cannot be the name of a folder; expected letters, digits, ., _ and -")
    return name


def _write(path: Path, text: str) -> None:
    with atomic_text(path) as file:
        file.write(text)
