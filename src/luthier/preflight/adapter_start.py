"""A training that continues an earlier one begins with what that one left.

An adapter that was made anew instead trains just as well and ends elsewhere, and nothing shows it: the loss only begins
a little higher.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file
from torch import Tensor

from luthier.adapters._layers import HARMLESS, SETTINGS, WEIGHTS
from luthier.adapters.base import require_same_tensors
from luthier.preflight.base import Fault, Gate, GateResult, Stage, Subject

ALLOWED = 1e-5
"""Of a tensor's largest number: keys of a prefix are turned and turned back, kept starts are added and taken off."""
ONLY_WHILE_TRAINING = frozenset({"lora_dropout"})


class AdapterStart(Gate):
    """What the adapter would be saved as before step 1 is what the earlier run saved."""

    proves: ClassVar[str] = (
        "Before step 1 an adapter that continues an earlier run holds what that run's training left."
    )
    stage: ClassVar[Stage] = "model"
    advice: ClassVar[str] = "The start was not taken over; please report adapter and model."

    def check(self, subject: Subject) -> GateResult:
        """Save the adapter and compare files: names, shapes, numbers, and what the settings file says is computed."""
        if subject.start is None:
            return self.passes("The adapter is fresh.")
        wanted = load_file(subject.start / WEIGHTS)
        with tempfile.TemporaryDirectory(prefix="luthier-start-") as place:
            subject.need_injected().save(Path(place), "")
            found, says = load_file(Path(place) / WEIGHTS), _settings(Path(place))
        require_same_tensors(subject.start / WEIGHTS, wanted, found)
        shares = {name: _difference(found[name], wanted[name]) for name in wanted}
        faults = [
            Fault("", f"{name} differs by {share:.1g} of its largest number")
            for name, share in shares.items()
            if not share <= ALLOWED  # written so that a NaN fails
        ]
        said = _settings(subject.start)
        faults += [
            Fault("", f"{key} is {says.get(key)!r} in what would be saved, and {said.get(key)!r} in the start")
            for key in sorted(says.keys() | said.keys())
            if says.get(key) != said.get(key)
        ]
        largest = max(shares.values())
        return self.judge(faults, f"All {len(wanted):,} tensors are those of the start, to {largest:.1g}.", off=largest)


def _settings(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in HARMLESS | ONLY_WHILE_TRAINING}


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest number."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30))
