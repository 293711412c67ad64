"""Precision of calling at all: of the rows in which a tool was called, the share in which a call was wanted.

Low where a model calls what does not fit instead of saying so. Which tool, and with what, is not looked at.
"""

from typing import ClassVar, Literal

from luthier.evaluation.metrics._calls import CallingAtAll


class CallPrecision(CallingAtAll):
    """Share of the rows with calls that want one."""

    among: ClassVar[Literal["called", "wanted"]] = "called"
