"""The base of everything in a report."""

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
