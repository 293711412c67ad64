"""What an adapter is: a reversible edit of a base model that says which tensors are trained.

`inject` edits the model in place and returns a handle. The handle is all that the engine, the checkpoint and the
export know of the adapter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor, nn

from luthier.config import Settings, nested
from luthier.errors import ModelError, RecipeError
from luthier.models.forest import Batch
from luthier.models.heads import Head
from luthier.models.mixed import Part


class Injected(ABC):
    """An adapter inside one model."""

    starts_as_base: bool = True
    """Whether it changes nothing before training: the injected model computes what its base computed, bit by bit."""
    head: Head | None = None
    """Trained beside it, over the model's hidden states, where the objective asks for one."""

    @property
    @abstractmethod
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Trained tensors by their full name in the model, in a stable order; all float32."""

    def observe(self, batches: Iterable[Batch], score: Callable[[Batch], object]) -> bool:
        """See training rows before step 1: for adapters that begin from what the model does with them.

        A fresh adapter that `starts_as_base` still does. The engine calls it once, without gradients and dropout; what
        comes of it lies in the trained tensors, so that a resumed run takes it from its checkpoint.

        Args:
            batches: in the order in which they will be trained on; as many may be taken as are needed.
            score: runs the model over one.

        Returns:
            Whether it looked at any.

        Raises:
            ModelError: the rows do not tell what is needed.
        """
        return False

    def rate_factors(self) -> Mapping[str, float]:
        """What the learning rate of a trained tensor is multiplied by, by name; 1 for those that are not there."""
        return {}

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """While it is open, the model computes exactly what its base computed.

        Raises:
            NotImplementedError: the base is gone (full fine-tuning).
        """

    def parts(self) -> Mapping[str, Part] | None:
        """What is computed otherwise than in the base for a token that is written, by the layer's name.

        Where all that differs is in these layers and in keys and values of tokens before, rows of this adapter can be
        written in one batch with those of others (`models/mixed.py`). None: more differs, and they cannot.
        """
        return None

    @abstractmethod
    def merge(self) -> None:
        """Fold the update into the base weights and remove the adapter; done in float32, stored in the base's type.

        Raises:
            NotImplementedError: no weights of the base's shape compute what the adapter does; nothing was changed.
        """

    @abstractmethod
    def save(self, folder: Path, base_name: str) -> None:
        """Write the artifact: for LoRA the layout of the `peft` library, for full fine-tuning safetensors."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote; every expected tensor must be there, and no other.

        Raises:
            ModelError: a tensor is missing, left over, or of another shape.
        """

    def start_at(self, folder: Path) -> None:
        """Begin a training where an earlier one ended: compute what the artifact in `folder` does, with all that trains
        still there. Called on a fresh one, which does not start as the base any more.

        Raises:
            ModelError: as `load`.
        """
        self.load(folder)
        self.starts_as_base = False


class Adapter(Settings, ABC):
    """Settings of one family of adapters; the file name is its name in a recipe."""

    learning_rate: ClassVar[float] = 2e-4
    """The highest of the schedule where the recipe names none (docs/adapters.md)."""
    overwrites_base: ClassVar[bool] = False
    """Whether the base weights themselves train, in float32, so that `Injected.disabled` is refused."""
    free_to_change: ClassVar[frozenset[str]] = frozenset({"start_from"})
    """Settings that may be others than those of the run that `start_from` names: how it learns, not what it is."""

    start_from: str | None = None
    """Folder of an earlier run on the same base: training goes on from its trained adapter, whose settings must be the
    same. Absent: a fresh adapter. Not with `full` and `layer_freeze`, whose artifact is a `model.name`."""

    @model_validator(mode="after")
    def _require_base(self) -> "Adapter":
        if self.start_from is not None and self.overwrites_base:
            with nested():
                raise RecipeError(
                    f"adapter.start_from = {self.start_from!r}: this adapter trains the model's own weights, and what "
                    f"it leaves is a whole model. Name that as the base: model.name = '{self.start_from}/adapter'"
                )
        return self

    @property
    def named_targets(self) -> tuple[str, ...]:
        """Endings of layer names that the settings ask for one by one; empty if they name none."""
        return ()

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts that become tokens of the model before its rows are made; `models/new_tokens.py` adds them."""
        return ()

    def reading(self, encode: Callable[[str], Sequence[int]]) -> "Adapter":
        """The adapter, once it knows how a text becomes tokens: those that start from a text, or train
        tokens of their own, need it."""
        return self

    @abstractmethod
    def inject(self, model: nn.Module, seed: int) -> Injected:
        """Edit `model` in place, freeze what is not trained, and return the handle.

        Raises:
            ModelError: a named target matches nothing, or the adapter does not fit the model.
        """

    @abstractmethod
    def restore(self, model: nn.Module, folder: Path) -> Injected:
        """Inject with the shapes found in `folder` (written by `save`, or by `peft`) and load its tensors."""


def by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, contiguous copies on the CPU, sorted by name, as files want them."""
    return {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}


@contextmanager
def standing_in(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters hold other numbers while open.

    Storage is exchanged, nothing is copied, and the parameters' versions stay: a graph that was built before can be
    gone back through afterwards.
    """
    held = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = tensors[name]
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = held[name]


def require_same_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a file holds exactly the expected names and shapes; a renamed key must never load as "no update".

    Raises:
        ModelError: a tensor is missing, left over, or of another shape.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape]
    if missing or extra or shapes:
        raise ModelError(
            f"{path}: does not fit this model: missing {missing[:3] or 'none'}, left over {extra[:3] or 'none'}, "
            f"other shape {sorted(shapes)[:3] or 'none'}"
        )
