"""A model under a name: what requests may ask for."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from luthier.adapters.base import Injected
from luthier.config import canonical_hash
from luthier.data.template_probes import kinds_of
from luthier.data.templates import Template
from luthier.evaluation.classes import Classifier, classifier_of
from luthier.evaluation.rewards import RewardModel, judge_of
from luthier.models.load import LoadedModel
from luthier.models.mixed import NO_ADAPTER, Mixture, Part, twin
from luthier.models.virtual import virtual_ids
from luthier.serve.api_error import unsupported
from luthier.serve.classification import ClassifyRequest
from luthier.serve.completion import CompletionRequest
from luthier.serve.decision import DecisionRequest
from luthier.serve.reward import ScoreRequest
from luthier.serve.served import Asked

BASE = "base"
"""The name of the model before training."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One name in the list of models."""

    name: str
    loaded: LoadedModel
    """What its prompts are read with: the base with this model's own adapter in it."""
    template: Template
    """The one trained with: its `prompt_ids` made the training prompts too."""
    created: int = 0
    """Unix seconds; shown in the list of models."""
    fingerprint: str = ""
    """Identifies weights (what was trained included) and template; `system_fingerprint` in answers."""
    judge: RewardModel | None = None
    """What scores replies (/score); None: it does not."""
    classifier: Classifier | None = None
    """What says something of texts (/classify); None: it does not."""
    shared: Mixture | None = None
    """What its rows are written with, together with those of others; None: with `loaded`, in a batch of their own."""
    parts: dict[str, Part] = field(default_factory=dict)
    """What its rows are written with otherwise than those of the base, until `place` moves it into the mixture."""
    mixture: Mixture = field(init=False)
    """What its rows are written with."""
    stop_ids: frozenset[int] = field(init=False)
    """Tokens that end a turn."""
    vocabulary: int = field(init=False)
    """Token ids are below this."""
    before: tuple[int, ...] = field(init=False)
    """Virtual tokens in front of every prompt."""

    def __post_init__(self) -> None:
        model: Any = self.loaded.model
        object.__setattr__(self, "vocabulary", int(model.config.get_text_config().vocab_size))
        object.__setattr__(self, "stop_ids", frozenset(self.loaded.stop_ids | self.template.stop_ids))
        object.__setattr__(self, "before", virtual_ids(model))
        object.__setattr__(self, "mixture", self.shared or Mixture(model))

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.loaded.max_tokens - len(self.before)

    def require(self, asked: Asked) -> None:
        """Refuse what the template would leave out without a word, so that no model answers from nothing.

        Raises:
            ApiError: 400 that names it.
        """
        if isinstance(asked, ScoreRequest) and self.judge is None:
            does = "writes replies" if self.classifier is None else "classifies texts (/classify)"
            raise unsupported("model", f"{self.name!r} {does}; replies are scored by a reward model")
        if not isinstance(asked, ScoreRequest) and self.judge is not None:
            raise unsupported("model", f"{self.name!r} was trained to score replies (/score), not to write them")
        if isinstance(asked, ClassifyRequest):
            self._require_read(asked)
        elif self.classifier is not None:
            raise unsupported("model", f"{self.name!r} was trained to classify texts (/classify), not to write replies")
        if isinstance(asked, CompletionRequest) or (self.classifier is not None and self.classifier.input == "text"):
            return
        tools = () if isinstance(asked, DecisionRequest) else asked.tools
        for kind, place in kinds_of(asked.messages, tools).items():
            if kind not in self.template.capabilities:
                what = "system messages" if kind == "system" else kind.replace("_", " ")
                at = "input" if isinstance(asked, DecisionRequest) else place
                raise unsupported(at, f"the chat template of {self.name!r} has no place for {what}")

    def _require_read(self, asked: ClassifyRequest) -> None:
        """Refuse what its head was not trained to read."""
        if self.classifier is None:
            raise unsupported(
                "model", f"{self.name!r} writes replies; texts are classified by a run that trained a head"
            )
        if self.classifier.system is None and not asked.messages:
            raise unsupported("input", f"{self.name!r} was trained with several system messages: send 'messages'")
        if asked.tools and self.classifier.input == "text":
            raise unsupported("tools", f"{self.name!r} reads the text alone, without tools")
        if asked.precision is not None and not self.classifier.reading.answers_once:
            raise unsupported("precision", f"what {self.name!r} says is no single label that is right or wrong")

    def place(self) -> int:
        """Move its parts into the mixture, once; returns the place of its rows there. For the thread that computes."""
        if not self.parts:
            return NO_ADAPTER
        place = self.mixture.put(self.parts)
        self.parts.clear()  # the mixture has copies
        return place


class SharedBase:
    """One base model, and the models that adapters make of it; they share its tensors."""

    def __init__(self, loaded: LoadedModel) -> None:
        """`loaded` is kept as it is, and nothing is computed with it."""
        self.loaded = loaded
        self.mixture = Mixture(twin(loaded.model))
        self._lock = threading.Lock()

    def base(self, template: Template) -> ServedModel:
        """The base itself."""
        fingerprint = f"fp_{self._key(template)}"
        return ServedModel(BASE, self._copy(), template, int(time.time()), fingerprint, shared=self.mixture)

    def adapted(self, name: str, template: Template, inject: Callable[[nn.Module], Injected]) -> ServedModel:
        """The model that an adapter makes of the base; `inject` puts it into the model that it is given.

        Any thread may call it; an adapter that cannot share a batch with others gets one of its own.
        """
        with self._lock:
            loaded = self._copy()
            injected = inject(loaded.model)
            loaded.model.eval()
            parts = injected.parts()
            fingerprint = "fp_" + canonical_hash([self._key(template), _digest(injected)])[:12]
        shared = None if parts is None else self.mixture
        heads = judge_of(loaded, template, injected.head), classifier_of(loaded, template, injected.head)
        return ServedModel(name, loaded, template, int(time.time()), fingerprint, *heads, shared, dict(parts or {}))

    def _copy(self) -> LoadedModel:
        return replace(self.loaded, model=twin(self.loaded.model))

    def _key(self, template: Template) -> str:
        return canonical_hash([self.loaded.files.fingerprint, template.sha256])[:12]


def whole_model(name: str, loaded: LoadedModel, template: Template, injected: Injected) -> ServedModel:
    """A model all of whose weights were trained; there is no base beside it."""
    key = canonical_hash([loaded.files.fingerprint, template.sha256, _digest(injected)])[:12]
    heads = judge_of(loaded, template, injected.head), classifier_of(loaded, template, injected.head)
    return ServedModel(name, loaded, template, int(time.time()), f"fp_{key}", *heads)


def _digest(injected: Injected) -> str:
    """sha256 over the bytes of all trained tensors; about 1.5 GB a second."""
    digest = hashlib.sha256()
    for _, p in sorted(injected.trainable.items()):
        digest.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
