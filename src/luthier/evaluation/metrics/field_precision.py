"""Field precision: of the fields in the answers, the share that is right.

A field is a leaf of the JSON value: its path and its value, both right; objects in a list are compared in pairs. The
first object or list in the answer counts, whatever stands around it; an answer without one misses all fields.
"""

from luthier.evaluation.metrics._json import field_statistics
from luthier.evaluation.metrics.base import Array, Metric, Prediction, divide


class FieldPrecision(Metric):
    """Field precision over all rows."""

    def statistics(self, prediction: Prediction) -> tuple[float, float, float]:
        """(fields right, fields in the answer, fields wanted)."""
        return field_statistics(prediction)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        """(B,) over the sums."""
        sums = counts_BN @ statistics_NS
        return divide(sums[:, 0], sums[:, 1], 0.0)
