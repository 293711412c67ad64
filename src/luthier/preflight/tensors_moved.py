"""After three steps every trained tensor has changed, and no other has changed by a bit.

Tensors that the optimizer never got, gradients that stop halfway, and updates that leak into the frozen base all leave
a loss curve that looks plausible.
"""

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.adapters.base import Injected
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

TRAINED = "trained: "


class TensorsMoved(Gate):
    """What should train moved; what is frozen did not."""

    proves: ClassVar[str] = "After three steps every trained tensor has changed and every frozen one is bit-identical."
    stage: ClassVar[Stage] = "steps"
    advice: ClassVar[str] = (
        "The optimizer does not hold what the adapter says, or something writes into the base; report it."
    )

    def check(self, subject: Subject) -> GateResult:
        """Compare the checksums of now with those from before step 1."""
        before = subject.checksums
        if not before:
            return self.fails("There are no checksums from before step 1 to compare with.")
        return self.between(before, checksums(subject.need_model().model, subject.need_injected()))

    def between(self, before: Mapping[str, str], after: Mapping[str, str]) -> GateResult:
        """Compare the checksums of before step 1 with later ones."""
        faults = [Fault("", f"{name} appeared since step 1") for name in after.keys() - before.keys()]
        faults += [Fault("", f"{name} is gone since step 1") for name in before.keys() - after.keys()]
        both = [name for name in before if name in after]
        trained = [name for name in both if name.startswith(TRAINED)]
        frozen = [name for name in both if not name.startswith(TRAINED)]
        faults += [Fault("", f"{n.removeprefix(TRAINED)} has not changed") for n in trained if before[n] == after[n]]
        faults += [Fault("", f"{n} is frozen but has changed") for n in frozen if before[n] != after[n]]
        details = {"trained": len(trained), "frozen": len(frozen)}
        said = f"All {len(trained):,} trained tensors moved; all {len(frozen):,} others are as they were."
        return self.judge(sorted(faults, key=str), said, **details)


def checksums(model: nn.Module, injected: Injected) -> Mapping[str, str]:
    """sha256 of every parameter and buffer; names of trained ones begin with `trained: `. About 1.5 GB a second."""
    mine = {id(p): name for name, p in injected.trainable.items()}
    sums = {f"{TRAINED}{name}": _checksum(p) for name, p in injected.trainable.items()}
    held = [*model.named_parameters(), *model.named_buffers()]
    return sums | {name: _checksum(tensor) for name, tensor in held if id(tensor) not in mine}


def _checksum(tensor: Tensor) -> str:
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
