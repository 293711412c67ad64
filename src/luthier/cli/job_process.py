"""The process of one job: it trains in the job's folder, within the limits that the operator set.

    python -m luthier.cli.job_process JOB_FOLDER

The folder holds `recipe.toml` and the rows; the run lies in `run`. What `luthier train` does is done, and each step
that validated leaves what it would be served from in `run/kept`. The process ends with the supervisor (the kernel sees
to it), so no two ever train the same job; the next one goes on from the last checkpoint, bit for bit.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

from luthier.errors import LuthierError

PR_SET_PDEATHSIG = 1
INTERRUPTED = 130
KEPT, MOST_KEPT = "kept", 3
"""Where validated steps lie, and how many: OpenAI keeps three, too."""
ENDED = "ended.json"
"""How the process ended, for the supervisor: `error` with its kind and text, or empty."""
LIMITS = {"LUTHIER_JOB_BYTES": resource.RLIMIT_AS, "LUTHIER_JOB_FILE_BYTES": resource.RLIMIT_FSIZE}
"""Environment variables that bound the process."""


def main(arguments: list[str]) -> int:
    """Train; 0: done, 2: the job cannot be done as it is, 130: stopped and saved."""
    folder = Path(arguments[0])
    die_with_parent()
    for name, kind in LIMITS.items():
        if name in os.environ:
            resource.setrlimit(kind, (int(os.environ[name]),) * 2)
    try:
        train(folder)
    except LuthierError as error:
        _end(folder, {"kind": type(error).__name__, "message": str(error)})
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    _end(folder, {})
    return 0


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

    recipe, run_folder, progress = load(folder / "recipe.toml"), RunFolder(folder / "run", listed=False), Terminal()
    with run_folder.locked():
        run_folder.open(recipe, folder / "recipe.toml")
        opened = open_run(recipe, run_folder, prepare_data(recipe, run_folder, progress), progress)
        prepared = prepare_training(opened, progress)
        run = prepared.run

        def keep(step: Step) -> None:
            if "validation_loss" in step.metrics:
                keep_artifact(opened, run, run_folder / KEPT / f"step-{step.number:06d}")
                _thin_out(run_folder / KEPT)

        found = prepared.found
        if found is not None:  # the process before may have been killed between its checkpoint and this
            place = run_folder / KEPT / f"step-{found.step:06d}"
            checkpoint.restore(run, found.folder)
            if run.state.last is not None and "validation_loss" in run.state.last and not place.is_dir():
                keep_artifact(opened, run, place)
        train_stage(prepared, progress, keep)


def _thin_out(kept: Path) -> None:
    for old in sorted(kept.glob("step-*"))[:-MOST_KEPT]:
        shutil.rmtree(old)


def _end(folder: Path, error: dict[str, str]) -> None:
    temporary = folder / f".{ENDED}"
    temporary.write_text(json.dumps(error), encoding="utf-8")
    temporary.replace(folder / ENDED)


def die_with_parent() -> None:
    """Let the kernel end this process when the supervisor ends, however that ends."""
    parent = int(os.environ["LUTHIER_SUPERVISOR"])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
