"""What is trained, as `stages.train_stage` asks for it: a model that writes, or an encoder that finds passages."""

from pathlib import Path
from typing import Protocol, TypeVar

from luthier.engine.run import Run
from luthier.models.load import LoadedModel
from luthier.preflight.base import Subject
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder


class Trainee(Protocol):
    """What `train_stage` asks of a run that was opened: one of a model that writes (`Opened`), or of another."""

    @property
    def recipe(self) -> Recipe:
        """Of the run."""
        ...

    @property
    def folder(self) -> RunFolder:
        """The run's."""
        ...

    @property
    def loaded(self) -> LoadedModel:
        """The model that trains."""
        ...

    @property
    def subject(self) -> Subject | None:
        """What the gates of the first steps look at; None: nothing."""
        ...

    def save(self, folder: Path, run: Run) -> None:
        """Write what the run trained.

        Raises:
            OSError, SafetensorError: the disk is full or the folder cannot be written.
        """
        ...


Opens = TypeVar("Opens", bound=Trainee, covariant=True)
