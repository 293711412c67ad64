"""The process of one job: it trains in the job's folder.

    python -m luthier.cli.job_process JOB_FOLDER

The folder holds `recipe.toml` and the rows; the run lies in `run`. What `luthier train` does is done, and each step
that validated leaves what it would be served from in `run/kept`. The process ends with the supervisor (the kernel sees
to it), so no two ever train the same job; the next one goes on from the last checkpoint, bit for bit.

Before its first step it claims what it will hold at most (`luthier.jobs.room`). If that is more than others leave, it
ends, and the supervisor starts it again when there is room.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luthier import system_memory
from luthier.data.write import atomic_text
from luthier.errors import LuthierError
from luthier.jobs.environment import PARENT
from luthier.jobs.job_folder import DONE, ENDED, NO_ROOM, RECIPE, REFUSED, RUN, STOPPED, kept_place, kept_steps
from luthier.jobs.room import CPU, Beside, Claim, too_large

if TYPE_CHECKING:
    import torch

    from luthier.stages import Prepared

PR_SET_PDEATHSIG = 1
MOST_KEPT = 3
"""Validated steps that are kept: OpenAI keeps three, too."""
COUNTED_ON = 0.9
"""The part of the memory that micro-batches are chosen for: what other programs hold changes by the second."""


class NoRoom(Exception):
    """Other jobs leave too little memory now."""


class TooLarge(LuthierError):
    """The job needs more memory than there is."""


def main(arguments: list[str]) -> int:
    """Train; the exit code is `DONE`, `REFUSED`, `NO_ROOM` or `STOPPED`."""
    folder = Path(arguments[0])
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before the first step there is nothing to finish
    try:
        train(folder)
    except LuthierError as error:
        _end(folder, {"kind": type(error).__name__, "message": str(error)})
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except NoRoom:
        return NO_ROOM
    except KeyboardInterrupt:
        return STOPPED
    _end(folder, {})
    return DONE


def train(folder: Path) -> None:
    """Train the job of a folder, from where an earlier process stopped.

    Raises:
        LuthierError: as `luthier train`.
        NoRoom: see there.
        KeyboardInterrupt: it was told to stop; the step was finished and everything saved.
    """
    from luthier.data_stage import prepare_data
    from luthier.engine import checkpoint
    from luthier.engine.loop import Step
    from luthier.models.catalog import resolve
    from luthier.models.load import choose_device
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import keep_artifact, open_run, prepare_training, train_stage
    from luthier.tracking import require_answers

    beside = Beside.read(folder)
    recipe, progress = load(folder / RECIPE), Terminal()
    # whoever looks at a tracker is told of the job, and not of this machine
    run_folder = RunFolder(folder / RUN, listed=False, alias=folder.name)
    with run_folder.locked():
        run_folder.open(recipe, folder / RECIPE)
        require_answers(recipe, run_folder)
        device = choose_device(recipe.model.device)
        if device.type == CPU and Claim.read(folder) is None:
            least = resolve(recipe.model.name).stored_bytes
            require_room(folder, beside, Claim(CPU, least, _total(beside, device), is_least=True), device)
        opened = open_run(recipe, run_folder, prepare_data(recipe, run_folder, progress), progress)
        prepared = prepare_training(opened, progress, available=int(COUNTED_ON * _capacity(beside, device)))
        run = prepared.run
        require_room(folder, beside, claim_of(prepared, beside), device)

        def keep(step: Step) -> None:
            if "validation_loss" in step.metrics:
                keep_artifact(opened, run, kept_place(run_folder.path, step.number))
                _thin_out(run_folder.path)

        found = prepared.found
        if found is not None:  # the process before may have been killed between its checkpoint and this
            place = kept_place(run_folder.path, found.step)
            checkpoint.restore(run, found.folder)
            if "validation_loss" in (run.state.last or {}) and found.step not in kept_steps(run_folder.path):
                keep_artifact(opened, run, place)
        train_stage(prepared, progress, keep)


def claim_of(prepared: "Prepared", beside: Beside) -> Claim:
    """The peak that was predicted for the run's micro-batches when they were found, or that of loading its model."""
    from luthier.engine.fit import MARGIN, predict
    from luthier.estimate import predict_loading

    device, found = prepared.run.device, prepared.opened.folder.read("manifest.json").get("micro_batch")
    needed = predict(prepared.run).total if found is None else found["needed"]
    if device.type == CPU:
        needed = max(needed, predict_loading(prepared.opened.loaded).total)
    return Claim(str(device), int(MARGIN * needed), _total(beside, device))


def require_room(folder: Path, beside: Beside, claim: Claim, device: "torch.device") -> None:
    """Tell the supervisor of a claim, and go on only if there is room for it.

    Raises:
        NoRoom: others leave too little.
        TooLarge: it is more than the device has.
    """
    if claim.needed > claim.total:
        raise TooLarge(too_large(claim, claim.total))
    claim.write(folder)
    if claim.needed > _capacity(beside, device) - beside.claimed.get(claim.device, 0):
        raise NoRoom


def _capacity(beside: Beside, device: "torch.device") -> int:
    """Bytes that all jobs together could hold on the device; of a GPU, others are taken to hold what they claimed."""
    from luthier.models.memory import available_bytes

    held = beside.held if device.type == CPU else beside.claimed.get(str(device), 0)
    return min(available_bytes(device) + held, _total(beside, device))


def _total(beside: Beside, device: "torch.device") -> int:
    """Bytes that jobs could hold on the device if nobody else held any."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min(system_memory.total_bytes(), beside.most)


def _thin_out(run: Path) -> None:
    for old in list(kept_steps(run).values())[:-MOST_KEPT]:
        shutil.rmtree(old)


def _end(folder: Path, error: dict[str, str]) -> None:
    with atomic_text(folder / ENDED) as file:
        json.dump(error, file)


def die_with_parent() -> None:
    """Let the kernel end this process when the supervisor ends, however that ends."""
    parent = int(os.environ[PARENT])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
