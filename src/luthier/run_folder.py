"""A run's folder: who may write in it, which recipe it belongs to, and the small JSON files in it.

Every file is written whole or not at all, so that a run that was killed can be read and continued.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier import __version__, energy, prices, run_registry
from luthier.config import build
from luthier.data.write import atomic_text, remove_unfinished
from luthier.errors import LuthierError, RecipeError, StorageError
from luthier.recipe import PATIENCE, Recipe
from luthier.run_registry import Parent

VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
# settings that decide no weight: records carry their own keys, and the report reads prices anew
HARMLESS = (
    *(("cost",), ("decision",), ("evaluation",), ("retrieval",), ("tracking",)),
    # where a sampler or a judge is, and how long it is waited for: a run that stopped for want of these must go on
    *(("rollout", "vllm", key) for key in ("python", "cache_gib", "devices", "timeout_seconds")),
    *(("rollout", "models", "*", key) for key in PATIENCE),
    *(("constitution", "critic", key) for key in PATIENCE),
    # how what was made is measured
    *(("constitution", key) for key in ("reward_models", "judge", "most_refusals")),
)
PRICES = "prices.toml"
"""The copy of the user's price book."""
TRACKING = "tracking.json"
"""Which runs of its trackers this one is."""
# what only its own recipe may go on with
MADE = ("checkpoints/step-*", "adapter", "records", "evaluation.json", "replies")
_said: set[str] = set()


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: where it lies.
        listed: whether the registry of runs is told how far it is.
        alias: what others are told instead of where it lies.
    """

    def __init__(self, path: Path, listed: bool = True, alias: str | None = None) -> None:
        self.path = path
        self._listed = listed
        self.title = alias or os.path.relpath(path)
        """What it is called."""
        self.place = alias or str(path.resolve())
        """Where it lies, as others are told."""
        self._begun = False

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
        """The content of a JSON file, or None if it is not there.

        Raises:
            StorageError: the file is damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise StorageError(f"{path} is damaged ({error}); restore it, or begin again in another folder") from None

    def open(self, recipe: Recipe, file: Path) -> None:
        """`begin` with the recipe of a file."""
        self.begin(recipe, file.read_text(encoding="utf-8"), file.resolve().parent)

    def begin(self, recipe: Recipe, source: str, home: Path, parents: Sequence[Parent] = ()) -> None:
        """Make the folder, or go on in it if nothing in it depends on a setting that has changed since.

        Args:
            recipe: the effective settings.
            source: the text that they were read from.
            home: the folder of that text, in which external programs run.
            parents: the runs that this one comes from; noted ones of another relation stay.

        Raises:
            RecipeError: something was made in the folder by another recipe, or a price that it names is not there.
            StorageError: it cannot be written.
        """
        prices.require_prices(recipe.cost)
        try:
            (self.path / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path}: the run's folder cannot be made: {error}") from None
        before = self.recipe_values()
        changed = [] if before is None else differing(decisive(before), decisive(recipe.dump()))
        if changed:
            self._begin_anew(changed)
        with atomic_text(self.path / "recipe.toml") as copy:
            copy.write(source)
        self._keep_prices(recipe)
        self.write("recipe.json", recipe.dump())
        manifest = self.read("manifest.json") or {"id": run_registry.new_id(), "created": now(), "stages": {}}
        manifest.pop("failure", None)
        relations = {parent.relation for parent in parents}
        kept = [parent for parent in manifest.get("parents", []) if parent["relation"] not in relations]
        if parents:
            manifest["parents"] = [*(parent.model_dump() for parent in parents), *kept]
        manifest |= {
            "openings": manifest.get("openings", 0) + 1,
            "luthier": __version__,
            "machine": machine(),
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
            "recipe_sha256": recipe.hash(),
            "recipe_folder": str(home),
            "git": _git(),
        }
        self.write("manifest.json", manifest)
        self._begun = True
        self.enter()

    def enter(self) -> None:
        """Tell the registry of runs how far this one is; one that cannot be told stops nothing, and is said once."""
        if not self._listed:
            return
        try:
            run_registry.enter(self.path)
        except StorageError as error:
            if str(error) not in _said:
                _said.add(str(error))
                print(f"  this run is not listed, and goes on: {error}", file=sys.stderr)

    def _keep_prices(self, recipe: Recipe) -> None:
        """A copy of the user's price book, so that the report needs nothing outside of the folder."""
        if recipe.cost.prices is None:
            (self.path / PRICES).unlink(missing_ok=True)
            return
        with atomic_text(self.path / PRICES) as copy:
            copy.write(Path(recipe.cost.prices).read_text(encoding="utf-8-sig"))

    def recipe_values(self) -> Mapping[str, Any] | None:
        """The effective settings that the folder was last opened with; None: it never was.

        Raises:
            StorageError: the file is damaged.
        """
        values = self.read("recipe.json")
        if values is not None and not isinstance(values, Mapping):
            raise StorageError(f"{self.path / 'recipe.json'} is damaged: it holds no table of settings; restore it")
        return values

    def _begin_anew(self, changed: Sequence[str]) -> None:
        """Forget what a first attempt noted before it failed.

        Raises:
            RecipeError: the other recipe came as far as something that depends on it.
        """
        made = sorted(str(path.relative_to(self.path)) for pattern in MADE for path in self.path.glob(pattern))
        if made:
            raise RecipeError(
                f"{self.path} holds a run of another recipe (changed: {', '.join(changed)}; made by it: "
                f"{', '.join(made[:3])}). Choose another folder with --out, or remove this one."
            )
        for name in ("manifest.json", "preflight.json", TRACKING):
            (self.path / name).unlink(missing_ok=True)

    def record(self, **entries: Any) -> None:
        """Add entries to the manifest."""
        self.write("manifest.json", {**self.read("manifest.json"), **entries})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage to the manifest; the parts of an interrupted stage add up."""
        started, spent = time.perf_counter(), energy.Spent()
        try:
            with energy.measured() as spent:
                yield
        finally:
            self.add_spent(stage, time.perf_counter() - started, spent.joules)

    def add_spent(self, stage: str, seconds: float, joules: float | None) -> None:
        """Add to the seconds that a stage has taken, and to its energy where that was measured."""
        manifest = self.read("manifest.json")
        before = manifest["stages"].get(stage, {})
        now = {"seconds": round(before.get("seconds", 0.0) + seconds, 3)}
        # energy of some of the parts would read as the energy of all
        if joules is not None and (not before or "joules" in before):
            now["joules"] = round(before.get("joules", 0.0) + joules, 3)
        manifest["stages"][stage] = now
        self.write("manifest.json", manifest)
        self.enter()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in this folder.

        Raises:
            RecipeError: another process is at work in it.
            StorageError: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise StorageError(f"{self.path}: this cannot be a run's folder: {error}; choose another one") from None
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(f"{self.path}: another process is at work in this run's folder") from None
            for place in (self.path, self.path / "data", self.path / "records"):
                remove_unfinished(place)
            try:
                yield
            except (LuthierError, OSError, RuntimeError, MemoryError) as error:
                self._note_failure(error)
                raise
            finally:
                self.enter()

    def _note_failure(self, error: BaseException) -> None:
        """Keep in the manifest why the run ended, until it goes on; not of a process that never came to open it."""
        if self._begun:
            with suppress(StorageError):  # a full disk is told by the error itself
                self.record(failure=str(error).splitlines()[0] if str(error) else type(error).__name__)


def recipe_of(folder: Path) -> Recipe:
    """The effective recipe of a run.

    Raises:
        RecipeError: the folder is not a run's.
        StorageError: its recipe.json is damaged.
    """
    values = RunFolder(folder).recipe_values()
    if values is None:
        raise RecipeError(f"{folder} is not a run's folder: it has no recipe.json; `luthier run RECIPE --out {folder}`")
    return build(Recipe, values)


def decisive(recipe: Mapping[str, Any], but: Sequence[tuple[str, ...]] = HARMLESS) -> dict[str, Any]:
    """The settings that decide what is trained; `but` are the others, `*` standing for any name."""
    found = {}
    for key, value in recipe.items():
        inner = [path[1:] for path in but if path[0] in (key, "*")]
        if () in inner:
            continue
        found[key] = decisive(value, inner) if inner and isinstance(value, Mapping) else value
    return found


def differing(a: Mapping[str, Any], b: Mapping[str, Any], at: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    names = []
    for key in sorted(a.keys() | b.keys()):
        mine, other = a.get(key), b.get(key)
        if mine == other:
            continue
        nested = isinstance(mine, Mapping) and isinstance(other, Mapping)
        names += differing(mine, other, at=f"{at}{key}.") if nested else [f"{at}{key}"]  # type: ignore[arg-type]
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


def now() -> str:
    """The time, as manifests have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
