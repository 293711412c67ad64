"""Macro F1: the F1 of each label, averaged over labels, so that rare labels count as much as common ones.

    F1_c = 2 tp_c / (2 tp_c + fp_c + fn_c)        mean over the labels c that occur among the targets

Answers that are no label at all are misses of the wanted label and count against no other. A resample averages over the
labels that occur in it.
"""

from typing import ClassVar

import numpy as np

from luthier.evaluation.metrics._labels import code, target_and_output
from luthier.evaluation.metrics.base import Array, Metric, Prediction, divide


class MacroF1(Metric):
    """Mean F1 of the labels."""

    scores_rows: ClassVar[bool] = False

    def statistics(self, prediction: Prediction) -> tuple[float, float]:
        """Numbers that stand for the wanted label and the answered one."""
        target, output = target_and_output(prediction)
        return code(target), code(output)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) mean over labels."""
        target_N, output_N = statistics_NS[:, 0], statistics_NS[:, 1]
        labels_C = np.unique(target_N)
        is_target_NC = (target_N[:, None] == labels_C).astype(np.float64)
        is_output_NC = (output_N[:, None] == labels_C).astype(np.float64)
        wanted_BC, given_BC = counts_BN @ is_target_NC, counts_BN @ is_output_NC
        right_BC = counts_BN @ (is_target_NC * is_output_NC)
        f1_BC = divide(2 * right_BC, wanted_BC + given_BC, 0.0)
        occurs_BC = wanted_BC > 0
        return divide((f1_BC * occurs_BC).sum(axis=1), occurs_BC.sum(axis=1).astype(np.float64), float("nan"))
