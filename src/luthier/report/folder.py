"""Reads a run's folder as it stands: whole, half finished, or just begun. What is absent is listed, never guessed.

An absent file is a `Missing`, because a run that was stopped has some. A damaged file is a `DataError` with its line,
because a report over half-read numbers would be wrong; the one exception is a last line without its line feed, which is
what a killed process leaves behind.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from luthier.errors import DataError
from luthier.report.schema import (
    Abstention,
    Difference,
    Evaluation,
    Finding,
    Forgetting,
    Frontier,
    Gate,
    Grounding,
    LearningCurve,
    Missing,
    Part,
    Recorded,
    Retrieval,
    Split,
    Style,
    System,
    Training,
)

T = TypeVar("T")
SLOW_STEP = 10
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Metrics:
    """`metrics.jsonl`, each step once, in order: a step repeated after a resume counts as it was done last."""

    losses: dict[int, float | None]
    validation: dict[int, float | None]
    seconds: float
    slow_seconds: float
    """Beyond the median step, of steps that took over SLOW_STEP times as long: most likely the process was stopped."""
    tokens: int
    trained_tokens: int


class _Measured(Evaluation):
    """`evaluation.json`: the evaluation, its systems and their differences in one file."""

    systems: tuple[System, ...]
    """What was evaluated."""
    differences: tuple[Difference, ...] = ()
    """Paired."""


class Stage(Part):
    """What the manifest records of a stage."""

    seconds: float | None = None
    """How long it took; null while it runs."""
    joules: float | None = None
    """Energy it took; null where it was not measured."""


class Manifest(Recorded):
    """`manifest.json`."""

    stages: dict[str, Stage] = {}
    """By stage."""


@dataclass
class RunParts:
    """Everything that a run's folder holds, None where it holds nothing."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest = field(default_factory=Manifest)
    split: Split | None = None
    findings: list[Finding] | None = None
    preflight: list[Gate] | None = None
    metrics: Metrics | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None
    systems: tuple[System, ...] = ()
    differences: tuple[Difference, ...] = ()
    forgetting: Forgetting | None = None
    forgetting_with_passages: Forgetting | None = None
    curve: LearningCurve | None = None
    retrieval: Retrieval | None = None
    frontier: Frontier | None = None
    grounding: Grounding | None = None
    style: Style | None = None
    abstention: Abstention | None = None
    missing: list[Missing] = field(default_factory=list)


# file -> what writes it, for the reader of a half-finished run
WRITTEN_BY = {
    "recipe.json": "`luthier run` writes it when a run begins",
    "manifest.json": "`luthier run` writes it when a run begins",
    "findings.json": "the data checks write it: `luthier check`",
    "data/split.json": "the split writes it, after the data checks: `luthier check`",
    "preflight.json": "the pre-flight gates write it, before the first step: `luthier train`",
    "metrics.jsonl": "training writes a line a step: `luthier train`",
    "training.json": "training writes it when it ends: `luthier train`",
    "evaluation.json": "`luthier evaluate` writes it",
    "retrieval.json": "`luthier evaluate` writes it before the first system answers",
    "forgetting.json": "`luthier evaluate` writes it, unless the recipe leaves forgetting out",
}


def read_run(folder: Path) -> RunParts:
    """Read every part of a run that is there.

    Raises:
        DataError: `folder` is not a run's folder, or a file in it is damaged (with its line).
    """
    if not folder.is_dir():
        raise DataError("no such folder; give the folder of a run, such as runs/demo", folder)
    if not any((folder / name).is_file() for name in WRITTEN_BY):
        raise DataError(f"not a run's folder: it holds none of {', '.join(WRITTEN_BY)}", folder)
    parts = RunParts(folder)
    parts.recipe = _read(parts, "recipe.json", dict[str, Any]) or {}
    parts.manifest = _read(parts, "manifest.json", Manifest) or Manifest()
    parts.findings = _read(parts, "findings.json", list[Finding])
    parts.split = _read(parts, "data/split.json", Split)
    parts.preflight = _read(parts, "preflight.json", list[Gate])
    parts.metrics = _read_metrics(parts)
    parts.training = _read(parts, "training.json", Training)
    measured = _read(parts, "evaluation.json", _Measured)
    if measured is not None:
        parts.evaluation = Evaluation(**measured.model_dump(exclude={"systems", "differences"}))
        parts.systems, parts.differences = measured.systems, measured.differences
        _require_unique(parts)
    parts.forgetting = _read(parts, "forgetting.json", Forgetting)
    parts.forgetting_with_passages = _read(parts, "with_passages/forgetting.json", Forgetting)
    parts.curve = _read(parts, "curve.json", LearningCurve)
    parts.retrieval = _read(parts, "retrieval.json", Retrieval)
    if (folder / "remember.json").is_file():  # most runs have none, and lack nothing
        parts.frontier = _read(parts, "remember.json", Frontier)
    if (folder / "grounding.json").is_file():  # only rows with passages make one
        parts.grounding = _read(parts, "grounding.json", Grounding)
    if (folder / "style.json").is_file():  # only free text makes one
        parts.style = _read(parts, "style.json", Style)
    if (folder / "abstention.json").is_file():  # only systems that tell how sure they are make one
        parts.abstention = _read(parts, "abstention.json", Abstention)
    return parts


def _require_unique(parts: RunParts) -> None:
    names = [system.name for system in parts.systems]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"two systems are called {repeated[0]!r}; names must differ", parts.folder / "evaluation.json")


def _read(parts: RunParts, name: str, kind: Any) -> Any:
    path = parts.folder / name
    if not path.is_file():
        if name in WRITTEN_BY:  # other files are there only if they were asked for
            parts.missing.append(Missing(part=name, reason="is not there", remedy=WRITTEN_BY[name]))
        return None
    value = parse_json(_text(path), path, on_odd=lambda what: note_odd(parts.missing, name, what))
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(f"{at}: {first['msg']}, found {str(first['input'])[:80]!r}", path) from None


def note_odd(missing: list[Missing], name: str, what: str) -> None:
    """List once that a file holds values which JSON cannot carry, and how they are shown."""
    entry = Missing(part=name, reason=f"holds {what}", remedy="look at the file for the row or step it happened in")
    if entry not in missing:
        missing.append(entry)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path) from None


def parse_json(
    text: str, path: Path, line: int | None = None, on_odd: Callable[[str], None] = lambda what: None
) -> Any:
    """The value of a JSON text.

    Numbers that are not finite become null and lone surrogates their escape; `on_odd` is told of either.

    Raises:
        DataError: it is not JSON; carries file and line.
    """

    def finite(digits: str) -> float | None:
        value = float(digits)
        if math.isfinite(value):
            return value
        on_odd("numbers that are not finite, shown as n/a")
        return None

    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite)
    except (json.JSONDecodeError, RecursionError) as error:
        at = error.lineno if line is None and isinstance(error, json.JSONDecodeError) else line
        raise DataError(f"not JSON: {error}; delete the file and run its stage again", path, at) from None
    # only an escape can bring a lone surrogate in, so most texts need no walk
    return _escape_surrogates(value, on_odd) if "\\ud" in text.lower() else value


def _escape_surrogates(value: Any, on_odd: Callable[[str], None]) -> Any:
    if isinstance(value, str) and _SURROGATE.search(value):
        on_odd("half characters (lone surrogates), shown as their code")
        return _SURROGATE.sub(lambda m: f"\\u{ord(m.group()):04x}", value)
    if isinstance(value, dict):
        return {_escape_surrogates(k, on_odd): _escape_surrogates(v, on_odd) for k, v in value.items()}
    if isinstance(value, list):
        return [_escape_surrogates(v, on_odd) for v in value]
    return value


def read_lines(path: Path, name: str, missing: list[Missing]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, byte offset, object) for each line of a JSONL file that a process may have been killed over.

    Raises:
        DataError: a line other than an unfinished last one is not a JSON object.
    """
    offset = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8")
                value = parse_json(text, path, line, on_odd=lambda what: note_odd(missing, name, what))
            except (DataError, UnicodeDecodeError) as error:
                if raw.endswith(b"\n"):
                    raise error if isinstance(error, DataError) else DataError(str(error), path, line) from None
                reason = f"ends in the middle of line {line}: the process was killed while it wrote"
                missing.append(
                    Missing(part=name, reason=reason, remedy="run the stage again; it goes on where it stopped")
                )
                return
            if not isinstance(value, dict):
                raise DataError(f"expected a JSON object, found {text.strip()[:40]!r}", path, line)
            yield line, start, value


def number_of(values: dict[str, Any], key: str, path: Path, line: int) -> float | None:
    """A number or null at `key`.

    Raises:
        DataError: it is something else.
    """
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{key} = {value!r}: expected a number", path, line)
    return float(value)


def _read_metrics(parts: RunParts) -> Metrics | None:
    name = "metrics.jsonl"
    path = parts.folder / name
    if not path.is_file():
        parts.missing.append(Missing(part=name, reason="is not there", remedy=WRITTEN_BY[name]))
        return None
    steps: dict[int, dict[str, Any]] = {}
    lines: dict[int, int] = {}
    for line, _, values in read_lines(path, name, parts.missing):
        step = number_of(values, "step", path, line)
        if step is None:
            raise DataError("a line of metrics has no step", path, line)
        steps[int(step)], lines[int(step)] = values, line
    if not steps:
        parts.missing.append(Missing(part=name, reason="is empty", remedy=WRITTEN_BY[name]))
        return None

    def column(key: str) -> dict[int, float | None]:
        return {step: number_of(steps[step], key, path, lines[step]) for step in sorted(steps) if key in steps[step]}

    seconds = [v for v in column("seconds").values() if v is not None]
    return Metrics(
        losses=column("loss"),
        validation={
            step: v for step, v in column("validation_loss").items() if steps[step]["validation_loss"] is not None
        },
        seconds=sum(seconds),
        slow_seconds=_slow_seconds(seconds),
        tokens=int(sum(v or 0 for v in column("tokens").values())),
        trained_tokens=int(sum(v or 0 for v in column("trained_tokens").values())),
    )


def _slow_seconds(seconds: Sequence[float]) -> float:
    usual = median(seconds) if seconds else 0.0
    return sum(s - usual for s in seconds if s > SLOW_STEP * usual)
