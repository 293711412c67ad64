"""The same learning rate after the warm-up."""

from luthier.engine.schedules.base import Schedule


class Constant(Schedule):
    """Do not fall."""

    def decay(self, progress: float) -> float:
        """1"""
        return 1.0
