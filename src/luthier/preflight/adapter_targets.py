"""What trains is what was asked for, is part of the model, and can learn.

Adapters attach to less than one thinks: a name matches nothing, a fused layer is passed over, a tensor is trained that
is not in the model. Nothing of that raises an error by itself.
"""

import re
from collections import Counter
from typing import ClassVar

import torch

from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ALL = "all_linear"


class AdapterTargets(Gate):
    """The trained tensors are in the model or its head, in float32, and cover every requested target."""

    proves: ClassVar[str] = "Every requested target is adapted, and exactly the adapter's tensors train, in float32."
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "Compare adapter.targets with the layers of the model; please report it if they fit."

    def check(self, subject: Subject) -> GateResult:
        """Compare the adapter's list of tensors with the model's own parameters."""
        model, injected = subject.need_model().model, subject.need_injected()
        trainable = dict(injected.trainable)
        head = [] if injected.head is None else injected.head.parameters()
        held = {id(p) for p in (*model.parameters(), *head)}
        mine = {id(p) for p in trainable.values()}
        faults = [Fault("", "there is no trained tensor at all")] if not trainable else []
        for name, p in trainable.items():
            if id(p) not in held:
                faults.append(Fault("", f"{name} is trained but is not a parameter of the model or its head"))
            if not p.requires_grad:
                faults.append(Fault("", f"{name} should be trained but takes no gradient"))
            if p.dtype not in (torch.float32, torch.float64):
                faults.append(Fault("", f"{name} is {p.dtype}; small updates would be rounded away, expected float32"))
        loose = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in mine]
        faults += [Fault("", f"{name} takes a gradient but is not the adapter's") for name in loose]
        for target in subject.targets:
            if target != ALL and not any(_names(target, name) for name in trainable):
                faults.append(Fault("", f"the target {target!r} matched no layer"))
        count = sum(p.numel() for p in trainable.values())
        total = sum(p.numel() for p in model.parameters())
        blocks = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in trainable)
        details = {
            "tensors": len(trainable),
            "parameters": count,
            "share": count / max(total, 1),
            "blocks": dict(blocks),
        }
        said = f"{len(trainable):,} tensors with {count:,} of {total:,} parameters ({count / max(total, 1):.2%}) train."
        return self.judge(faults, said, **details)


def _names(target: str, name: str) -> bool:
    """Whether the tensor `name` belongs to a layer whose name is, or ends with, `target`."""
    return f".{target}." in f".{name}."
