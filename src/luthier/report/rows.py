"""Ten test rows on which the systems differ, picked by a rule and not by taste.

The widest disagreements between the fine-tuned system and the best baseline come first, wins and losses in turn, so
that a page cannot show only the flattering ones. Equal disagreements are ordered by a hash of the row's id: the same
records give the same rows, and the order of the file plays no part.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias

from luthier.report.folder import parse_json, read_lines
from luthier.report.schema import Answer, ComparedRow, ComparedRows, Evaluation, Missing, Turn
from luthier.report.text import as_text

MOST_ROWS = 10
MOST_CHARACTERS = 8_000
"""Longer texts are cut in the report, and the cut says so; the record file has them whole."""
Bounds: TypeAlias = tuple[float, float]
"""Worst and best score of a metric."""


@dataclass(frozen=True)
class _Line:
    """Where a record stands and what is needed to compare it."""

    id: str
    offset: int
    scores: Mapping[str, float]


def compare_rows(
    folder: Path,
    names: Sequence[str],
    evaluation: Evaluation,
    fine_tuned: str | None,
    baseline: str | None,
    missing: list[Missing],
) -> ComparedRows:
    """Pick rows from `records/<system>.jsonl`.

    Args:
        folder: the run's folder.
        names: the systems, as the page shows them.
        evaluation: says which metric decides, which way is better, and between what a score lies.
        fine_tuned: the system that wins and losses are counted for; None: there is none.
        baseline: the system it is compared with; None: there is none.
        missing: absent or misaligned records are added to it.

    Raises:
        DataError: a record file is damaged.
    """
    lines = {name: found for name in names if (found := _index(folder, name, missing))}
    if len(lines) < 2:
        return ComparedRows()
    aligned = _align(lines, missing)
    metric = _common_metric(aligned, evaluation.primary_metric)
    if metric is None:
        return ComparedRows(compared=len(aligned))
    sign = -1 if metric in evaluation.lower_is_better else 1
    gaps = [sign * _gap(row, metric, fine_tuned, baseline) for row in aligned]
    spreads = [_spread(row, metric) for row in aligned]
    picked = _pick([row[next(iter(lines))].id for row in aligned], gaps, spreads)
    asked = fine_tuned if fine_tuned in lines else next(iter(lines))
    return ComparedRows(
        score_metric=metric,
        compared=len(aligned),
        differ=sum(s > 0 for s in spreads),
        better=sum(g > 0 for g in gaps),
        worse=sum(g < 0 for g in gaps),
        rows=tuple(_row(folder, aligned[i], metric, asked, evaluation.bounds.get(metric)) for i in picked),
    )


def _path(folder: Path, name: str) -> Path | None:
    """The record file of a system, or None if its name would lead out of the folder."""
    path = folder / "records" / f"{name}.jsonl"
    return path if path.parent == folder / "records" and path.is_file() else None


def _index(folder: Path, name: str, missing: list[Missing]) -> list[_Line]:
    path = _path(folder, name)
    part = f"records/{name}.jsonl"
    if path is None:
        missing.append(Missing(part=part, reason="is not there", remedy="`luthier evaluate` writes it"))
        return []
    return [_line(values, offset) for _, offset, values in read_lines(path, part, missing)]


def _line(values: Mapping[str, Any], offset: int) -> _Line:
    scores = values.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    numbers = {m: float(s) for m, s in scores.items() if isinstance(s, int | float)}
    return _Line(as_text(values.get("id", "")), offset, numbers)


def _align(lines: Mapping[str, list[_Line]], missing: list[Missing]) -> list[dict[str, _Line]]:
    """Rows that every system has at the same place of its file, under the same id."""
    aligned, odd = [], 0
    for group in zip_longest(*lines.values()):
        if None not in group and len({line.id for line in group}) == 1:
            aligned.append(dict(zip(lines, group, strict=True)))
        else:
            odd += 1
    if odd:
        reason = f"{odd} rows are not in every system's records at the same place; they are left out of the comparison"
        missing.append(Missing(part="records", reason=reason, remedy="run `luthier evaluate` again for all systems"))
    return aligned


def _common_metric(aligned: Sequence[Mapping[str, _Line]], primary: str) -> str | None:
    """The primary metric if any row has a score of it for every system, else the first metric that has."""
    for row in aligned:
        shared = [m for m in next(iter(row.values())).scores if all(m in line.scores for line in row.values())]
        if shared:
            return primary if primary in shared else shared[0]
    return None


def _gap(row: Mapping[str, _Line], metric: str, fine_tuned: str | None, baseline: str | None) -> float:
    """Score of the fine-tuned system minus the baseline's; 0 without either."""
    pair = [row[name].scores for name in (fine_tuned, baseline) if name is not None and name in row]
    return pair[0][metric] - pair[1][metric] if len(pair) == 2 and all(metric in s for s in pair) else 0.0


def _spread(row: Mapping[str, _Line], metric: str) -> float:
    scores = [line.scores[metric] for line in row.values() if metric in line.scores]
    return max(scores) - min(scores) if scores else 0.0


def _pick(ids: Sequence[str], gaps: Sequence[float], spreads: Sequence[float]) -> list[int]:
    def rank(i: int) -> tuple[float, float, str]:
        return (-abs(gaps[i]), -spreads[i], hashlib.sha256(ids[i].encode()).hexdigest())

    order = sorted((i for i in range(len(ids)) if spreads[i] > 0), key=rank)
    wins, losses = [i for i in order if gaps[i] > 0], [i for i in order if gaps[i] < 0]
    turns = [i for pair in zip_longest(wins, losses) for i in pair if i is not None]
    return [*turns, *(i for i in order if gaps[i] == 0)][:MOST_ROWS]


def _row(folder: Path, row: Mapping[str, _Line], metric: str, asked: str, bounds: Bounds | None) -> ComparedRow:
    records = {name: _record(folder, name, line) for name, line in row.items()}
    prompt = records[asked].get("prompt")
    turns = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    return ComparedRow(
        id=row[asked].id,
        prompt=tuple(_turn(turn) for turn in turns),
        target=_clip(as_text(records[asked].get("target"))),
        answers=tuple(_answer(name, records[name], line.scores.get(metric), bounds) for name, line in row.items()),
    )


def _record(folder: Path, name: str, line: _Line) -> dict[str, Any]:
    path = folder / "records" / f"{name}.jsonl"
    with path.open("rb") as file:
        file.seek(line.offset)
        values: dict[str, Any] = parse_json(file.readline().decode("utf-8"), path)
    return values


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, Mapping):
        return Turn(role="", text=_clip(as_text(turn)))
    content = as_text(turn.get("content") or "")
    calls = turn.get("tool_calls")
    text = f"{content}\n{as_text(calls)}".strip() if calls else content
    role, answered = as_text(turn.get("role", "")), turn.get("tool_call_id") or turn.get("name")
    return Turn(role=f"{role} {as_text(answered)}" if role == "tool" and answered else role, text=_clip(text))


def _answer(name: str, record: Mapping[str, Any], score: float | None, bounds: Bounds | None) -> Answer:
    mark: Literal["right", "partly", "wrong", "unscored"] = "unscored"
    if score is not None and bounds is not None:
        worst, best = bounds
        share = (score - worst) / (best - worst)
        mark = "right" if share >= 1 else "wrong" if share <= 0 else "partly"
    return Answer(system=name, text=_clip(as_text(record.get("output"))), score=score, mark=mark)


def _clip(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}\n[{len(text) - MOST_CHARACTERS:,} more characters are in the record file]"
