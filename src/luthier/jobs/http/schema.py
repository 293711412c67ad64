"""Bodies of requests, as OpenAI's clients send them: closed and bounded."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Auto = Literal["auto"]
KEPT = r"^[^\x00]*$"
"""PostgreSQL keeps no text with a NUL."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64, pattern=KEPT)], Annotated[str, Field(max_length=512, pattern=KEPT)]],
    Field(max_length=16),
]
SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"
"""Text without control characters and without what turns its direction."""
Id = Annotated[str, Field(min_length=1, max_length=255, pattern=SHOWN)]
Count = Annotated[int, Field(ge=1, le=4096)]
Epochs = Annotated[int, Field(ge=1, le=50)]
Multiplier = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class Body(BaseModel):
    """Unknown fields are refused; a number is no text and no number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=())


class Hyperparameters(Body):
    """Of supervised training."""

    batch_size: Auto | Count | None = None
    learning_rate_multiplier: Auto | Multiplier | None = None
    """Times the learning rate that our own rules pick."""
    n_epochs: Auto | Epochs | None = None


class DpoHyperparameters(Hyperparameters):
    """Of training on preferences."""

    beta: Auto | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """Of training on graded answers."""

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    eval_interval: Auto | Count | None = None
    eval_samples: Auto | Count | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class Supervised(Body):
    """`method.supervised`."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Body):
    """`method.dpo`."""

    hyperparameters: DpoHyperparameters | None = None


class Reinforcement(Body):
    """`method.reinforcement`."""

    grader: dict[str, JsonValue]
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: dict[str, JsonValue] | None = None


class Method(Body):
    """How to train; what belongs to another type than the chosen one is given back as it came."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class Wandb(Body):
    """`integrations[].wandb`."""

    project: Annotated[str, Field(min_length=1, max_length=256)]
    entity: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=50)] | None = None


class Integration(Body):
    """`integrations[]`."""

    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(Body):
    """POST /v1/fine_tuning/jobs"""

    model: Id
    training_file: Id
    validation_file: Id | None = None
    hyperparameters: Hyperparameters | None = None
    """OpenAI's old place for those of supervised training."""
    method: Method | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    metadata: Metadata | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=SHOWN)] | None = None
    """Part of the model's name, which is shown in lists and terminals."""


class MetadataQuery(Body):
    """GET /v1/fine_tuning/jobs?metadata[key]=value"""

    metadata: Metadata


class ExpiresAfter(Body):
    """When a file is removed."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateUpload(Body):
    """POST /v1/uploads"""

    bytes: Annotated[int, Field(ge=0, le=2**40)]
    filename: Annotated[str, Field(min_length=1, max_length=512)]
    mime_type: Annotated[str, Field(max_length=255, pattern=KEPT)]
    purpose: Annotated[str, Field(max_length=64)]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """POST /v1/uploads/{upload_id}/complete"""

    part_ids: Annotated[list[Id], Field(max_length=10_000)]
    md5: Annotated[str, Field(max_length=64)] | None = None


class Grant(Body):
    """POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions"""

    project_ids: Annotated[list[Id], Field(min_length=1, max_length=100)]
