"""Runs behind names: what `luthier serve` opens, at its start and while it runs.

The first run, or a name, decides the base; every other adapter must have been trained on the very same one, held in the
same form.
A name never becomes a path: what may be added while the server runs stands in a table, or is a folder in the one that
the operator registered.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from luthier.assemble import RECORD, Artifact, open_base, precision_of, read_artifact, require_same_base
from luthier.data.templates import build_template
from luthier.errors import ModelError, ServeError
from luthier.models.catalog import resolve
from luthier.models.load import choose_device
from luthier.rag.embedder import Embedder
from luthier.rag.reranker import CrossEncoder
from luthier.rag.trained import model_of
from luthier.serve.backend import Registry
from luthier.serve.embedding import EmbeddingModel
from luthier.serve.limits import Limits
from luthier.serve.llama import LlamaWorker
from luthier.serve.models import BASE, ServedModel, SharedBase, whole_model
from luthier.serve.rerank import RerankModel
from luthier.serve.work import MAX_PROMPTS

GGUF_CACHE_TOKENS = 32_768
"""llama.cpp takes the memory of all of them at once, when it loads the file."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_adapters(run: Path | None, given: Sequence[str]) -> dict[str, Path]:
    """The run and each `NAME=PATH` of the command line as folders by name, in this order.

    Raises:
        ServeError: nothing is given, a name is no name or given twice.
    """
    pairs = [] if run is None else [(run.resolve().name, run)]
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise ServeError(f"--adapter {text}: expected NAME=PATH, such as dates=runs/dates")
        pairs.append((name, Path(folder)))
    if not pairs:
        raise ServeError(
            "nothing to serve: name a run's folder, --adapter NAME=PATH, --base NAME, --embedder NAME or "
            "--reranker NAME"
        )
    for name, path in pairs:
        if name == BASE:
            raise ServeError(f"{path}: a model called {BASE!r} would hide the base model's name; give it another one")
        if not _NAME.fullmatch(name):
            raise ServeError(
                f"{name!r} ({path}): a model's name has up to 64 letters, digits, dots, dashes and underscores, and "
                "begins with a letter or a digit; give it one with --adapter NAME=PATH"
            )
        if sum(name == other for other, _ in pairs) > 1:
            raise ServeError(f"two models have the same name: {name}; give one another with --adapter NAME=PATH")
    return dict(pairs)


def open_embedders(given: Mapping[str, str], device: str | None = None) -> list[EmbeddingModel]:
    """Encoders by the names that requests have for them.

    Raises:
        ModelError: one cannot be had, or is no encoder of the kind that is computed here.
    """
    place = choose_device(device or "auto")
    files = {name: resolve(model_of(model, "embedder")) for name, model in given.items()}
    return [EmbeddingModel(name, Embedder(found, place)) for name, found in files.items()]


def open_rerankers(given: Mapping[str, str], device: str | None = None) -> list[RerankModel]:
    """Cross-encoders by the names that requests have for them.

    Raises:
        ModelError: one cannot be had, or has no score for a pair.
    """
    place = choose_device(device or "auto")
    files = {name: resolve(model_of(model, "reranker")) for name, model in given.items()}
    return [RerankModel(name, CrossEncoder(found, place)) for name, found in files.items()]


def open_gguf(path: Path, limits: Limits, queue: int) -> LlamaWorker:
    """llama.cpp with a GGUF file.

    Raises:
        ModelError: it cannot be loaded.
    """
    cache = min(limits.cache_tokens, GGUF_CACHE_TOKENS)
    return LlamaWorker(path, replace(limits, cache_tokens=cache), queue * MAX_PROMPTS, torch.get_num_threads())


@dataclass(frozen=True)
class _Held:
    """How the base is held, and by whose wish."""

    precision: str
    quantize: str
    added_tokens: tuple[str, ...] = ()
    name: str = BASE


class Runs(Registry):
    """The adapters of several runs over one base, or a base alone to which adapters may be added."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        register: Path | None = None,
        device: str | None = None,
        base: str | None = None,
    ) -> None:
        """Open the base.

        Args:
            folders: of the runs that are served from the start, by name.
            register: a folder whose runs may be added by their folders' names.
            device: as `model.device`; None: that of the first run's recipe.
            base: as `model.name`, where no run is served from the start.

        Raises:
            ModelError: a run has no trained model, or its base cannot be had.
            ServeError: a run trained all weights, and others shall be served beside it; runs and a base are given.
        """
        if register is not None and not register.is_dir():
            raise ServeError(f"--register {register}: there is no such folder")
        if bool(folders) == (base is not None):
            raise ServeError("--base NAME is for a server without runs at its start; the base of runs is served anyway")
        self._folders, self._register = dict(folders), register
        artifacts = {name: read_artifact(folder) for name, folder in folders.items()}
        whole = [name for name, artifact in artifacts.items() if artifact.is_whole]
        if whole and (len(artifacts) > 1 or register is not None):
            raise ServeError(
                f"{whole[0]} ({folders[whole[0]]}) trained all weights and shares no base with others; serve it alone"
            )
        self._artifacts = artifacts
        if base is not None:
            self._loaded = open_base(base, device)
            self._template = build_template(self._loaded, "model")
            self._held = _Held(precision_of(self._loaded), "none")
        else:
            first = next(iter(artifacts.values()))
            self._loaded = first.open_base(device)
            self._template = first.template(self._loaded)
            precision = first.record["model"]["precision"]
            self._held = _Held(precision, first.recipe.model.quantize, first.added_tokens, first.name)
        self._shared = None if whole else SharedBase(self._loaded)

    def models(self) -> list[ServedModel]:
        """The base, if there is one, and all adapters given at the start.

        Raises:
            ModelError: an adapter does not fit the base.
        """
        if self._shared is None:
            ((name, artifact),) = self._artifacts.items()
            template = artifact.template(self._loaded)
            injected = artifact.put_in(self._loaded.model)
            self._loaded.model.eval()
            return [whole_model(name, self._loaded, template, injected)]
        found = [self._adapted(name, artifact) for name, artifact in self._artifacts.items()]
        return [*found, self._shared.base(self._template)]

    def names(self) -> list[str]:
        """What may be added: the runs of the start, and those that the registered folder holds now."""
        return list(self._registered())

    def open(self, name: str) -> ServedModel:
        """One of `names`, read anew.

        Raises:
            ServeError: it is none of them now, or trained all weights.
            ModelError: it has no trained model, or one that does not fit the base.
        """
        folder = self._registered().get(name)
        if folder is None:
            raise ServeError(f"no run {name} is registered")
        return self._adapted(name, read_artifact(folder))

    def _registered(self) -> dict[str, Path]:
        """Folders by name; those of the start go before the registered folder's."""
        if self._shared is None:
            return {}
        records = [] if self._register is None else self._register.glob(f"*/adapter/{RECORD}")
        found = {folder.name: folder for folder in (record.parent.parent for record in records)}
        known = {name: folder for name, folder in found.items() if _NAME.fullmatch(name) and name != BASE}
        return {**known, **self._folders}

    def _adapted(self, name: str, artifact: Artifact) -> ServedModel:
        if self._shared is None or artifact.is_whole:
            raise ServeError(f"{name} ({artifact.folder}) trained all weights and shares no base; serve it alone")
        require_same_base(artifact.record, self._loaded)
        held, precision, quantize = self._held, artifact.record["model"]["precision"], artifact.recipe.model.quantize
        if artifact.added_tokens != held.added_tokens:
            raise ModelError(
                f"{name} ({artifact.folder}) was trained with other new tokens than {held.name}, so their ids mean "
                "other texts. Serve it apart"
            )
        if (precision, quantize) != (held.precision, held.quantize):
            raise ModelError(
                f"{name} ({artifact.folder}) was trained over its base in {precision}, quantize = {quantize}; here it "
                f"is held in {held.precision}, quantize = {held.quantize}. Serve it apart"
            )
        return self._shared.adapted(name, artifact.template(self._loaded), artifact.put_in)
