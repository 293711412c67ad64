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
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

RECIPE, TRAIN, VALIDATION = "recipe.toml", "train.jsonl", "validation.jsonl"
START, ADAPTER, RECORD = "start", "adapter", "run.json"
RUN, ENDED, LOG = "run", "ended.json", "log.txt"
BESIDE, CLAIM = "beside.json", "claim.json"
DONE, REFUSED, NO_ROOM, STOPPED = 0, 2, 75, 130
"""Exit codes: trained; the job cannot be done as it is; it claims more memory than is left now; it saved and stopped
because it was told to."""
_GONE = ".gone"
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
    _remove(jobs / job_id if is_last else _weights(jobs / place))


def sweep(jobs: Path, models: Mapping[str, Collection[str]]) -> None:
    """Remove what is left of deleted models where `remove_model` was killed, or never came to it.

    Args:
        jobs: the folder of all jobs.
        models: the places of what each job that succeeded made and still has, within that folder, by the job's id.
    """
    for pattern in ("*", f"*/{RUN}/*", f"*/{RUN}/{_KEPT}/*"):
        for left in jobs.glob(pattern + _GONE):
            shutil.rmtree(left)
    for job_id, named in models.items():
        run = jobs / job_id / RUN
        if not named:
            _remove(jobs / job_id)
        elif all(place.startswith(f"{job_id}/") for place in named):  # of any other, it is not known what it names
            for folder in (run, *kept_steps(run).values()):
                if str(folder.relative_to(jobs)) not in named:
                    _remove(_weights(folder))


def _weights(folder: Path) -> Path:
    return folder / ADAPTER if folder.name == RUN else folder


def _remove(gone: Path) -> None:
    away = gone.with_name(f"{gone.name}.{secrets.token_hex(4)}{_GONE}")
    with suppress(FileNotFoundError):
        gone.rename(away)  # whole or not at all, for whoever loads it just now
        shutil.rmtree(away)
