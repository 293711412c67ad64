"""Models that graders ask in a training, behind endpoints or on this machine: `AskedModels` is a `Host.ask_model`.

An answer that cannot be had is no bad grade: what is raised then (`Unanswered`) ends the training, which goes on from
there once it can be had.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.errors import LuthierError
from luthier.evaluation.graders.base import ModelReply, SamplingParams, Unanswered
from luthier.evaluation.systems.base import System
from luthier.examples import Message


class AskedModels:
    """Models by the names that graders call them by; may be used by several threads."""

    def __init__(self, models: Mapping[str, System], folder: Path, device: str) -> None:
        """
        Args:
            models: systems that graders can ask (`System.for_graders`), by name.
            folder: where answers are kept that are paid for.
            device: that models on this machine are opened on; now, so that what they hold is known to be taken.

        Raises:
            EvaluationError: one cannot be asked by graders, a key is not there, or the network is switched off.
            ModelError: a local one cannot be had or used.
        """
        self._models = {name: model.for_graders(folder, device) for name, model in models.items()}

    def __call__(self, model: str, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        """What a model replies.

        Raises:
            Unanswered: it does not, whatever the reason.
        """
        try:
            return self._models[model].ask(messages, sampling)
        except LuthierError as error:
            raise Unanswered(f"the model {model!r} could not be asked: {error}") from None

    @property
    def at_once(self) -> int:
        """How many may ask at the same time."""
        return sum(model.at_once for model in self._models.values())

    @property
    def notes(self) -> list[str]:
        """What leaves this machine, and what does not."""
        return [model.note for model in self._models.values()]

    @property
    def identities(self) -> dict[str, str]:
        """Of each model what decides its answers beside its settings."""
        return {name: model.identity for name, model in self._models.items()}
