"""Training that continues an earlier run: this run's adapter begins as that one left it (`adapter.start_from`).

The artifact is copied into the run's own folder before anything is trained, and its files are known by their sha256 in
the manifest, in `run.json` and in the report. A run that was stopped goes on from its own copy, whatever has become of
the earlier run meanwhile.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.adapters.base import Adapter
from luthier.assemble import Artifact, adapter_of, precision_of, read_artifact
from luthier.config import Tree, write_toml
from luthier.data.templates import Template
from luthier.errors import ModelError, RecipeError
from luthier.models.load import LoadedModel
from luthier.recipe import Recipe, dump_part
from luthier.run_folder import RunFolder
from luthier.run_registry import Parent, read_entry

FOLDER = "start"
"""In a run's folder; it holds `adapter`, as a run's folder does."""
KEY = "started_from"
"""In manifest and `run.json`."""


@dataclass(frozen=True)
class Start:
    """The trained adapter that a run begins at."""

    source: str
    """The earlier run, as the recipe names it."""
    artifact: Artifact
    """In the run's own folder."""
    noted: Mapping[str, Any]
    """What the manifest says of it."""

    @property
    def folder(self) -> Path:
        """Of the artifact."""
        return self.artifact.folder

    @property
    def files(self) -> Mapping[str, str]:
        """sha256 of its files."""
        files: Mapping[str, str] = self.noted["files"]
        return files

    def require_fit(self, recipe: Recipe, loaded: LoadedModel, template: Template) -> None:
        """Check that the earlier run trained on this base, held as it is here, and by this template.

        Raises:
            RecipeError: it did not; the message says what to write.
        """
        record, model = self.artifact.record, self.artifact.recipe.model
        wanted = {"quantize": model.quantize, "precision": record["model"]["precision"]}
        found = {"quantize": recipe.model.quantize, "precision": precision_of(loaded)}
        problems = [
            f"model.{key} is {found[key]} here and was {wanted[key]} there: write {key} = '{wanted[key]}' in [model]"
            for key in wanted
            if found[key] != wanted[key]
        ]
        if loaded.files.fingerprint != record["model"]["fingerprint"]:
            name = record["model"]["name"]
            problems.append(
                f"model.name is {recipe.model.name} here, and its files are not those of {name} then: write "
                f"name = '{name}' in [model], and restore its files if they were changed"
            )
        if template.sha256 != record["template"]["sha256"]:
            problems.append(
                f"its template was another one ({record['template']['name']}; here {template.name}), and one model "
                f"answers by one template: write template = '{self.source}/adapter/template.jinja' in [model]"
            )
        _refuse(self.source, problems)


def keep_start(recipe: Recipe, folder: RunFolder) -> Start | None:
    """What the recipe's adapter starts from, copied into the run's folder if it is not there; None: it is fresh.

    Raises:
        ModelError: the earlier run has no trained model, or a file of it, or of the copy, was changed.
        RecipeError: its adapter is another one than the recipe's; the message says what to write.
    """
    source = adapter_of(recipe).start_from
    if source is None:
        return None
    noted, place = folder.read("manifest.json").get(KEY), folder / FOLDER
    begins = noted is None
    if begins:
        before = _continued(Path(source), recipe)
        _copy(before.folder, place / "adapter")
        noted = {"run": source, "training": before.record["training"], "files": before.record["files"]}
    artifact = read_artifact(place)
    if artifact.record["files"] != noted["files"]:
        raise ModelError(f"{place} is not what this run started from; restore it, or begin again in another folder")
    if begins:  # noted last: a copy that is not whole is made anew
        folder.record(**{KEY: noted}, parents=_parents(folder, Path(source)))
    return Start(source, artifact, noted)


def _continued(source: Path, recipe: Recipe) -> Artifact:
    """The earlier run's artifact, whose adapter is of the recipe's settings."""
    artifact = read_artifact(source)
    if "merged" in artifact.record:
        raise ModelError(
            f"adapter.start_from = '{source}': this run was merged, and no recipe describes its adapter; continue one "
            "of the runs that it was merged from"
        )
    _refuse(str(source), _differing(adapter_of(recipe), adapter_of(artifact.recipe)))
    return artifact


def _differing(mine: Adapter, theirs: Adapter) -> list[str]:
    """What of an adapter is not as it was, and what to write."""
    here, there = (
        {key: value for key, value in dump_part(adapter).items() if key not in adapter.free_to_change}
        for adapter in (mine, theirs)
    )
    if here["type"] != there["type"]:
        return [f"adapter.type is {here['type']} here and was {there['type']} there: {_as_toml('type', there)}"]
    return [
        f"adapter.{key} is {here[key]} here and was {there[key]} there: {_as_toml(key, there)}"
        for key in here
        if here[key] != there[key]
    ]


def _as_toml(key: str, values: Tree) -> str:
    return f"leave {key} out" if values[key] is None else f"write {write_toml({key: values[key]}).strip()}"


def _refuse(source: str, problems: list[str]) -> None:
    if problems:
        raise RecipeError(
            f"adapter.start_from = '{source}': what continues must be what was trained there:\n  "
            + "\n  ".join(problems)
        )


def _copy(source: Path, place: Path) -> None:
    """Copy an artifact, in place of what an attempt before this left."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)


def _parents(folder: RunFolder, source: Path) -> list[dict[str, Any]]:
    """The manifest's parents, with the earlier run if that is one (a checkpoint of a job has no manifest)."""
    known = list(folder.read("manifest.json").get("parents") or [])
    entry = read_entry(source)
    if entry is None:
        return known
    return [*known, Parent(id=entry.id, folder=entry.folder, relation="continuation of").model_dump()]
