"""The main figures of a report, by name: what a tracker shows beside its curves."""

from luthier.report.schema import Report


def figures(report: Report) -> dict[str, float | None]:
    """The primary metric of every system with its interval, and what fine-tuning gained."""
    if report.evaluation is None:
        return {}
    metric = report.evaluation.primary_metric
    found: dict[str, float | None] = {}
    for system in report.systems:
        value = system.metrics.get(metric)
        if value is not None:
            name = f"test/{system.name}/{metric}"
            found |= {name: value.value, f"{name}/low": value.low, f"{name}/high": value.high}
    gain = report.verdict.difference
    if gain is not None:
        name = f"test/gain/{gain.metric}"
        found |= {name: gain.difference, f"{name}/low": gain.low, f"{name}/high": gain.high}
    return found
