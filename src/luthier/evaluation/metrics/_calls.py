"""The calls that a row wants, and which of those that were made are among them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._json import canonical, is_too_deep
from luthier.evaluation.metrics.base import Prediction, RatioMetric
from luthier.examples import ToolCall

_IGNORED = re.compile(r"[ ,./\-_*^()\"']")


@dataclass(frozen=True)
class Wanted:
    """One call that is wanted."""

    name: str
    arguments: Mapping[str, Any]
    lists_options: bool = False
    """Whether `arguments` hold lists of values that will do."""

    def accepts(self, call: ToolCall) -> bool:
        """Whether a call is this one."""
        if call.name != self.name or is_too_deep(call.arguments):
            return False
        if self.lists_options:
            return _fits_object(call.arguments, self.arguments)
        return canonical(dict(call.arguments)) == canonical(dict(self.arguments))


def made_calls(prediction: Prediction) -> tuple[ToolCall, ...]:
    """The calls of the answer; none where the system has only text."""
    return prediction.reply.tool_calls if prediction.reply is not None else ()


def wanted_calls(prediction: Prediction) -> list[Wanted]:
    """The calls that are wanted: those of `acceptable` where the row has it, else those of the wanted message.

    Raises:
        EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
    """
    listed = prediction.extra.get("acceptable")
    if listed is not None:
        return [Wanted(name, arguments, True) for name, arguments in _acceptable(prediction.id, listed)]
    calls = prediction.expected.tool_calls if prediction.expected is not None else ()
    return [Wanted(call.name, call.arguments) for call in calls]


def most_pairs(made: Sequence[ToolCall], wanted: Sequence[Wanted]) -> int:
    """How many calls can be given a wanted one of their own (augmenting paths: two calls may fit the same one)."""
    fits = [[one.accepts(call) for one in wanted] for call in made]
    taken: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for option, fit in enumerate(fits[call]):
            if fit and option not in tried:
                tried.add(option)
                if option not in taken or place(taken[option], tried):
                    taken[option] = call
                    return True
        return False

    return sum(place(call, set()) for call in range(len(fits)))


class CallingAtAll(RatioMetric):
    """Of the rows that `among` names, the share that has a call and wants one; which call is not looked at."""

    scores_rows: ClassVar[bool] = False
    among: ClassVar[Literal["called", "wanted"]]

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if a call was made and one is wanted, 1 if the row is among those).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form that `tool_calls.py` describes.
        """
        called, wanted = bool(made_calls(prediction)), bool(wanted_calls(prediction))
        return float(called and wanted), float(called if self.among == "called" else wanted)


def _acceptable(row: str, listed: Any) -> list[tuple[str, Mapping[str, Any]]]:
    good = (
        isinstance(listed, list | tuple)
        and not is_too_deep(listed)
        and all(
            isinstance(entry, Mapping) and len(entry) == 1 and all(map(_are_options, entry.values()))
            for entry in listed
        )
    )
    if not good:
        raise EvaluationError(
            f"row {row}: `acceptable` must be a list with one {{name: {{argument: [values]}}}} for each wanted call, "
            f"each argument with a list of values that will do, also inside objects; found {listed!r:.80}"
        )
    return [next(iter(entry.items())) for entry in listed]


def _are_options(value: Any) -> bool:
    """Whether it is an object that gives each argument a list of options, and so are the objects among these."""
    return isinstance(value, Mapping) and all(
        isinstance(options, list) and all(_is_option(option) for option in options) for options in value.values()
    )


def _is_option(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _are_options(value)
    return not isinstance(value, list) or all(map(_is_option, value))


def _fits_object(found: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Every argument has one of its values, none is unknown, and what is missing may be left out."""
    if not found.keys() <= options.keys():
        return False
    return all(
        any(_fits_value(found[key], option) for option in values) if key in found else "" in values
        for key, values in options.items()
    )


def _fits_value(found: Any, option: Any) -> bool:
    if isinstance(found, Mapping) and isinstance(option, Mapping):
        return _fits_object(found, option)  # nested objects hold lists of options again
    if isinstance(found, list) and isinstance(option, list):
        return len(found) == len(option) and all(map(_fits_value, found, option))
    if isinstance(found, str) and isinstance(option, str):
        return _standard(found) == _standard(option)
    return canonical(found) == canonical(option)


def _standard(text: str) -> str:
    return _IGNORED.sub("", text).lower()
