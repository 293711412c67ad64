"""Tool calls: the share of rows in which exactly the right calls were made, in any order.

A row whose right answer is no call is right when no call is made. Where the row has `acceptable`, in the form of the
Berkeley Function Calling Leaderboard (Patil et al. 2025), any listed value of an argument will do, and of one inside an
object; "" means that the argument may be left out, and texts are compared without case, spaces and punctuation, as that
benchmark does. Without it, calls must equal the wanted ones as JSON.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.errors import EvaluationError
from luthier.evaluation.metrics._json import canonical, is_too_deep
from luthier.evaluation.metrics.base import Prediction, RatioMetric
from luthier.examples import ToolCall

_IGNORED = re.compile(r"[ ,./\-_*^()\"']")


class ToolCalls(RatioMetric):
    """Share of rows with the right calls."""

    binary: ClassVar[bool] = True

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """(1 if the calls are right, 1).

        Raises:
            EvaluationError: the row's `acceptable` is not of the form described above.
        """
        made = prediction.reply.tool_calls if prediction.reply is not None else ()
        wanted = prediction.expected.tool_calls if prediction.expected is not None else ()
        listed = prediction.extra.get("acceptable")
        options = None if listed is None else _acceptable(prediction.id, listed)
        if len(made) != len(wanted if options is None else options) or any(is_too_deep(c.arguments) for c in made):
            return 0.0, 1.0
        if options is None:
            fits = [[_equal(call, right) for right in wanted] for call in made]
        else:
            fits = [[_fits(call, name, arguments) for name, arguments in options] for call in made]
        return float(_pair_up(fits)), 1.0


def _equal(call: ToolCall, right: ToolCall) -> bool:
    return call.name == right.name and canonical(dict(call.arguments)) == canonical(dict(right.arguments))


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


def _fits(call: ToolCall, name: str, arguments: Mapping[str, Any]) -> bool:
    return call.name == name and _fits_object(call.arguments, arguments)


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


def _pair_up(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether every call can be given an option of its own (augmenting paths: two calls may fit the same option)."""
    taken: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for option, fit in enumerate(fits[call]):
            if fit and option not in tried:
                tried.add(option)
                if option not in taken or place(taken[option], tried):
                    taken[option] = call
                    return True
        return False

    return all(place(call, set()) for call in range(len(fits)))
