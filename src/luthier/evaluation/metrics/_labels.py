"""Labels as a person would compare them."""

import hashlib
import re

from luthier.evaluation.metrics.base import Prediction

_SPACE = re.compile(r"\s+")


def normalize(text: str) -> str:
    """Lower case, single spaces, without quotes and a full stop around it: `"Card arrival".` is `card arrival`."""
    plain = _SPACE.sub(" ", text).strip().casefold()
    while plain and plain[-1] in ".\"'`*":
        plain = plain[:-1].rstrip()
    return plain.lstrip("\"'`*").lstrip()


def code(label: str) -> float:
    """A number for a label, equal for equal labels whatever rows there are; 48 bits of its sha256."""
    return float(int.from_bytes(hashlib.sha256(label.encode("utf-8", "surrogatepass")).digest()[:6], "big"))


def target_and_output(prediction: Prediction) -> tuple[str, str]:
    """Both labels, normalized."""
    return normalize(str(prediction.target)), normalize(prediction.output)
