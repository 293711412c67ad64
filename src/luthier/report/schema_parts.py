"""What every part of a report is made from."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """The base of every part: frozen; keys that a newer Luthier wrote are passed over, not refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        json_schema_serialization_defaults_required=True,  # a report has every field, so its schema promises every one
    )


class Interval(Part):
    """A measured value and the interval around it at the confidence of the evaluation."""

    value: float | None = None
    """The value; null if it was not finite."""
    low: float | None = None
    """Lower end; null if no interval was computed."""
    high: float | None = None
    """Upper end; null if no interval was computed."""
