"""The process of one job: it trains in the job's folder.

    python -m luthier.cli.job_process JOB_FOLDER

The folder holds `recipe.toml` and the rows; the run lies in `run`. What `luthier train` does is done, and each step
that validated leaves what it would be served from in `run/kept`. The process ends with the supervisor (the kernel sees
to it), so no two ever train the same job; the next one goes on from the last checkpoint, bit for bit.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from luthier.data.write import atomic_text
from luthier.errors import LuthierError
from luthier.jobs.environment import PARENT
from luthier.jobs.job_folder import DONE, ENDED, RECIPE, REFUSED, RUN, STOPPED, kept_place, kept_steps

PR_SET_PDEATHSIG = 1
MOST_KEPT = 3
"""Validated steps that are kept: OpenAI keeps three, too."""


def main(arguments: list[str]) -> int:
    """Train; the exit code is `DONE`, `REFUSED` or `STOPPED`."""
    folder = Path(arguments[0])
    die_with_parent()
    try:
        train(folder)
    except LuthierError as error:
        _end(folder, {"kind": type(error).__name__, "message": str(error)})
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    _end(folder, {})
    return DONE


def train(folder: Path) -> None:
    """Train the job of a folder, from where an earlier process stopped.

    Raises:
        LuthierError: as `luthier train`.
        KeyboardInterrupt: it was told to stop; the step was finished and everything saved.
    """
    from luthier.engine import checkpoint
    from luthier.engine.loop import Step
    from luthier.progress import Terminal
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import keep_artifact, open_run, prepare_data, prepare_training, train_stage
    from luthier.tracking import require_answers

    recipe, progress = load(folder / RECIPE), Terminal()
    # whoever looks at a tracker is told of the job, and not of this machine
    run_folder = RunFolder(folder / RUN, listed=False, alias=folder.name)
    with run_folder.locked():
        run_folder.open(recipe, folder / RECIPE)
        require_answers(recipe, run_folder)
        opened = open_run(recipe, run_folder, prepare_data(recipe, run_folder, progress), progress)
        prepared = prepare_training(opened, progress)
        run = prepared.run

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
