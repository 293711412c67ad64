"""Checkpoints that are either whole or not there, and a resume that is exact.

A checkpoint is written into a temporary folder beside its place: every file is synced, `manifest.json` with the size
and sha256 of each comes last, and one rename makes it visible. A reader trusts nothing without a manifest that
verifies, so a kill or a full disk at any moment leaves the earlier checkpoints as they were. Nothing is pickled.

    step-000040/  trainable.safetensors  optimizer.safetensors  rng.safetensors  state.json  manifest.json
"""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.adapters.base import by_name, require_same_tensors
from luthier.engine.run import Run, State
from luthier.errors import CheckpointError, StorageError
from luthier.files import sha256_of, sync

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Found:
    """A checkpoint that verifies, and what was passed over to get to it."""

    folder: Path
    step: int
    skipped: tuple[str, ...]


def save(run: Run) -> Path:
    """Write the checkpoint of the step that has just been done, then drop the ones no longer needed.

    Raises:
        StorageError: the disk is full or the folder cannot be written; earlier checkpoints are intact.
    """
    place = run.checkpoints / f"step-{run.state.step:06d}"
    if place.exists() and problem(place) is None:  # a stop right after a checkpoint: this step is saved already
        return place
    temporary = run.checkpoints / f".{place.name}.tmp"
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write(run, temporary)
        if place.exists():  # it is damaged
            shutil.rmtree(place)
        temporary.rename(place)
        sync(run.checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"{place}: the checkpoint could not be written: {write_failure(error)}. Earlier checkpoints are intact: "
            "mend this and run the same command again; it goes on from there."
        ) from error
    _rotate(run)
    return place


def write_failure(error: OSError | SafetensorError) -> str:
    """Why a file could not be written, in words; safetensors gives an error of its own when the disk is full."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
    return "the disk is full" if full else str(error)


def _write(run: Run, folder: Path) -> None:
    save_file(by_name(run.injected.trainable), folder / "trainable.safetensors")
    tensors, scalars = _optimizer_state(run)
    save_file(tensors, folder / "optimizer.safetensors")
    save_file(_rng_state(run.device), folder / "rng.safetensors")
    state = {"fingerprint": run.fingerprint, "state": run.state.dump(), "optimizer_scalars": scalars}
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def _rotate(run: Run) -> None:
    """Keep the newest `keep`, the best, and the one before the newest (to fall back on); drop the rest."""
    steps = _steps(run.checkpoints)
    kept = {*steps[-max(run.settings.keep, 2) :], run.state.best_step, run.state.step}
    for step in steps:
        if step not in kept and step < run.state.step:
            shutil.rmtree(run.checkpoints / f"step-{step:06d}")


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name[5:]) for p in folder.iterdir() if p.name.startswith("step-") and p.name[5:].isdigit())


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if each is as its manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
                return f"{name} is not what its manifest says"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def latest(checkpoints: Path) -> Found | None:
    """The newest checkpoint that verifies, or None if there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    skipped: list[str] = []
    for step in reversed(_steps(checkpoints)):
        folder = checkpoints / f"step-{step:06d}"
        wrong = problem(folder)
        if wrong is None:
            return Found(folder, step, tuple(skipped))
        skipped.append(f"{folder}: {wrong}")
    if skipped:
        raise CheckpointError(
            "every checkpoint is damaged:\n  " + "\n  ".join(skipped) + f"\nRemove {checkpoints} to start again."
        )
    return None


def restore(run: Run, folder: Path) -> None:
    """Put weights, optimizer, random numbers and counters back as they were after that step.

    Raises:
        CheckpointError: the checkpoint belongs to another recipe, model or data.
    """
    saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if saved["fingerprint"] != run.fingerprint:
        raise CheckpointError(
            f"{folder} was written by a run with another recipe, model, data or version of Luthier. "
            "Use another --out, or remove the folder."
        )
    load_weights(run, folder)
    _load_optimizer(run, load_file(folder / "optimizer.safetensors"), saved["optimizer_scalars"])
    _load_rng(load_file(folder / "rng.safetensors"), run.device)
    run.state = State(**saved["state"])


def load_weights(run: Run, folder: Path) -> None:
    """Put only the trained tensors of a checkpoint into the model."""
    tensors, expected = load_file(folder / "trainable.safetensors"), run.injected.trainable
    require_same_tensors(folder / "trainable.safetensors", tensors, expected)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])


def best(run: Run) -> Found:
    """The checkpoint of the best step; if it is damaged, the newest one that verifies, and why (`skipped`).

    Raises:
        CheckpointError: every checkpoint is damaged or gone.
    """
    step = run.state.best_step
    folder = run.checkpoints / f"step-{step:06d}"
    wrong = problem(folder)
    if wrong is None:
        return Found(folder, step, ())
    found = latest(run.checkpoints)
    reason = f"{folder}: {wrong}"
    if found is None:
        raise CheckpointError(f"{reason}, and there is no other checkpoint. Run the same command again to train anew.")
    return replace(found, skipped=(reason, *(other for other in found.skipped if other != reason)))


def _parameter_names(run: Run) -> dict[int, str]:
    """Name of each parameter by its index in the optimizer's state."""
    names = {id(p): name for name, p in run.injected.trainable.items()}
    ordered = [p for group in run.optimizer.param_groups for p in group["params"]]
    return {index: names[id(p)] for index, p in enumerate(ordered)}


def _optimizer_state(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as named tensors and named plain values, `<kind>|<parameter>`."""
    names = _parameter_names(run)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in run.optimizer.state_dict()["state"].items():
        for kind, value in values.items():
            key = f"{kind}|{names[index]}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().to("cpu").contiguous()
            else:
                scalars[key] = value
    return tensors, scalars


def _load_optimizer(run: Run, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    indices = {name: index for index, name in _parameter_names(run).items()}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **scalars}.items():
        kind, _, name = key.partition("|")
        state.setdefault(indices[name], {})[kind] = value
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _load_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
