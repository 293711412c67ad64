"""Two runs side by side: the settings and the rows that differ, and, on the test rows that both share, who is better.

A row is shared if both test files have it with the same id and the same content; then it was held out in both runs, and
the two answers to it are a pair. Rows that only one of them has are left out. Nothing is compared that would mean
nothing: other metrics, systems of another kind, records that were changed, values that count another tokenizer's
tokens. What is left out is said.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from luthier.config import Tree, build
from luthier.data.formats.base import read_examples
from luthier.data.split import group_keys
from luthier.errors import DataError
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.significance import (
    Groups,
    compare,
    count_groups,
    finite,
    metric_interval,
    minimum_detectable_effect,
    number_groups,
)
from luthier.evaluation.task import build_metrics
from luthier.files import sha256_of
from luthier.recipe import DecisionSettings
from luthier.report.build import build_report
from luthier.report.folder import read_lines
from luthier.report.ladder import FEWEST_ROWS, Facts, Ladder
from luthier.report.schema import Difference, Evaluation, Interval, Report, System
from luthier.run_folder import RunFolder, differing

SPLITS = ("train", "validation", "test")
REPLAY = "replay"
"""Beside the splits: what may be replayed, in a run whose recipe names such rows."""
WHENCE = (*SPLITS, REPLAY, "format", "instruction", "validation_share", "test_share", "duplicates")
"""Settings of `data` that say where rows come from: no difference where the rows are the same."""

Outcome = Literal["first", "second", "tie", "unknown"]
Key: TypeAlias = tuple[str, int]
"""Of a row: its id, and how many rows before it have the same one; nobody promised that ids differ."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split in two runs."""

    first: int | None
    """How many the first run has; None if it was not split yet."""
    second: int | None
    shared: int
    """Rows of the same id and content."""

    @property
    def are_the_same(self) -> bool:
        """Both have these rows and no others."""
        return self.first == self.second == self.shared


@dataclass(frozen=True)
class Paired:
    """One system of each run on the shared test rows."""

    first: str
    second: str
    values: tuple[Interval, Interval]
    """On these rows."""
    difference: Difference
    """Second minus first."""
    better: Outcome
    """Whom the rules of the report call clearly better; `unknown` where the rows are too few to tell."""


@dataclass(frozen=True)
class Cost:
    """What one run cost, and what its answers do."""

    seconds: float
    usd: float | None
    usd_per_thousand_answers: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common and what not."""

    first: str
    second: str
    settings: Mapping[str, tuple[Any, Any]]
    rows: Mapping[str, Rows]
    metric: str | None
    """The primary one."""
    test_rows: int
    """Shared and answered in both runs."""
    groups: int
    """Of these, how many ask something different."""
    systems: tuple[Paired, ...]
    costs: tuple[Cost, Cost]
    left_out: tuple[str, ...] = field(default=())
    """What is not compared, and why."""
    remedies: tuple[str | None, str | None] = (None, None)
    """Which remedy against forgetting is in place of each run's own training, with what differs from its recipe."""

    def dump(self) -> Tree:
        """Plain values, as JSON holds them."""
        values = asdict(self)
        for dumped, paired in zip(values["systems"], self.systems, strict=True):
            dumped["values"] = [value.model_dump() for value in paired.values]
            dumped["difference"] = paired.difference.model_dump()
        return values


@dataclass(frozen=True)
class Side:
    """One run, read from its folder."""

    folder: Path
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    report: Report
    rows: Mapping[str, Mapping[Key, str] | None]
    """By split, the content of each row by its key; None if there is no such split yet."""

    @property
    def remedy(self) -> str | None:
        """What `luthier train --remember` put in place of the recipe's own training; None if that stands."""
        frontier = self.report.frontier
        chosen = next((one for one in frontier.candidates if one.chosen), None) if frontier else None
        if chosen is None or chosen.remedy == "plain":
            return None
        differs = f"{chosen.share:g} of the update" if chosen.share is not None else ", ".join(chosen.settings)
        return f"{chosen.name} ({differs})"

    @property
    def evaluation(self) -> Evaluation | None:
        """How it was measured."""
        return self.report.evaluation

    def system(self, name: str) -> System | None:
        """A system by its name."""
        return next((system for system in self.report.systems if system.name == name), None)


class NotComparable(Exception):
    """Why two systems are not compared; whoever compares catches it."""


def read_side(folder: Path) -> Side:
    """A run as its folder stands.

    Raises:
        DataError: it is not a run's folder, or a file in it is damaged.
        StorageError: a JSON file in it is damaged.
    """
    run = RunFolder(folder)
    report = build_report(folder)
    rows = {name: _rows(folder / f"data/{name}.jsonl") for name in (*SPLITS, REPLAY)}
    return Side(folder, run.recipe_values() or {}, run.read("manifest.json") or {}, report, rows)


def _rows(path: Path) -> dict[Key, str] | None:
    if not path.is_file():
        return None
    rows = [values for _, _, values in read_lines(path, "", [])]
    keys = _keys([str(values.get("id")) for values in rows])
    return {key: json.dumps(values, sort_keys=True) for key, values in zip(keys, rows, strict=True)}


def _keys(ids: Sequence[str]) -> list[Key]:
    """The keys of rows with these ids, in their order."""
    seen: Counter[str] = Counter()
    keys = []
    for one in ids:
        keys.append((one, seen[one]))
        seen[one] += 1
    return keys


def compare_runs(first: Side, second: Side) -> Comparison:
    """Compare two runs, as far as they may be compared."""
    rows = {name: _compare_rows(first.rows[name], second.rows[name]) for name in SPLITS}
    if first.rows[REPLAY] is not None or second.rows[REPLAY] is not None:
        rows[REPLAY] = _compare_rows(first.rows[REPLAY] or {}, second.rows[REPLAY] or {})
    same = all(split.are_the_same for split in rows.values())
    passed = {f"data.{key}" for key in WHENCE} if same else set()
    keys = [key for key in differing(first.recipe, second.recipe) if key not in passed]
    settings = {key: (_setting(first.recipe, key), _setting(second.recipe, key)) for key in keys}
    shared = Shared(first, second)
    systems, left_out = _systems(shared)
    return Comparison(
        str(first.folder),
        str(second.folder),
        settings,
        rows,
        shared.metric_name,
        len(shared.keys),
        shared.groups,
        systems,
        (_cost(first), _cost(second)),
        left_out,
        (first.remedy, second.remedy),
    )


def _compare_rows(first: Mapping[Key, str] | None, second: Mapping[Key, str] | None) -> Rows:
    shared = len((first or {}).items() & (second or {}).items())
    return Rows(None if first is None else len(first), None if second is None else len(second), shared)


def _setting(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _cost(side: Side) -> Cost:
    answers = {system.system: system.here_usd_per_thousand for system in side.report.cost.systems}
    return Cost(round(sum(side.report.run.stages.values()), 3), side.report.cost.run_usd, answers)


class Shared:
    """The test rows that two runs share, and pairs of their systems on them.

    `metric` is None where nothing can be compared at all; `trouble` then says why.
    """

    def __init__(self, first: Side, second: Side) -> None:
        self.first, self.second = first, second
        self.trouble, self.metric_name = self._metric()
        self.keys: list[Key] = []
        self._numbers: Groups = np.array([], dtype=np.intp)
        if self.trouble is None:
            self._take_rows()
        self.metric: Metric | None = None
        if self.trouble is None and self.metric_name is not None:
            self._build_metric(self.metric_name)

    @property
    def groups(self) -> int:
        """Shared rows that ask something different."""
        return count_groups(self._numbers)

    def _metric(self) -> tuple[str | None, str | None]:
        for side in (self.first, self.second):
            if side.evaluation is None:
                return f"{side.folder} was not evaluated; `luthier evaluate {side.folder}` does that", None
            if side.rows["test"] is None:
                return f"{side.folder / 'data/test.jsonl'} is not there, so nobody knows which rows were asked", None
        a, b = self.first.evaluation, self.second.evaluation
        assert a is not None and b is not None
        if a.primary_metric != b.primary_metric:
            return f"the primary metrics differ: {a.primary_metric} and {b.primary_metric}", None
        return None, a.primary_metric

    def _take_rows(self) -> None:
        mine, others = (side.rows["test"] or {} for side in (self.first, self.second))
        examples = list(read_examples(self.first.folder / "data/test.jsonl"))
        keyed = dict(zip(_keys([example.id for example in examples]), examples, strict=True))
        shared = [key for key in keyed if mine[key] == others.get(key)]
        answered = [
            self._answered(side, system.name) for side in (self.first, self.second) for system in side.report.systems
        ]
        shared = [key for key in shared if all(key in known for known in answered if known)]
        if not shared:
            self.trouble = "no test row is the same in both runs, so no two answers are a pair"
            return
        self.keys = shared
        self._numbers = number_groups(group_keys([keyed[key] for key in shared]))

    def _answered(self, side: Side, name: str) -> dict[Key, int]:
        """The place of each row in the records of a system, by its key; empty if there are no records."""
        path = side.folder / f"records/{name}.jsonl"
        if not path.is_file():
            return {}
        keys = _keys([str(values.get("id")) for _, _, values in read_lines(path, "", [])])
        return {key: place for place, key in enumerate(keys)}

    def _build_metric(self, name: str) -> None:
        schemas = [_setting(side.recipe, "evaluation.json_schema") for side in (self.first, self.second)]
        metric = build_metrics([name], schemas[0] or schemas[1])[name]
        if "json_schema" in type(metric).model_fields and schemas[0] != schemas[1]:
            self.trouble = f"{name} was measured by two schemas: {schemas[0]} and {schemas[1]}"
        else:
            self.metric = metric

    def pair(self, first: System, second: System) -> Paired:
        """Two systems on the shared rows.

        Raises:
            NotComparable: they may not be compared.
        """
        if self.metric is None or self.metric_name is None:
            raise NotComparable(self.trouble or "nothing was measured")
        self._require_comparable(first, second)
        a_NS = self._statistics(self.first, first.name)
        b_NS = self._statistics(self.second, second.name)
        evaluation = self.first.evaluation
        assert evaluation is not None
        confidence, seed = evaluation.confidence, int(_setting(self.first.recipe, "seed") or 0)
        found = compare(self.metric, b_NS, a_NS, confidence, seed, self._numbers)
        intervals = [metric_interval(self.metric, s, confidence, seed, self._numbers) for s in (a_NS, b_NS)]
        values = (Interval(**intervals[0].dump()), Interval(**intervals[1].dump()))
        difference = Difference(
            a="second",
            b="first",
            metric=self.metric_name,
            difference=finite(found.difference),
            low=finite(found.low),
            high=finite(found.high),
            p_value=finite(found.p_value),
            test=found.test,
            minimum_detectable_effect=finite(minimum_detectable_effect(found.standard_error, confidence)),
        )
        return Paired(first.name, second.name, values, difference, self._better((first, second), values, difference))

    def _require_comparable(self, first: System, second: System) -> None:
        for side, system in ((self.first, first), (self.second, second)):
            if not system.held_out:
                raise NotComparable(f"{system.name} of {side.folder} may have seen the test rows")
        tokenizers = [
            ((side.manifest.get("model") or {}).get("sha256") or {}).get("tokenizer.json")
            for side in (self.first, self.second)
        ]
        if self.metric is not None and self.metric.counts_tokens and tokenizers[0] != tokenizers[1]:
            raise NotComparable(f"{self.metric_name} counts tokens, and the two bases cut texts into others")

    def _statistics(self, side: Side, name: str) -> Array:
        """The statistics of the shared rows, in their order.

        Raises:
            NotComparable: there are none, or the records were changed since they were made.
        """
        rows_NS = kept_statistics(side.folder, name, self.metric_name or "")
        places = self._answered(side, name)
        return rows_NS[[places[one] for one in self.keys]]

    def _better(
        self, systems: tuple[System, System], values: tuple[Interval, Interval], difference: Difference
    ) -> Outcome:
        """What the rules of the ladder say of two systems, on these rows alone, by the first run's [decision]."""
        evaluation = self.first.evaluation
        if self.groups < FEWEST_ROWS or evaluation is None or self.metric_name is None:
            return "unknown"
        first, second = (
            system.model_copy(update={"name": name, "n": len(self.keys), "metrics": {self.metric_name: value}})
            for system, name, value in zip(systems, ("first", "second"), values, strict=True)
        )
        evaluation = evaluation.model_copy(update={"n": len(self.keys), "groups": self.groups})
        assumptions = build(DecisionSettings, self.first.recipe.get("decision") or {}, ["decision"])
        facts = Facts(
            evaluation=evaluation, systems=(first, second), differences=(difference,), assumptions=assumptions
        )
        ladder = Ladder(facts)
        if ladder.clearly_better(second, first):
            return "second"
        if ladder.clearly_better(first, second):
            return "first"
        return "tie" if ladder.tie(first, second) else "unknown"


def kept_statistics(folder: Path, name: str, metric: str) -> Array:
    """(N, S) what a metric knows of each row of a system's records, in their order.

    Raises:
        NotComparable: there is nothing, or the records were changed since they were made.
    """
    records = folder / f"records/{name}.jsonl"
    state = RunFolder(folder).read(f"records/{name}.state.json")
    rows = (state or {}).get("statistics", {}).get(metric)
    if rows is None or not records.is_file():
        raise NotComparable(f"{folder} has no {metric} of each row of {name}")
    if state.get("records_sha256") != sha256_of(records):
        raise NotComparable(f"{records} was changed since it was made")
    return np.array(rows, dtype=np.float64)


def _systems(shared: Shared) -> tuple[tuple[Paired, ...], tuple[str, ...]]:
    """The systems that both runs have, paired, and why others are not."""
    if shared.trouble is not None:
        return (), (shared.trouble,)
    found, left_out = [], []
    for system in shared.first.report.systems:
        other = shared.second.system(system.name)
        if other is None:
            left_out.append(f"{system.name}: only the first run has it")
        elif other.type != system.type:
            left_out.append(f"{system.name}: a {system.type} in the first run, a {other.type} in the second")
        else:
            try:
                found.append(shared.pair(system, other))
            except NotComparable as reason:
                left_out.append(f"{system.name}: {reason}")
    known = {system.name for system in shared.first.report.systems}
    left_out += [f"{s.name}: only the second run has it" for s in shared.second.report.systems if s.name not in known]
    return tuple(found), tuple(left_out)


def require_same_rows(first: Path, second: Path) -> None:
    """Check that two runs have the very same rows in every split and to replay, byte for byte.

    Raises:
        DataError: they have not; names the first file that differs.
    """
    for name in (*SPLITS, REPLAY):
        paths = [folder / f"data/{name}.jsonl" for folder in (first, second)]
        if name == REPLAY and not any(path.is_file() for path in paths):
            continue
        if not all(path.is_file() for path in paths) or sha256_of(paths[0]) != sha256_of(paths[1]):
            raise DataError(f"its rows are not those of {paths[0]}, so the two runs cannot be compared", paths[1])
