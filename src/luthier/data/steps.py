"""Replies whose steps are judged, as an example carries them: its target holds the steps and a label for each."""

from collections.abc import Mapping

from luthier.examples import Conversation, Example

SEPARATOR = "\n"
"""Between steps."""


def steps_and_labels(example: Example) -> tuple[list[str], list[float]] | None:
    """What a row of this format says of its last turn; None for every other example."""
    target = example.target if isinstance(example, Conversation) else None
    if not isinstance(target, Mapping) or not {"steps", "labels"} <= target.keys():
        return None
    return list(target["steps"]), [float(label) for label in target["labels"]]
