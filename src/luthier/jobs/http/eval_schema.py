"""Bodies and queries of requests to /v1/evals, as OpenAI's clients send them: closed and bounded."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, JsonValue

from luthier.jobs.http.grader_schema import CriterionValues
from luthier.jobs.http.schema import Body, Id, Metadata, OrderedQuery
from luthier.jobs.objects import RunStatus
from luthier.serve.bodies import Format, NamedSchema, TextFormat

Name = Annotated[str, Field(max_length=256)]
Object: TypeAlias = dict[str, JsonValue]


class Custom(Body):
    """`data_source_config` of items that the client brings."""

    type: Literal["custom"]
    item_schema: Object
    include_sample_schema: bool | None = None
    """Whether runs must have answers to grade: of a model, or brought with the items."""


class Stored(Body):
    """`data_source_config` of what OpenAI keeps of traffic; refused with a reason."""

    model_config = ConfigDict(extra="allow")

    type: Literal["logs", "stored_completions"]


class CreateEval(Body):
    """POST /v1/evals"""

    data_source_config: Annotated[Custom | Stored, Field(discriminator="type")]
    testing_criteria: Annotated[list[CriterionValues], Field(min_length=1, max_length=32)]
    metadata: Metadata | None = None
    name: Name | None = None


class UpdateEval(Body):
    """POST /v1/evals/{eval_id}"""

    metadata: Metadata | None = None
    name: Name | None = None


class ContentRow(Body):
    """`content[]` of a `file_content`."""

    item: Object
    sample: Object | None = None


class FileContent(Body):
    """Items in the request."""

    type: Literal["file_content"]
    content: list[ContentRow]


class FileId(Body):
    """Items in a file."""

    type: Literal["file_id"]
    id: Id


class StoredSource(Body):
    """Items out of what OpenAI keeps of traffic; refused with a reason."""

    model_config = ConfigDict(extra="allow")

    type: Literal["stored_completions", "responses"]


class TextBlock(Body):
    """A piece of a message."""

    type: Literal["input_text", "output_text"]
    text: str


Block: TypeAlias = str | TextBlock


class InputMessage(Body):
    """A message to the model; its texts may hold variables of the item."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | TextBlock | list[Block]
    type: Literal["message"] | None = None


class Template(Body):
    """Messages with variables."""

    type: Literal["template"]
    template: Annotated[list[InputMessage], Field(min_length=1, max_length=256)]


class ItemReference(Body):
    """Messages that stand in the item."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(max_length=256, pattern=r"^item\.[\w.\[\]-]+$")]


class FlatSchemaFormat(NamedSchema):
    """JSON by a schema, as the Responses API has it: beside the type."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """`text` of a Responses request."""

    format: Annotated[TextFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class Sampling(Body):
    """How the model answers. What no model here can do is refused when the run is made, not item by item."""

    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    reasoning_effort: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


class CompletionsSampling(Sampling):
    """`sampling_params` of the type `completions`."""

    response_format: Format | None = None


class ResponsesSampling(Sampling):
    """`sampling_params` of the type `responses`."""

    text: TextOptions | None = None


Source: TypeAlias = Annotated[FileContent | FileId | StoredSource, Field(discriminator="type")]
Messages: TypeAlias = Annotated[Template | ItemReference, Field(discriminator="type")]


class Jsonl(Body):
    """Items as they are."""

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class Completions(Body):
    """Items that a model answers."""

    type: Literal["completions"]
    source: Source
    input_messages: Messages | None = None
    model: Id | None = None
    sampling_params: CompletionsSampling | None = None


class Responses(Body):
    """The same in the words of the Responses API."""

    type: Literal["responses"]
    source: Source
    input_messages: Messages | None = None
    model: Id | None = None
    sampling_params: ResponsesSampling | None = None


DataSource: TypeAlias = Annotated[Jsonl | Completions | Responses, Field(discriminator="type")]


class CreateRun(Body):
    """POST /v1/evals/{eval_id}/runs"""

    data_source: DataSource
    metadata: Metadata | None = None
    name: Name | None = None


class EvalsQuery(OrderedQuery):
    """GET /v1/evals"""

    order_by: Literal["created_at", "updated_at"] | None = None


class RunsQuery(OrderedQuery):
    """GET /v1/evals/{eval_id}/runs"""

    status: RunStatus | None = None


class ItemsQuery(OrderedQuery):
    """GET /v1/evals/{eval_id}/runs/{run_id}/output_items"""

    status: Literal["fail", "pass"] | None = None
