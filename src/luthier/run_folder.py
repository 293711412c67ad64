"""A run's folder: who may write in it, which recipe it belongs to, and the small JSON files in it.

Every file is written whole or not at all, so that a run that was killed can be read and continued.
"""

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier import __version__
from luthier.config import build
from luthier.data.write import atomic_text
from luthier.errors import RecipeError, StorageError
from luthier.recipe import Recipe

VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
# settings that change no number that was measured: the report reads them anew
HARMLESS = ("cost",)


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file whole.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        with atomic_text(self.path / name) as file:
            json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")

    def read(self, name: str) -> Any:
        """The content of a JSON file, or None if it is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def open(self, recipe: Recipe, file: Path) -> None:
        """Make the folder, or go on in it if it was made by the same recipe.

        Raises:
            RecipeError: the folder belongs to another recipe.
            StorageError: it cannot be written.
        """
        try:
            (self.path / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path}: the run's folder cannot be made: {error}") from None
        before = self.read("recipe.json")
        if before is not None and (changed := _changed(before, recipe.dump())):
            raise RecipeError(
                f"{self.path} holds a run of another recipe (changed: {', '.join(changed)}). "
                "Choose another folder with --out, or remove this one."
            )
        source = file.read_text(encoding="utf-8")
        with atomic_text(self.path / "recipe.toml") as copy:
            copy.write(source)
        self.write("recipe.json", recipe.dump())
        manifest = self.read("manifest.json") or {"created": _now(), "stages": {}}
        manifest |= {
            "luthier": __version__,
            "machine": machine(),
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "recipe_sha256": recipe.hash(),
            "recipe_folder": str(file.resolve().parent),
            "git": _git(),
        }
        self.write("manifest.json", manifest)

    def record(self, **entries: Any) -> None:
        """Add entries to the manifest."""
        self.write("manifest.json", {**self.read("manifest.json"), **entries})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage to the manifest; the parts of an interrupted stage add up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(stage, time.perf_counter() - started)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to the seconds that a stage has taken."""
        manifest = self.read("manifest.json")
        spent = manifest["stages"].get(stage, {}).get("seconds", 0.0) + seconds
        manifest["stages"][stage] = {"seconds": round(spent, 3)}
        self.write("manifest.json", manifest)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in this folder.

        Raises:
            RecipeError: another process is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(f"{self.path}: another process is at work in this run's folder") from None
            yield


def recipe_of(folder: Path) -> Recipe:
    """The effective recipe of a run.

    Raises:
        RecipeError: the folder is not a run's.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        raise RecipeError(f"{folder} is not a run's folder: it has no recipe.json; `luthier run RECIPE --out {folder}`")
    return build(Recipe, json.loads(path.read_text(encoding="utf-8")))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    names = []
    for key in sorted(before.keys() | now.keys()):
        a, b = before.get(key), now.get(key)
        if a == b or (not at and key in HARMLESS):
            continue
        nested = isinstance(a, Mapping) and isinstance(b, Mapping)
        names += _changed(a, b, f"{at}{key}.") if nested else [f"{at}{key}"]  # type: ignore[arg-type]
    return names


def machine() -> dict[str, Any]:
    """What this machine is, as far as it decides speed."""
    import psutil
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> str | None:
    """The commit of Luthier's own checkout, or None when it was installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
