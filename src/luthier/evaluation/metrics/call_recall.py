"""Recall of calling at all: of the rows that want a tool to be called, the share in which one was.

Low where a model talks instead of calling. Which tool, and with what, is not looked at.
"""

from typing import ClassVar, Literal

from luthier.evaluation.metrics._calls import CallingAtAll


class CallRecall(CallingAtAll):
    """Share of the rows that want a call with one."""

    among: ClassVar[Literal["called", "wanted"]] = "wanted"
