"""L2-SP (Li et al. 2018, arXiv:1802.01483): trained weights are pulled to where they started, not to zero.

    w <- w - rate * pull * (w - start)        before the optimizer's own update, rate that of the step

It is the penalty pull / 2 * |w - start|^2 of the paper, decoupled from the gradient as AdamW decouples weight decay: of
a penalty inside the gradient, Adam would divide away how far a weight has gone. Where weights of the base train
(full, layer_freeze) that is L2-SP; of an adapter, the start is its own. The first step has nothing to pull, so the
start is noted there, after whatever an adapter did with rows before it, and lies in the optimizer's state: a resumed
run finds it in its checkpoint, bit by bit.
"""

from typing import Any

import torch
from torch import Tensor

START = "start"


def pull_to_start(optimizer: torch.optim.Optimizer, pull: float) -> None:
    """Let every step of an optimizer begin with a pull on each of its tensors."""
    begun: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def before(_optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            share = min(1.0, group["lr"] * pull)
            for tensor in group["params"]:
                start = optimizer.state[tensor].get(START) if tensor in optimizer.state else None
                if start is None:
                    begun[tensor] = tensor.detach().clone()
                else:
                    tensor.lerp_(start, share)

    def after(_optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # not sooner: AdamW takes a state that is not empty for one that it made itself; and one that is empty after the
        # step is of a tensor that had no gradient, and has not moved
        for tensor, start in begun.items():
            if optimizer.state.get(tensor):
                optimizer.state[tensor][START] = start
        begun.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
