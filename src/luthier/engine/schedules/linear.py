"""A straight line from 1 to `floor`."""

from pydantic import Field

from luthier.engine.schedules.base import Schedule


class Linear(Schedule):
    """Fall evenly."""

    floor: float = Field(0.0, ge=0, le=1)
    """Share of the learning rate that it falls to; reached after the last step."""

    def decay(self, progress: float) -> float:
        """1 - (1 - floor) progress"""
        return 1 - (1 - self.floor) * progress
