"""What the numbers of a head mean, by its kind, and what is kept of validation rows so that they can be believed.

classify        z_c / T          softmax: the probability of each label; the likeliest is said
multi_label     z_c / T_c        sigmoid: that of each label by itself; said are those above 1/2
regress         mean + std z     the number
token_classify  z_c / T          softmax for each word: its tag; said are the spans
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.calibration import (
    Threshold,
    calibration_error,
    find_threshold,
    fit_temperature,
    fit_temperatures,
    rows_to_show,
    softmax,
)
from luthier.evaluation.metrics.base import Array
from luthier.examples import Conversation
from luthier.models.heads import Head
from luthier.objectives import classify, multi_label, regress, token_classify
from luthier.objectives._labeled import text_of

BINS = 15
"""Of the calibration error that is noted beside a temperature."""


@dataclass(frozen=True)
class Said:
    """What a head says of one text."""

    output: str
    """As a reply would say it."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Of every label, calibrated; of kinds without, none."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """As the server tells it."""

    @property
    def confidence(self) -> float:
        """Of the likeliest label."""
        return max(self.probabilities.values())


class Reading(ABC):
    """What the numbers of one head mean."""

    answers_once: bool = False
    """Whether one label is said, which is right or wrong."""

    def __init__(self, head: Head) -> None:
        self.labels, self.outputs = head.shape.labels, head.shape.outputs
        self.shape, self.found = head.shape, head.found

    def say(self, values_NO: Array) -> list[Said]:
        """What is said of texts that were read at their ends."""
        raise EvaluationError(f"a head of kind {self.shape.kind} reads words, not texts")

    def say_words(self, conversation: Conversation, template: Template, values_WO: Array) -> Said:
        """What is said of the words of one text."""
        raise EvaluationError(f"a head of kind {self.shape.kind} reads texts, not words")

    @abstractmethod
    def calibrate(self, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
        """What is kept of validation rows: `Head.found`.

        Args:
            values_NO: what the head reads of them, at least one.
            wanted: by the names that the objective gives to its values.
        """

    def scale(self) -> list[float]:
        """What each number is divided by."""
        return [1.0] * self.outputs

    @abstractmethod
    def logs(self, values_NO: Array) -> Array:
        """What is compared of two ways to compute the numbers, which are divided by the scale: log-probabilities."""

    def told(self, precision: float) -> dict[str, Any]:
        """What a system says of its calibration."""
        return {}

    def threshold(self, precision: float) -> Threshold | None:
        """From which confidence on so many answers are right; None where validation rows could not show it."""
        return None

    def _kept(self) -> tuple[Array, Array]:
        kept = self.found.get("validation", {"confidence": [], "right": []})
        return np.array(kept["confidence"], dtype=np.float64), np.array(kept["right"], dtype=np.float64)


class _Softmax(Reading):
    """One of the labels, with one temperature."""

    def scale(self) -> list[float]:
        return [float(self.found.get("temperature", 1.0))] * self.outputs

    def logs(self, values_NO: Array) -> Array:
        return np.asarray(special.log_softmax(values_NO, axis=1))


class _OneLabel(_Softmax):
    answers_once = True

    def say(self, values_NO: Array) -> list[Said]:
        probability_NC = softmax(values_NO, self.scale()[0])
        return [self._one(p_C) for p_C in probability_NC]

    def _one(self, p_C: Array) -> Said:
        label, probs = self.labels[int(p_C.argmax())], p_C.tolist()
        item = {"label": label, "probs": probs, "num_classes": len(probs), "labels": list(self.labels)}
        return Said(label, dict(zip(self.labels, probs, strict=True)), item)

    def calibrate(self, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
        return calibrated(values_NO, wanted["label"].astype(np.int64).tolist()).dump()

    def told(self, precision: float) -> dict[str, Any]:
        return {"abstention": told(self.found.get("temperature"), *self._kept(), precision)}

    def threshold(self, precision: float) -> Threshold | None:
        return find_threshold(*self._kept(), precision)


class _SeveralLabels(Reading):
    def say(self, values_NO: Array) -> list[Said]:
        return [self._one(p_C) for p_C in special.expit(values_NO / np.array(self.scale()))]

    def _one(self, p_C: Array) -> Said:
        said = [label for label, p in zip(self.labels, p_C.tolist(), strict=True) if p > 0.5]
        item = {
            "label": self.labels[int(p_C.argmax())],
            "probs": p_C.tolist(),
            "num_classes": len(p_C),
            "labels": list(self.labels),
            "said": said,
        }
        return Said(json.dumps(said, ensure_ascii=False), dict(zip(self.labels, p_C.tolist(), strict=True)), item)

    def calibrate(self, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
        wanted_NC = np.stack([wanted[f"label {number}"] for number in range(self.outputs)], axis=1)
        temperatures = fit_temperatures(values_NO, wanted_NC)
        probability_NC = special.expit(values_NO / np.array(temperatures))
        validation = {"confidence": probability_NC.T.tolist(), "right": wanted_NC.T.astype(int).tolist()}
        return {"temperature": temperatures, "validation": validation}

    def scale(self) -> list[float]:
        found: list[float] = list(self.found.get("temperature", [1.0] * self.outputs))
        return found

    def logs(self, values_NO: Array) -> Array:
        return np.asarray(special.log_expit(values_NO))

    def thresholds(self, precision: float) -> dict[str, Threshold | None]:
        """For each label, from which probability on so many texts that are said to have it do."""
        kept = self.found.get("validation")
        if kept is None:
            return dict.fromkeys(self.labels)
        pairs = zip(self.labels, kept["confidence"], kept["right"], strict=True)
        return {label: find_threshold(np.array(p), np.array(y, dtype=np.float64), precision) for label, p, y in pairs}

    def told(self, precision: float) -> dict[str, Any]:
        found = {label: None if t is None else t.dump() for label, t in self.thresholds(precision).items()}
        return {"temperature": self.scale(), "wanted_precision": precision, "thresholds": found}


class _Number(Reading):
    def say(self, values_NO: Array) -> list[Said]:
        mean, std = self.shape.reading["mean"], self.shape.reading["std"]
        return [self._one(mean + std * z) for z in values_NO[:, 0].tolist()]

    def _one(self, number: float) -> Said:
        item = {"label": None, "probs": [number], "num_classes": 1, "value": number}
        return Said(f"{number:.12g}", {}, item)  # six digits would not tell large numbers of a small spread apart

    def calibrate(self, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
        error_N = np.abs(values_NO[:, 0] - wanted["number"]) * self.shape.reading["std"]
        return {"errors": np.sort(error_N).tolist()}

    def logs(self, values_NO: Array) -> Array:
        return values_NO

    def within(self, share: float) -> float | None:
        """So many numbers are no farther off than this: the quantile of errors on validation rows whose rank is
        ceil((n + 1) share) (split conformal prediction, Vovk et al. 2005); None where these are too few."""
        errors = self.found.get("errors", [])
        rank = int(np.ceil((len(errors) + 1) * share))
        return float(errors[rank - 1]) if 0 < rank <= len(errors) else None

    def told(self, precision: float) -> dict[str, Any]:
        return {"within": self.within(precision), "wanted_share": precision}


class _Words(_Softmax):
    def say_words(self, conversation: Conversation, template: Template, values_WO: Array) -> Said:
        text = text_of(conversation)
        _, words, _ = token_classify.read_after(text, template)
        probability_WC = softmax(values_WO, self.scale()[0])
        place_W = probability_WC.argmax(1)
        spans = token_classify.spans_from(words, [self.labels[place] for place in place_W])
        sure_W = probability_WC.max(1)
        told = [
            {
                "text": text[span.start : span.end],
                "start": span.start,
                "end": span.end,
                "label": span.label,
                "probability": min(
                    float(p) for (a, b), p in zip(words, sure_W, strict=True) if a < span.end and b > span.start
                ),
            }
            for span in spans
        ]
        plain = [{name: one[name] for name in ("text", "start", "end", "label")} for one in told]
        return Said(json.dumps(plain, ensure_ascii=False), {}, {"spans": told})

    def calibrate(self, values_NO: Array, wanted: Mapping[str, Array]) -> dict[str, Any]:
        found = calibrated(values_NO, wanted["tag"].astype(np.int64).tolist())
        error = calibration_error(found.confidence_N, found.right_N, BINS)
        return {"temperature": found.temperature, "words": len(values_NO), "calibration_error": float(error[0])}

    def told(self, precision: float) -> dict[str, Any]:
        return {name: self.found[name] for name in ("temperature", "words", "calibration_error") if name in self.found}


KINDS: Mapping[str, type[Reading]] = {
    classify.KIND: _OneLabel,
    multi_label.KIND: _SeveralLabels,
    regress.KIND: _Number,
    token_classify.KIND: _Words,
}
"""Of heads that say something of texts."""


def reading_of(head: Head) -> Reading:
    """What a head's numbers mean."""
    return KINDS[head.shape.kind](head)


@dataclass(frozen=True)
class Calibration:
    """The temperature of labels' scores, and how sure and how right the answers to validation rows were with it."""

    temperature: float
    confidence_N: Array
    right_N: Array

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        validation = {"confidence": self.confidence_N.tolist(), "right": self.right_N.astype(int).tolist()}
        return {"temperature": self.temperature, "validation": validation}

    def abstention(self, precision: float) -> dict[str, Any]:
        """The threshold for a precision, as a system tells it."""
        return told(self.temperature, self.confidence_N, self.right_N, precision)


def calibrated(scores_NC: Array, wanted_N: Sequence[int]) -> Calibration:
    """Calibrate the scores of labels on validation rows; `wanted_N` is below 0 where a label is none of them."""
    temperature = fit_temperature(scores_NC, wanted_N)
    probability_NC = softmax(scores_NC, temperature)
    right_N = (probability_NC.argmax(1) == np.asarray(wanted_N)).astype(np.float64)
    return Calibration(temperature, probability_NC.max(1), right_N)


def told(temperature: float | None, confidence_N: Array, right_N: Array, precision: float) -> dict[str, Any]:
    """What a system says of its calibration."""
    found = find_threshold(confidence_N, right_N, precision)
    more = rows_to_show(confidence_N, right_N, precision) if found is None else None
    threshold = None if found is None else found.dump()
    return {"temperature": temperature, "wanted_precision": precision, "threshold": threshold, "rows_to_show": more}
