"""The folder of one job, as the supervisor and the process that trains agree on it.

recipe.toml     made from the request
train.jsonl     the training file; validation.jsonl, if the job has one
start/adapter/  what the job goes on from, if its model is one that a job made
run/            as of `luthier train`, with kept/step-000123 for the latest steps that validated
beside.json     what other jobs held and claimed when the process was started
claim.json      the memory that this one claims (`luthier.jobs.room`)
ended.json      how the process ended: `kind` and `message` of the error, or nothing
log.txt         what the process printed
"""

import secrets
import shutil
from contextlib import suppress
from pathlib import Path

RECIPE, TRAIN, VALIDATION = "recipe.toml", "train.jsonl", "validation.jsonl"
START, ADAPTER, RECORD = "start", "adapter", "run.json"
RUN, ENDED, LOG = "run", "ended.json", "log.txt"
BESIDE, CLAIM = "beside.json", "claim.json"
DONE, REFUSED, NO_ROOM, STOPPED = 0, 2, 75, 130
"""Exit codes: trained; the job cannot be done as it is; it claims more memory than is left now; it saved and stopped
because it was told to."""
_KEPT, _STEP = "kept", "step-"


def kept_place(run: Path, step: int) -> Path:
    """Where a run keeps what a step would be served from."""
    return run / _KEPT / f"{_STEP}{step:06d}"


def kept_steps(run: Path) -> dict[int, Path]:
    """The places of kept steps, the earliest first."""
    found = {
        int(place.parent.name.removeprefix(_STEP)): place.parent for place in run.glob(f"{_KEPT}/{_STEP}*/{ADAPTER}")
    }
    return dict(sorted(found.items()))


def remove_model(jobs: Path, job_id: str, place: str, is_last: bool) -> None:
    """Remove the weights of a model; with the last one of its job, the job's whole folder.

    Args:
        jobs: the folder of all jobs.
        job_id: which made it.
        place: of the model, within that folder.
        is_last: whether the job has ended and has no other.
    """
    folder = jobs / place
    gone = jobs / job_id if is_last else folder / ADAPTER if folder.name == RUN else folder
    away = gone.with_name(f"{gone.name}.{secrets.token_hex(4)}.gone")
    with suppress(FileNotFoundError):
        gone.rename(away)  # whole or not at all, for whoever loads it just now
        shutil.rmtree(away)
