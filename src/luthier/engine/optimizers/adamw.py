"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with float32 state, and a pull to the start if one is asked for.

Matrices decay; vectors (norms, biases) do not, since pulling a norm's gain to zero is no regularization.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from luthier.engine.optimizers._pull import pull_to_start
from luthier.engine.optimizers.base import OptimizerSettings


class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay."""

    weight_decay: float = Field(0.0, ge=0)
    """Share of each weight, times the learning rate, that is taken off at every step."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Memory of the mean of gradients."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Memory of the mean of squared gradients."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator."""

    pull_to_start: float = Field(0.0, ge=0)
    """Share of each weight's way from where it began, times the learning rate, that is taken back at every step: L2-SP
    where weights of the base train; of an adapter, the way to its own start, whose update is none. It is seen from some
    1 / (learning rate * steps) on, and costs 4 bytes for each trained number."""

    def build(
        self,
        trainable: Mapping[str, nn.Parameter],
        learning_rate: float,
        rate_factors: Mapping[str, float] | None = None,
    ) -> torch.optim.Optimizer:
        """torch's AdamW; fused on CUDA, where one launch updates all tensors."""
        factors = rate_factors or {}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trainable.items():
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
        on_cuda = all(p.is_cuda for p in trainable.values())
        optimizer = torch.optim.AdamW(
            [
                {"params": members, "weight_decay": decay, "rate_factor": factor, "lr": learning_rate * factor}
                for (decay, factor), members in groups.items()
            ],
            lr=learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True if on_cuda else None,
        )
        if self.pull_to_start:
            pull_to_start(optimizer, self.pull_to_start)
        return optimizer

    @property
    def state_numbers(self) -> int:
        """Two moments, and the start where it pulls."""
        return 2 + bool(self.pull_to_start)
