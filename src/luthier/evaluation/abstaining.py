"""Systems that tell how sure they are: what they answer at a wanted precision, and how right they are where they are
surest.

The threshold of a system was found on validation rows (`calibration.find_threshold`); here it is held against the test
rows. The curve is risk and coverage (El-Yaniv and Wiener 2010): of the rows that a system is surest of, so many in a
hundred of all, the share that is right.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from luthier.evaluation.harness import Measured
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.significance import Groups, metric_interval
from luthier.evaluation.task import build_metrics
from luthier.progress import Progress
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder

COVERAGES = (0.25, 0.5, 0.75, 0.9, 1.0)
FILE = "abstention.json"
METRIC = "calibration_error"
"""Its statistics are how sure and whether right."""


def abstain(
    folder: RunFolder, recipe: Recipe, measured: Mapping[str, Measured], groups_N: Groups, progress: Progress
) -> None:
    """Write `FILE`, and say what it holds; nothing where no system tells how sure it is."""
    (folder / FILE).unlink(missing_ok=True)  # of other systems
    settings = recipe.evaluation
    found = abstaining(measured, groups_N, settings.precision, settings.confidence, recipe.seed)
    if found is None:
        return
    folder.write(FILE, found)
    for one in found["systems"]:
        if one["threshold"] is None:
            more = "" if one["rows_to_show"] is None else f"; about {one['rows_to_show']:,} like them or more might"
            progress.say(
                f"    {one['system']}: its validation rows show no threshold for a precision of "
                f"{settings.precision:g}{more}"
            )
        elif one["right"] is not None:
            progress.say(
                f"    {one['system']}: at a precision of {settings.precision:g} answers "
                f"{one['coverage']['value']:.1%} of the rows, {one['right']['value']:.3f} right "
                f"[{one['right']['low']:.3f}, {one['right']['high']:.3f}]"
            )


def abstaining(
    measured: Mapping[str, Measured], groups_N: Groups, precision: float, confidence: float, seed: int
) -> dict[str, Any] | None:
    """What each system that tells how sure it is answers at a precision; None where none tells.

    Args:
        measured: the systems.
        groups_N: which test rows ask the same.
        precision: wanted share of right answers among those given.
        confidence: coverage of the intervals.
        seed: decides the resamples.
    """
    systems = [
        _one(name, one, groups_N, precision, confidence, seed)
        for name, one in measured.items()
        if METRIC in one.statistics and "abstention" in one.details
    ]
    return {"precision": precision, "systems": systems} if systems else None


def _one(
    name: str, measured: Measured, groups_N: Groups, precision: float, confidence: float, seed: int
) -> dict[str, Any]:
    sure_N, right_N = measured.statistics[METRIC].T
    told = measured.details["abstention"]
    found: dict[str, Any] = {
        "system": name,
        "temperature": told["temperature"],
        "threshold": told["threshold"],
        "rows_to_show": told.get("rows_to_show"),  # not told by an evaluation that was made before it was
        "coverage": None,
        "right": None,
        "holds": None,
        "curve": _curve(sure_N, right_N),
    }
    if told["threshold"] is None:
        return found
    given_N = sure_N >= told["threshold"]["confidence"]
    found["coverage"] = _share(given_N.astype(np.float64), groups_N, confidence, seed)
    if given_N.any():
        found["right"] = _share(right_N[given_N], _renumbered(groups_N[given_N]), confidence, seed)
        found["holds"] = found["right"]["high"] >= precision
    return found


def _curve(sure_N: Array, right_N: Array) -> list[dict[str, float]]:
    order = np.argsort(-sure_N, kind="stable")
    sizes = [max(1, round(coverage * len(order))) for coverage in COVERAGES]
    return [
        {"coverage": coverage, "right": float(right_N[order[:size]].mean())}
        for coverage, size in zip(COVERAGES, sizes, strict=True)
    ]


def _share(values_N: Array, groups_N: Groups, confidence: float, seed: int) -> dict[str, float | None]:
    statistics_NS = np.stack([values_N, np.ones(len(values_N))], axis=1)
    accuracy = build_metrics(["accuracy"])["accuracy"]
    return metric_interval(accuracy, statistics_NS, confidence, seed, groups_N).dump()


def _renumbered(groups_N: Groups) -> Groups:
    return np.unique(groups_N, return_inverse=True)[1]
