"""Runs and comparisons as lines of text, for the verbs that show them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.report.text import NOT_MEASURED, difference, duration, interval, label, number, usd, visible
from luthier.run_registry import Entry

if TYPE_CHECKING:
    from luthier.comparison import Comparison, Cost, Paired, Rows

OUTCOMES = {"second": "the second is clearly better", "first": "the first is clearly better", "tie": "they tie"}
UNKNOWN = "these rows cannot tell"
TIMES_SHOWN = len("2026-11-27 02:10")


def entry_lines(entries: Sequence[Entry]) -> list[str]:
    """A line for each run, in columns."""
    cells = [_cells(entry) for entry in entries]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [visible("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()) for row in cells]


def _cells(entry: Entry) -> list[str]:
    values = ", ".join(f"{name} {number(found.value)}" for name, found in entry.systems.items())
    figures = f"{entry.metric}: {values}" if entry.metric else ""
    return [
        entry.id,
        "gone" if entry.is_gone else entry.state,
        entry.created.replace("T", " ")[:TIMES_SHOWN],
        short_path(entry.folder),
        short_path(entry.model or ""),
        entry.adapter or "",
        figures,
        duration(entry.seconds),
        usd(entry.usd) if entry.usd is not None else "",
        "; ".join(f"{parent.relation} {parent.id}" for parent in entry.parents),
    ]


def entry_text(entry: Entry, descent: Sequence[Entry]) -> str:
    """One run with its intervals and where it stands among others."""
    pairs = {
        "id": entry.id,
        "folder": short_path(entry.folder),
        "state": entry.state + (f": {entry.failure}" if entry.failure else ""),
        "stage": entry.stage,
        "created": entry.created,
        "opened": f"{entry.openings} times" if entry.openings != 1 else "once",
        "model": entry.model,
        "adapter": entry.adapter,
        "recipe": (entry.recipe_sha256 or "")[:12],
        **{f"{name} rows": (digest or "")[:12] for name, digest in entry.rows.items()},
        **{f"{entry.metric} of {name}": interval(v.value, v.low, v.high) for name, v in entry.systems.items()},
        "forgetting": entry.forgetting,
        "time": duration(entry.seconds),
        "cost": usd(entry.usd) if entry.usd is not None else None,
    }
    lines = [f"{name:<24}{value}" for name, value in pairs.items() if value]
    lines += [f"{p.relation:<24}{p.id}  {short_path(p.folder)}" for p in entry.parents]
    for child in descent:
        relations = {p.relation for p in child.parents if p.id == entry.id}
        lines.append(f"{'has ' + ', '.join(sorted(relations)) + ' it':<24}{child.id}  {short_path(child.folder)}")
    return visible("\n".join(lines))


def comparison_text(comparison: "Comparison") -> str:
    """Everything that two runs differ in, and who is better."""
    lines = [f"first   {short_path(comparison.first)}", f"second  {short_path(comparison.second)}"]
    lines.append("settings that differ:" if comparison.settings else "settings: the same")
    lines += [f"  {key}: {_value(a)} -> {_value(b)}" for key, (a, b) in comparison.settings.items()]
    lines += [
        f"remedy against forgetting in place in the {name}: {remedy}"
        for name, remedy in zip(("first", "second"), comparison.remedies, strict=True)
        if remedy
    ]
    lines.append("rows:")
    lines += [f"  {name}: {_rows(rows)}" for name, rows in comparison.rows.items()]
    if comparison.systems and comparison.metric:
        different = f" ({comparison.groups} of them different)" if comparison.groups != comparison.test_rows else ""
        lines.append(
            f"{label(comparison.metric)} on {comparison.test_rows} test rows that both have{different}, second minus "
            "first:"
        )
        width = max(len(one.first) for one in comparison.systems)
        lines += [f"  {paired.first:<{width}}  {paired_text(paired)}" for paired in comparison.systems]
    lines += [f"not compared: {reason}" for reason in comparison.left_out]
    lines += [
        f"cost of the {name}: {_cost(cost)}" for name, cost in zip(("first", "second"), comparison.costs, strict=True)
    ]
    return visible("\n".join(lines))


def paired_text(paired: "Paired") -> str:
    """`0.51 [0.44, 0.57] -> 0.73 [0.69, 0.77]: +0.22 [0.18, 0.26], the second is clearly better`."""
    old, new = (interval(v.value, v.low, v.high) for v in paired.values)
    d = paired.difference
    told = OUTCOMES.get(paired.better, UNKNOWN)
    return f"{old} -> {new}: {difference(d.difference, d.low, d.high)}, {told}"


def _rows(rows: "Rows") -> str:
    if rows.first is None or rows.second is None:
        return "not split yet in " + " and ".join(
            name for name, count in (("the first", rows.first), ("the second", rows.second)) if count is None
        )
    if rows.are_the_same:
        return f"the same {rows.first:,}"
    return f"{rows.first:,} and {rows.second:,}, {rows.shared:,} of them the same"


def _cost(cost: "Cost") -> str:
    answers = ", ".join(f"{name} {usd(value)}" for name, value in cost.usd_per_thousand_answers.items() if value)
    paid = usd(cost.usd) if cost.usd is not None else NOT_MEASURED
    return f"{duration(cost.seconds)}, {paid}" + (f"; a thousand answers: {answers}" if answers else "")


def _value(value: Any) -> str:
    return "not set" if value is None else short_path(value) if isinstance(value, str) else str(value)


def short_path(text: str) -> str:
    """A path below the present folder without that folder."""
    here = os.getcwd()
    return os.path.relpath(text, here) if os.path.isabs(text) and Path(text).is_relative_to(here) else text
