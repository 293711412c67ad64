"""Rows of examples whose replies are all wanted."""

from luthier.data.steps import steps_and_labels
from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Example, Judged, Preference, Row


def wanted_rows(example: Example, template: Template, objective: str) -> tuple[Row, ...]:
    """The rows of a conversation or document as the template renders them.

    Raises:
        DataError: the example judges replies or steps, some of which are not wanted; `objective` is who says so.
    """
    at = example.where
    if isinstance(example, Preference | Judged):
        others = "dpo" if isinstance(example, Preference) else "kto"
        raise DataError(f"{objective} learns wanted replies, not a preference; use {others}", at.path, at.line, at.row)
    if steps_and_labels(example) is not None:
        raise DataError(
            f"steps are judged here, some to be wrong, and {objective} would learn them all; use process_reward",
            at.path,
            at.line,
            at.row,
        )
    return template.rows(example)
