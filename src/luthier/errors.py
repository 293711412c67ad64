"""Every error that Luthier raises on purpose.

    LuthierError               exit code 2: the user can mend it, and the message says how
    ├── RecipeError            a setting is unknown, missing or out of range
    ├── DataError              a data file or row cannot be used; carries file and line
    ├── ModelError             a model is missing, damaged, or of a kind that cannot be used
    ├── TemplateError          a conversation cannot be rendered faithfully
    ├── PreflightError         a gate proved that the run would train the wrong thing
    ├── CheckpointError        no checkpoint can be resumed, or it belongs to another run
    ├── StorageError           the disk is full or a folder cannot be written
    ├── EvaluationError        a system or metric cannot be measured
    ├── RetrievalError         passages cannot be searched: a server does not answer, or a library is missing
    ├── ServeError             the server cannot start
    ├── ServiceError           a server that a training asks does not answer, or answers something else
    ├── TrackingError          a tracker lacks a package or a key, does not answer, or refuses a run
    ├── ExportError            a run cannot be exported so, or the artifact is not the trained model
    └── NonFiniteStep          a gradient was NaN or infinite; the weights were not updated

A message says what was found, where, what was expected, and what to do about it.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path


class LuthierError(Exception):
    """The root of all errors raised on purpose; the command line prints it and exits with 2."""

    exit_code = 2


class RecipeError(LuthierError):
    """A setting is unknown, missing or out of range."""


class DataError(LuthierError):
    """A data file or one of its rows cannot be used; `message` is what is wrong, without the place."""

    def __init__(
        self, message: str, path: str | Path | None = None, line: int | None = None, row: int | None = None
    ) -> None:
        self.message, self.path, self.line, self.row = message, path, line, row
        place = f", row {row}" if row else "" if line is None else f", line {line}"
        where = "" if path is None else f"{path}{place}: "
        super().__init__(where + message)


class ModelError(LuthierError):
    """A model is missing, damaged, or of a kind that cannot be used."""


class TemplateError(LuthierError):
    """A conversation cannot be rendered faithfully by this template."""


class PreflightError(LuthierError):
    """A gate proved that the run would train the wrong thing."""


class CheckpointError(LuthierError):
    """No checkpoint can be resumed, or the checkpoint belongs to another run."""


class StorageError(LuthierError):
    """The disk is full, or a folder cannot be written."""


class EvaluationError(LuthierError):
    """A system or a metric cannot be measured."""


class RetrievalError(LuthierError):
    """Passages cannot be searched: the server that holds their vectors does not answer, or a library is missing."""


class ServeError(LuthierError):
    """The server cannot start."""


class ServiceError(LuthierError):
    """A server that a training asks, for replies or for grades, does not answer, or answers something else; no fault of
    what is trained."""


class TrackingError(LuthierError):
    """A tracker lacks a package, an address or a key, does not answer, or refuses what it is told."""


class ExportError(LuthierError):
    """A run cannot be exported in this form, or the artifact does not answer as the trained model does."""


class NonFiniteStep(LuthierError):
    """A gradient, or the loss of the untrained model, was NaN or infinite; the weights were left as they were."""

    def __init__(self, step: int, value: float, row_ids: tuple[str, ...] = (), what: str = "gradient norm") -> None:
        rows = f" Rows of the step: {', '.join(row_ids)}." if row_ids else ""
        super().__init__(
            f"step {step}: the {what} is {value}; the weights were not updated.{rows} "
            "Lower optimizer.learning_rate, or look at these rows with `luthier check --show`."
        )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest known words, or the list of them when none is near."""
    if not known:
        return ""
    close = difflib.get_close_matches(word, known, n=2)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known here: " + ", ".join(known)
