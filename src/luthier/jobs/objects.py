"""OpenAI's objects as this service answers them: return types that mypy holds the code to, and `openapi.json` shows."""

from collections.abc import Mapping
from typing import Any, Generic, Literal, NotRequired, TypeAlias, TypeVar

from pydantic import JsonValue
from typing_extensions import TypedDict

T = TypeVar("T", bound=Mapping[str, Any])
Purpose: TypeAlias = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
"""Of a file that a client uploads; results are the service's own."""
Outcome: TypeAlias = Literal["pass", "fail", "error"]
RunStatus: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "canceled"]


class ListObject(TypedDict, Generic[T]):
    """A page of a list."""

    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileObject(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose | Literal["fine-tune-results"]
    status: Literal["processed"]
    status_details: str | None


class UploadObject(TypedDict):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class UploadPart(TypedDict):
    """One of its parts."""

    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


class DeletedFile(TypedDict):
    """What is left of a file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class EventObject(TypedDict):
    """Something that happened to a job; a step's metrics are in `data`."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, JsonValue] | None


class CheckpointObject(TypedDict):
    """Weights in the middle of a job, with a name of their own."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class PermissionObject(TypedDict):
    """That another project may use a model."""

    id: str
    object: Literal["checkpoint.permission"]
    created_at: int
    project_id: str


class DeletedPermission(TypedDict):
    """That it may no more."""

    id: str
    object: Literal["checkpoint.permission"]
    deleted: Literal[True]


class ModelObject(TypedDict):
    """A name that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[ModelObject]


class DeletedModel(TypedDict):
    """What is left of a model."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class ValidGrader(TypedDict):
    """The grader as it came: nothing is wrong with it."""

    grader: dict[str, JsonValue]


class EvalSchema(TypedDict):
    """What templates see, as JSON Schema."""

    type: Literal["object"]
    properties: dict[str, JsonValue]
    required: list[str]


class EvalConfig(TypedDict):
    """What the items of an eval look like."""

    type: Literal["custom"]
    schema: EvalSchema


class EvalObject(TypedDict):
    """What is to be graded, and how."""

    id: str
    object: Literal["eval"]
    created_at: int
    updated_at: int
    data_source_config: EvalConfig
    metadata: dict[str, str] | None
    name: str
    testing_criteria: list[dict[str, JsonValue]]


class DeletedEval(TypedDict):
    """What is left of an eval."""

    object: Literal["eval.deleted"]
    deleted: Literal[True]
    eval_id: str


class EvalError(TypedDict):
    """What went wrong; of empty texts if nothing did."""

    code: str
    message: str


class ResultCounts(TypedDict):
    """Items by their result."""

    total: int
    passed: int
    failed: int
    errored: int


class CriterionCounts(TypedDict):
    """Items by the result of one criterion."""

    testing_criteria: str
    passed: int
    failed: int
    errored: int


class TokenCounts(TypedDict):
    """Of one question to a model."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int


class ModelUsage(TokenCounts):
    """Of all questions to one."""

    model_name: str
    invocation_count: int


class RunSummary(TypedDict):
    """What a run counts."""

    result_counts: ResultCounts
    per_testing_criteria_results: list[CriterionCounts]
    per_model_usage: list[ModelUsage]


class RunObject(RunSummary):
    """A run of an eval."""

    id: str
    object: Literal["eval.run"]
    created_at: int
    data_source: dict[str, JsonValue]
    error: EvalError
    eval_id: str
    metadata: dict[str, str] | None
    model: str
    name: str
    report_url: str
    status: RunStatus


class DeletedRun(TypedDict):
    """What is left of a run."""

    object: Literal["eval.run.deleted"]
    deleted: Literal[True]
    run_id: str


class SampleMessage(TypedDict):
    """A message to a model, or from it."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, JsonValue]]]


class SampleObject(TypedDict):
    """What a model was asked, and what it answered."""

    error: EvalError
    finish_reason: str
    input: list[SampleMessage]
    max_completion_tokens: int
    model: str
    output: list[SampleMessage]
    seed: int
    temperature: float
    top_p: float
    usage: TokenCounts


class ItemResult(TypedDict):
    """What one criterion says of an item."""

    name: str
    type: str
    passed: bool
    score: float
    sample: None
    errors: NotRequired[dict[str, JsonValue]]
    problem: NotRequired[str]


class ItemObject(TypedDict):
    """An item of a run, and what came of it."""

    id: str
    object: Literal["eval.run.output_item"]
    created_at: int
    datasource_item: dict[str, JsonValue]
    datasource_item_id: int
    eval_id: str
    results: list[ItemResult]
    run_id: str
    sample: SampleObject
    status: Outcome


class Health(TypedDict):
    """How the service is."""

    status: Literal["ok", "ready", "stale"]
