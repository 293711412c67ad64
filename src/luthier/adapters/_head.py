"""A head beside an adapter: to the engine, the checkpoint and the artifact both are one thing that trains."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from luthier.adapters.base import Injected
from luthier.errors import ModelError
from luthier.models.forest import Batch
from luthier.models.heads import FILE, Head
from luthier.models.mixed import Part

PREFIX = "head."


class WithHead(Injected):
    """An adapter inside a model, and a head over that model's hidden states."""

    head: Head

    def __init__(self, adapter: Injected, head: Head) -> None:
        """
        Raises:
            ModelError: a trained tensor of the model has the name of one of the head's.
        """
        self.adapter, self.head = adapter, head
        self.starts_as_base = adapter.starts_as_base
        taken = sorted(self._of_head.keys() & adapter.trainable.keys())
        if taken:
            raise ModelError(f"the model has tensors of its own called {', '.join(taken)}, as a head's are called")

    @property
    def _of_head(self) -> dict[str, nn.Parameter]:
        return {f"{PREFIX}{name}": parameter for name, parameter in self.head.named_parameters()}

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The adapter's, then the head's."""
        return {**self.adapter.trainable, **self._of_head}

    def observe(self, batches: Iterable[Batch], score: Callable[[Batch], object]) -> bool:
        """As the adapter does."""
        return self.adapter.observe(batches, score)

    def rate_factors(self) -> Mapping[str, float]:
        """As the adapter's, and the head's own where it is not that of the run."""
        own = {} if self.head.shape.rate == 1 else dict.fromkeys(self._of_head, self.head.shape.rate)
        return {**self.adapter.rate_factors(), **own}

    def disabled(self) -> AbstractContextManager[None]:
        """The adapter off; the head reads the base's hidden states then."""
        return self.adapter.disabled()

    def parts(self) -> Mapping[str, Part] | None:
        """The adapter's: what is written does not depend on the head."""
        return self.adapter.parts()

    def merge(self) -> None:
        """Fold the adapter in; the head stays what it is, beside the model."""
        self.adapter.merge()

    def save(self, folder: Path, base_name: str) -> None:
        """The adapter's files, and the head's own."""
        self.adapter.save(folder, base_name)
        self.head.save(folder)

    def load(self, folder: Path) -> None:
        """Both."""
        self.adapter.load(folder)
        self.head.load(folder)

    def start_at(self, folder: Path) -> None:
        """The adapter there, and its head where it is of this kind and shape; a fresh one begins otherwise."""
        self.adapter.start_at(folder)
        self.starts_as_base = self.adapter.starts_as_base
        self.head.take(folder)


def require_no_head(folder: Path) -> None:
    """Check that nothing is left behind by loading an artifact without a head.

    Raises:
        ModelError: it has one.
    """
    if (folder / FILE).is_file():
        raise ModelError(f"{folder / FILE} holds a head, and the objective of its run.json trains none")
