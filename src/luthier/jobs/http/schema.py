"""Bodies, forms and queries of requests, as OpenAI's clients send them: closed and bounded; and the job object."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from luthier.jobs.objects import Purpose
from luthier.jobs.pages import Page
from luthier.serve.api_error import ApiError

Auto = Literal["auto"]
KEPT = r"^[^\x00]*$"
"""PostgreSQL keeps no text with a NUL."""
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64, pattern=KEPT)],
        Annotated[str, Field(max_length=512, pattern=KEPT)],
    ],
    Field(max_length=16),
]
SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"
"""Text without control characters and without what turns its direction."""
Id = Annotated[str, Field(min_length=1, max_length=255, pattern=SHOWN)]
Count = Annotated[int, Field(ge=1, le=4096)]
Epochs = Annotated[int, Field(ge=1, le=50)]
Multiplier = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
DIGITS = re.compile(r"[0-9]{1,18}")
"""A whole number in a query or form. `str.isdigit` also takes what `int` does not, or takes forever with."""


def _whole(text: str) -> int:
    if not DIGITS.fullmatch(text):
        raise PydanticCustomError("whole_number", "expected a whole number")
    return int(text)


Limit = Annotated[int, Field(ge=0, le=100), BeforeValidator(_whole)]
"""0 is a page of nothing, which OpenAI's own tests ask for."""


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


class RewardModel(Body):
    """`method.reward`: ours beside OpenAI's."""

    hyperparameters: Hyperparameters | None = None


class Method(Body):
    """How to train; what belongs to another type than the chosen one is given back as it came."""

    type: Literal["supervised", "dpo", "reinforcement", "reward"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None
    reward: RewardModel | None = None
    """A model that judges answers, from the rows that `dpo` takes; it answers nothing itself."""


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


class ExpiresAfter(Body):
    """When a file is removed."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateUpload(Body):
    """POST /v1/uploads"""

    bytes: Annotated[int, Field(ge=0, le=2**40)]
    filename: Annotated[str, Field(min_length=1, max_length=512)]
    mime_type: Annotated[str, Field(max_length=255, pattern=KEPT)]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """POST /v1/uploads/{upload_id}/complete"""

    part_ids: Annotated[list[Id], Field(max_length=10_000)]
    md5: Annotated[str, Field(max_length=64)] | None = None


class Grant(Body):
    """POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions"""

    project_ids: Annotated[list[Id], Field(min_length=1, max_length=100)]


class Form(Body):
    """The fields of a multipart body beside its file; a part of a field stands in brackets: `field[part]`."""

    @classmethod
    def values(cls, items: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Fields as they came, put together."""
        found: dict[str, Any] = {}
        for name, text in items:
            field, bracket, part = name.partition("[")
            if bracket and part.endswith("]") and field in cls.model_fields:
                parts = found.setdefault(field, {})
                if not isinstance(parts, dict):
                    raise ApiError(f"{field!r} is given twice.", param=field)
                parts[part[:-1]] = int(text) if DIGITS.fullmatch(text) else text
            else:
                found[name] = text
        return found


class FileForm(Form):
    """POST /v1/files"""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class PartForm(Form):
    """POST /v1/uploads/{upload_id}/parts"""


class Query(BaseModel):
    """Unknown parameters are refused; of one that is given twice the last counts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def values(cls, items: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Parameters as they came."""
        return dict(items)


class PageQuery(Query):
    """Which part of a list."""

    after: str | None = None
    """The id of the last object of the page before."""
    limit: Limit = 20

    def page(self, newest_first: bool = True) -> Page:
        """The same for the stores."""
        return Page(self.limit, self.after or None, newest_first)


class OrderedQuery(PageQuery):
    """And in which order of creation."""

    order: Literal["asc", "ascending", "desc", "descending"] | None = None

    def page(self, newest_first: bool = True) -> Page:
        """The same for the stores; `newest_first`: unless the client says otherwise."""
        return super().page(newest_first if self.order is None else self.order.startswith("desc"))


class FilesQuery(OrderedQuery):
    """GET /v1/files"""

    limit: Annotated[int, Field(ge=0, le=10_000), BeforeValidator(_whole)] = 10_000
    purpose: str | None = None


class JobsQuery(PageQuery):
    """GET /v1/fine_tuning/jobs"""

    metadata: Metadata | None = {}
    """Jobs that have these: `metadata[key]=value`; `metadata=null`: those without any."""

    @classmethod
    def values(cls, items: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Parameters as they came, those of metadata put together."""
        found: dict[str, Any] = {}
        wanted: dict[str, str] = {}
        for name, value in items:
            key = name.removeprefix("metadata[").removesuffix("]")
            if key and name == f"metadata[{key}]" and "][" not in key:  # metadata[a][b] would be an object within
                wanted[key] = value
            else:
                found[name] = None if (name, value) == ("metadata", "null") else value
        if wanted and "metadata" in found:
            raise ApiError("'metadata' is null, or is given by keys: metadata[key]=value.", param="metadata")
        return {**found, "metadata": wanted} if wanted else found


class CheckpointsQuery(PageQuery):
    """GET /v1/fine_tuning/jobs/{job_id}/checkpoints"""

    limit: Limit = 10


class GrantsQuery(OrderedQuery):
    """GET /v1/fine_tuning/checkpoints/{checkpoint}/permissions"""

    limit: Limit = 10
    project_id: str | None = None


class ShownHyperparameters(TypedDict):
    """OpenAI's old place for them; empty but for supervised training."""

    batch_size: NotRequired[int | Auto]
    learning_rate_multiplier: NotRequired[float | Auto]
    n_epochs: NotRequired[int | Auto]


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(TypedDict):
    """A job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    error: JobError | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: ShownHyperparameters
    integrations: list[Integration] | None
    metadata: dict[str, str] | None
    method: Method
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    paused: bool
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None
