"""Testing criteria of Evals, and the grader of a job, as graders of ours (`luthier.evaluation.graders`)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data import strict_json
from luthier.data.write import atomic_text
from luthier.errors import DataError, EvaluationError
from luthier.evaluation.graders.base import Grader, Host, Limits, build_grader, validate
from luthier.jobs.eval_grading import read_criterion
from luthier.moving.asked import asked_of
from luthier.moving.exports import Export
from luthier.moving.found import Found, without_nulls

LIMITS = Limits(seconds=20.0)
_ANYTHING = Host(
    ask_model=lambda _model, _messages, _params: _unasked(), embed=lambda _texts: _unasked(), limits=LIMITS
)
"""What is imported may need a model or an embedder, which whoever grades must have."""


def _unasked() -> Any:
    raise EvaluationError("nothing is asked while graders are imported")


@dataclass
class GraderSummary:
    """What became of the graders of a job."""

    taken: list[str] = field(default_factory=list)
    """With where they come from."""
    refused: list[str] = field(default_factory=list)
    """With why."""


def write_graders(path: Path, job: Found, export: Export, is_only: bool) -> GraderSummary:
    """Write the graders that fit a job: its own, and those of Evals that its model was put through.

    With one job in the export, all of its Evals are about it. No file is written where there are none.

    Raises:
        StorageError: the file cannot be written.
    """
    summary, kept = GraderSummary(), []
    for name, values in _of(job, export, is_only):
        try:
            kept.append(read_grader(values))
            summary.taken.append(f"{name}: {values.get('name')} ({values.get('type')})")
        except EvaluationError as error:
            summary.refused.append(f"{name}: {error}")
    if kept:
        with atomic_text(path) as file:
            file.write(json.dumps(kept, ensure_ascii=False, indent=2) + "\n")
    return summary


def read_grader(values: Mapping[str, Any]) -> dict[str, Any]:
    """A grader or a testing criterion as it is kept.

    Raises:
        EvaluationError: it is wrong.
    """
    # an Eval's answer names each criterion with an id, and writes what is not set as null
    given = {key: value for key, value in without_nulls(values).items() if key != "id"}
    if given.get("type") == "multi" or (given.get("type") == "text_similarity" and "pass_threshold" not in given):
        validate(given, _ANYTHING)  # as a job has them, never an Eval
        return given
    return read_criterion(given, _ANYTHING)


def read_graders(path: Path) -> list[Grader]:
    """The graders in a file that `write_graders` wrote; where an Eval passes plays no part in a reward.

    Raises:
        DataError: it is no such file.
    """
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from None
    except ValueError as error:
        raise DataError(f"no JSON: {error}", path) from None
    if not isinstance(values, list) or not all(isinstance(one, Mapping) for one in values):
        raise DataError("expected a list of graders, as `luthier import openai` writes it", path)
    found = []
    for number, one in enumerate(values, 1):
        try:
            kept = read_grader(one)
        except EvaluationError as error:
            raise DataError(f"grader {number}: {error}", path) from None
        found.append(build_grader({key: value for key, value in kept.items() if key != "pass_threshold"}))
    return found


def _of(job: Found, export: Export, is_only: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method = asked_of(job)["method"]
    if method["type"] == "reinforcement":
        yield "the job's own", method["reinforcement"]["grader"]
    for identifier, one in export.evals.items():
        if not is_only and not _asked(job.values.get("fine_tuned_model"), identifier, export):
            continue
        criteria = one.values.get("testing_criteria")
        for criterion in criteria if isinstance(criteria, Sequence) else []:
            if isinstance(criterion, Mapping):
                yield identifier, criterion


def _asked(model: Any, identifier: str, export: Export) -> bool:
    """Whether a model answered in a run of an Eval."""
    runs = (run.values for run in export.runs.values() if run.values.get("eval_id") == identifier)
    items = (one.values for one in export.items.values() if one.values.get("eval_id") == identifier)
    samples = (one.get("sample") for one in items)
    return any(run.get("model") == model for run in runs) or any(
        isinstance(sample, Mapping) and sample.get("model") == model for sample in samples
    )
