"""Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): constant, then a line to zero after the end.

A run can be lengthened from its stable part without having planned its end, which a cosine cannot.
"""

from pydantic import Field

from luthier.engine.schedules.base import Schedule


class WSD(Schedule):
    """Stay, then fall at the end."""

    decay_share: float = Field(0.2, gt=0, le=1)
    """Share of the steps after warm-up over which the learning rate falls towards zero."""

    def decay(self, progress: float) -> float:
        """1 until 1 - decay_share, then a line to 0"""
        return min(1.0, (1 - progress) / self.decay_share)
