"""A model under a name: what requests may ask for."""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from luthier.adapters.base import Injected
from luthier.config import canonical_hash
from luthier.data.templates import Template
from luthier.errors import ServeError
from luthier.models.load import LoadedModel

BASE = "base"
"""The name of the model before training."""


@dataclass(frozen=True)
class ServedModel:
    """One name in the list of models. Several may share one `loaded`, each with its own state of the adapter."""

    name: str
    loaded: LoadedModel
    template: Template
    """The one trained with: its `prompt_ids` made the training prompts too."""
    activate: Callable[[], AbstractContextManager[None]]
    """While it is open, the model computes as this name promises (adapter on, or off)."""
    created: int = 0
    """Unix seconds; shown in the list of models."""
    fingerprint: str = ""
    """Identifies weights (what was trained included) and template; `system_fingerprint` in answers."""
    stop_ids: frozenset[int] = field(init=False)
    """Tokens that end a turn."""
    vocabulary: int = field(init=False)
    """Token ids are below this."""

    def __post_init__(self) -> None:
        model: Any = self.loaded.model
        object.__setattr__(self, "vocabulary", int(model.config.get_text_config().vocab_size))
        object.__setattr__(self, "stop_ids", frozenset(self.loaded.stop_ids | self.template.stop_ids))


def served_models(
    name: str, loaded: LoadedModel, template: Template, injected: Injected, *, require_base: bool = False
) -> list[ServedModel]:
    """The models of one run: the trained one under `name`, and `base` if the adapter can be switched off.

    Raises:
        ServeError: the run itself is called `base`, or `require_base` and the run trained all weights.
    """
    if name == BASE:
        raise ServeError(f"a run called {BASE!r} would hide the base model's name; rename its folder")
    base = canonical_hash([loaded.files.fingerprint, template.sha256])[:12]
    own = canonical_hash([base, _digest(injected)])[:12]
    created = int(time.time())
    trained = ServedModel(name, loaded, template, nullcontext, created, f"fp_{own}")
    try:
        with injected.disabled():
            pass
    except NotImplementedError:
        if require_base:
            raise ServeError(
                f"{name} trained all weights, so its base model is not in it; serve without --base"
            ) from None
        return [trained]
    return [trained, ServedModel(BASE, loaded, template, injected.disabled, created, f"fp_{base}")]


def _digest(injected: Injected) -> str:
    """sha256 over the bytes of all trained tensors; about 1.5 GB a second."""
    digest = hashlib.sha256()
    for _, p in sorted(injected.trainable.items()):
        digest.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
