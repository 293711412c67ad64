"""What the trackers of a job come to, as events: read from the `tracking.json` of its run."""

from pathlib import Path
from typing import Any

from luthier.jobs.job_store import Told
from luthier.run_folder import TRACKING, RunFolder


def begun(run: Path) -> list[Told]:
    """Each tracker that has the run, once it is told of its settings."""
    found = []
    for name, entry in _entries(run).items():
        if entry.get("described"):
            place = entry["place"]  # of an offline run a folder of this machine
            at = f": {place}" if place.startswith("http") else ""
            found.append(Told(f"tracking {name}", f"Tracking began: {name} has the job as run {entry['id']}{at}"))
    return found


def lost(run: Path) -> list[Told]:
    """Each tracker that was not told of all steps."""
    return [
        Told(f"untold {name}", f"Tracking: {name} was not told of {entry['untold']:,} steps", "warn")
        for name, entry in _entries(run).items()
        if entry.get("untold")
    ]


def _entries(run: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = RunFolder(run, listed=False).read(TRACKING) or {}
    return entries
