"""A gate proves one thing about a run on its real rows and its real model, or refuses the run.

Gates fail closed: what cannot be shown counts as wrong, and nothing to check is a failure, never a pass. They run at
four moments: on a sample of the rows, on all rows once they are rendered for training, on the model before step 1, and
after the first three steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from luthier import registry
from luthier.adapters.base import Injected
from luthier.data.source import Unit
from luthier.data.templates import Template
from luthier.errors import LuthierError, PreflightError, ServiceError
from luthier.examples import Example, Row, Where
from luthier.models.forest import Batch, build_batch
from luthier.models.load import LoadedModel
from luthier.objectives.base import Models, Objective
from luthier.preflight._cases import Case, render_cases, spread

GATES = "luthier.preflight"
MAX_ROWS = 2000
LISTED = 5  # faults written out in a message; all of them are counted

Stage: TypeAlias = Literal["rows", "all_rows", "model", "steps"]


@dataclass(frozen=True)
class RowSettings:
    """What the recipe says about rows, as the gates need it."""

    max_tokens: int
    """Longest row; longer ones are cut on the right."""
    max_truncated_share: float = 0.0
    """Share of rows that may be cut."""
    loss_on: str = "assistant"
    """`assistant`, `last_assistant` or `all`."""


class Sampled(Protocol):
    """Replies that the model writes to learn from, as the gates ask about them."""

    def reference_rewards(self, count: int) -> Sequence[tuple[str, float, float, str]]:
        """Of at most so many rows that give a reply: the id, the reward of that reply and of an empty one, and why a
        grader could not grade it; none where no grader looks at replies."""
        ...

    def first(self) -> Mapping[str, float]:
        """Of the first rollout: `reward`, and the shares of replies `truncated` and of groups `dead`."""
        ...


class BatchBuilder:
    """The batches that the engine makes; a mutant puts another in its place."""

    def build(self, rows: Sequence[Row]) -> Batch:
        """The forest of `rows`."""
        return build_batch(rows)


@dataclass
class Subject:
    """What a run is about to train, and with what. Later stages need more of the fields.

    `template` renders as training does; `untruncated` is the same template without a limit of tokens, so that what a
    cut loses can be counted. `examples` are the training rows, `held_out` the other splits by name.
    """

    examples: Sequence[Example]
    template: Template
    untruncated: Template
    tokenizer: Any
    objective: Objective
    settings: RowSettings
    held_out: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    max_rows: int = MAX_ROWS
    batches: BatchBuilder = field(default_factory=BatchBuilder)
    units: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    """The rows of each of `splits`, in its order, as they will be trained or validated on; for stage `all_rows`."""
    loaded: LoadedModel | None = None
    injected: Injected | None = None
    models: Models | None = None
    start: Path | None = None
    """The artifact that the adapter starts at; None: it is fresh."""
    sampled: Sampled | None = None
    """Where an online objective gets its replies from; None: those of the rows are learned."""
    targets: tuple[str, ...] = ()
    """Layers that the recipe asks the adapter to change; empty if it names none."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """`tensors_moved.checksums(...)` as it was before step 1."""
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """What several gates of a stage need and one computes; a copy of the subject starts without it."""

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The rows that are looked at, rendered: all of them, or `max_rows` spread evenly over the file."""
        return tuple(render_cases(self.sample, self.objective, self.template, self.untruncated, self.settings.loss_on))

    @cached_property
    def validation_cases(self) -> tuple[Case, ...]:
        """The same of the validation rows."""
        sample = spread(self.splits["validation"], self.max_rows)
        return tuple(render_cases(sample, self.objective, self.template, self.untruncated, self.settings.loss_on))

    @property
    def splits(self) -> dict[str, Sequence[Example]]:
        """The rows that decide the weights: those to train on, and those by which the best step is chosen."""
        return {"train": self.examples, "validation": self.held_out.get("validation", ())}

    @property
    def sample(self) -> list[Example]:
        """The examples behind `cases`."""
        return spread(self.examples, self.max_rows)

    @property
    def trained_rows(self) -> list[Row]:
        """All rows of the cases that rendered and have a trained token."""
        return [row for case in self.cases for row in case.rows if row.trained_tokens]

    def coverage(self) -> str:
        """How many rows were looked at, in words."""
        seen, there = min(self.max_rows, len(self.examples)), len(self.examples)
        return f"all {there:,} rows" if seen == there else f"{seen:,} of {there:,} rows, spread evenly"

    def need_model(self) -> LoadedModel:
        """The model; a gate of stage `model` cannot run without it."""
        if self.loaded is None:
            raise PreflightError("the model gates were asked for, but the subject holds no model")
        return self.loaded

    def need_injected(self) -> Injected:
        """The adapter inside the model."""
        if self.injected is None:
            raise PreflightError("the model gates were asked for, but the subject holds no injected adapter")
        return self.injected

    def need_models(self) -> Models:
        """The cast that the objective will be given."""
        if self.models is None:
            raise PreflightError("the model gates were asked for, but the subject holds no policy to score with")
        return self.models


@dataclass(frozen=True)
class Fault:
    """One place where a gate's claim does not hold."""

    row_id: str
    message: str
    where: Where | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None and self.where.line else ""
        named = f"row {self.row_id!r}: " if self.row_id else ""
        return place + named + self.message


@dataclass(frozen=True)
class GateResult:
    """What one gate found. `details` holds plain numbers and texts for `preflight.json`."""

    gate: str
    proves: str
    passed: bool
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Plain values, as they are written to `preflight.json`; JSON has no NaN or infinity, so these become text."""
        values = asdict(self)
        details = {
            key: str(v) if isinstance(v, float) and not isfinite(v) else v for key, v in values["details"].items()
        }
        return {**values, "details": details}


class Gate(ABC):
    """One proof; one file beside this one. The file's name is the gate's name."""

    proves: ClassVar[str]
    """What holds if the gate passes, in one sentence."""
    stage: ClassVar[Stage]
    """When it can run."""
    advice: ClassVar[str]
    """What to do when it fails."""

    @abstractmethod
    def check(self, subject: Subject) -> GateResult:
        """Look, and say what was found; never raises for something that is wrong with the run."""

    def passes(self, message: str, **details: Any) -> GateResult:
        """The claim was shown."""
        return GateResult(registry.name_of(self), self.proves, True, message, details)

    def fails(self, message: str, **details: Any) -> GateResult:
        """The claim does not hold, or could not be shown."""
        return GateResult(registry.name_of(self), self.proves, False, f"{message} {self.advice}", details)

    def judge(self, faults: Sequence[Fault], success: str, **details: Any) -> GateResult:
        """Pass with the message `success` if there are no faults; otherwise fail with the first few written out."""
        if not faults:
            return self.passes(success, **details)
        lines = [f"  {fault}" for fault in faults[:LISTED]]
        if len(faults) > LISTED:
            lines.append(f"  ... and {len(faults) - LISTED:,} more")
        noun = "fault" if len(faults) == 1 else "faults"
        listed = [
            {"row": f.row_id, "where": str(f.where) if f.where else "", "message": f.message} for f in faults[:50]
        ]
        return self.fails(
            "\n".join([f"{len(faults):,} {noun}:", *lines, " "]), faults=len(faults), listed=listed, **details
        )


def gates(stage: Stage) -> list[Gate]:
    """All gates of a stage, by name; one from outside is found by its entry point."""
    return [cls() for cls in _classes() if cls.stage == stage]


@cache  # finding entry points reads the records of every installed package
def _classes() -> tuple[type[Gate], ...]:
    return tuple(registry.load_class(GATES, name, Gate) for name in registry.names(GATES))  # type: ignore[type-abstract]


def run_gates(subject: Subject, stage: Stage) -> list[GateResult]:
    """Run every gate of `stage`. A LuthierError inside a gate is its failure; any other exception is a bug and rises.

    Raises:
        PreflightError: there are no rows, so nothing could be shown.
        ServiceError: a server that is asked does not answer, which says nothing of the run.
    """
    if not subject.examples:
        raise PreflightError("there are no training rows, so there is nothing to check and nothing to train on")
    return [_run(gate, subject) for gate in gates(stage)]


def _run(gate: Gate, subject: Subject) -> GateResult:
    try:
        return gate.check(subject)
    except ServiceError:
        raise
    except LuthierError as error:
        return gate.fails(f"the check itself could not be done: {error}.")


def require(results: Sequence[GateResult]) -> None:
    """Let the run go on only if every gate passed.

    Raises:
        PreflightError: at least one gate failed, or none was run; the message lists each with rows and advice.
    """
    failed = [r for r in results if not r.passed]
    if not results:
        raise PreflightError("no gate was run, so nothing is shown about this run")
    if failed:
        parts = [f"[{r.gate}] {r.proves} This does not hold. {r.message}" for r in failed]
        raise PreflightError(f"{len(failed)} of {len(results)} gates refuse this run:\n" + "\n".join(parts))
