"""The ladder of the verdict: what is cheapest to make and keep comes first. No torch here; the report reads it, too."""

from typing import Literal, TypeAlias

Rung: TypeAlias = Literal["external", "prompt", "few_shot", "rag", "other_model", "fine_tune", "fine_tune+rag"]
"""A program; the model with a prompt, with solved examples, with retrieved passages; a larger or remote model with a
prompt; the model trained on its rows, and trained on the same rows with retrieved passages in their prompts."""
UNTRAINED: tuple[Rung, ...] = ("prompt", "few_shot", "rag", "other_model")
TRAINED: tuple[Rung, ...] = ("fine_tune", "fine_tune+rag")
RUNGS: tuple[Rung, ...] = ("external", *UNTRAINED, *TRAINED)
