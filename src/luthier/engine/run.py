"""The parts of one training, held together: `assemble` builds a Run, `train` moves it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapters.base import Injected
from luthier.data.source import RowSource, Unit
from luthier.engine.schedules.base import Schedule
from luthier.objectives.base import Models, Objective
from luthier.recipe import TrainingSettings


@dataclass
class State:
    """Everything of a training that moves and is not a tensor."""

    step: int = 0
    best_step: int = 0
    best_loss: float | None = None
    start_loss: float | None = None
    """On the validation rows, before the first step."""
    validations_without_gain: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    """The most that any process of this training has held."""
    stopped_early: bool = False
    memory: dict[str, float] = field(default_factory=dict)
    """What the objective carries from step to step."""
    last: dict[str, float] = field(default_factory=dict)
    """The last step's line of `metrics.jsonl`: a kill may come after the checkpoint and before the line."""

    def dump(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch for a run, found by `engine.fit`."""

    tokens: int
    needed: int
    """Predicted peak bytes with it."""
    available: int
    """Bytes that the process may hold."""
    fits: bool
    """Whether it does, with a margin; a unit of rows is never split and may be larger than what fits."""


@dataclass
class Run:
    """One training, in whatever state it is between two steps."""

    settings: TrainingSettings
    steps: int
    model: nn.Module
    models: Models
    objective: Objective
    injected: Injected
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    learning_rate: float
    source: RowSource
    validation: Sequence[Unit]
    checkpoints: Path
    fingerprint: str
    """Hash of everything that decides the result; a checkpoint of another fingerprint is refused."""
    device: torch.device
    micro_batch_tokens: int
    """Most tokens computed at once."""
    optimizer_numbers: int = 2
    """Float32 numbers that the optimizer keeps for each one that trains."""
    fit: Fit | None = None
    """How that number was found, where it was not given."""
    state: State = field(default_factory=State)

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        return self.settings.validate_every or max(1, round(self.steps / 10))

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.settings.save_every or self.validate_every
