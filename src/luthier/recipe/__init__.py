"""A recipe says what a run is: model, data, adapter, objective, optimizer, training, evaluation, cost.

It is a short TOML file. Parts with a `type` (adapter, objective, optimizer, schedule, each evaluated system) take
their settings from the file of that name in the part's directory; nothing else needs to know them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from luthier import registry
from luthier.config import Settings, Tree, build, canonical_hash, did_you_mean, nested, override, read_toml
from luthier.errors import RecipeError
from luthier.recipe.constitution import ConstitutionSettings as ConstitutionSettings
from luthier.recipe.parts import (
    ADAPTERS as ADAPTERS,
    ENVIRONMENTS as ENVIRONMENTS,
    GRADERS as GRADERS,
    METRICS as METRICS,
    OBJECTIVES as OBJECTIVES,
    OPTIMIZERS as OPTIMIZERS,
    PARTS as PARTS,
    QUANTIZERS as QUANTIZERS,
    SCHEDULES as SCHEDULES,
    SYSTEMS as SYSTEMS,
    TRACKERS as TRACKERS,
    build_part as build_part,
    chosen_class,
    dump_part as dump_part,
    require_quantizer,
)
from luthier.recipe.paths import absolute_paths as absolute_paths
from luthier.recipe.rollout import (
    PATIENCE as PATIENCE,
    RewardSettings as RewardSettings,
    RolloutSettings as RolloutSettings,
    VllmSettings as VllmSettings,
)
from luthier.recipe.teacher import TeacherSettings as TeacherSettings

DEFAULT_SYSTEMS = ("zero_shot", "few_shot", "fine_tuned")
"""What is compared when a recipe names no system."""
JUDGES = ("local_model", "remote", "command")
"""Systems that may judge what other systems wrote."""
NOT_OF_JUDGES: Mapping[str, str] = {
    "note": "a judge stands in no table of systems",
    "held_out": "a judge is no system that is compared",
    "shots": "a judge is shown no training rows",
    "tune_rows": "no validation row says how a judge is best asked",
}
"""Settings of these systems that mean nothing for a judge, and why."""
RETRIEVING_SYSTEM = "rag"
"""What is compared beside these, before the last, when the recipe has passages."""
PROMPTED_SYSTEM = "prompted"
"""The same, when the recipe's teacher reads a prompt that the trained model does without."""


def _part(key: str) -> BeforeValidator:
    package, default = PARTS[key]

    def made(values: Any) -> Settings:
        with nested():
            return build_part(package, values, default, [key])

    return BeforeValidator(made)


def _systems(tables: Any) -> dict[str, Settings]:
    """The settings of every system that is compared, by name."""
    with nested():
        tables = tables or {name: {} for name in DEFAULT_SYSTEMS}
        if not isinstance(tables, Mapping):
            raise RecipeError(
                f"evaluation.systems = {tables!r}: expected tables such as [evaluation.systems.zero_shot]"
            )
        return {
            name: build_part(SYSTEMS, table, name, ["evaluation", "systems", name]) for name, table in tables.items()
        }


def _trackers(tables: Any) -> dict[str, Settings]:
    """The settings of every tracker, by name."""
    with nested():
        if not isinstance(tables, Mapping):
            raise RecipeError(f"tracking = {tables!r}: expected tables such as [tracking.tensorboard]")
        return {name: build_part(TRACKERS, table, name, ["tracking", name]) for name, table in tables.items()}


class ModelSettings(Settings):
    """Which base model, and how it is held."""

    name: str = Field("smollm2-135m-instruct", min_length=1)
    """A local folder or .gguf file, a hub id (`owner/name`, or `owner/name@revision`), or a name that `luthier models`
    lists."""
    template: str = "model"
    """`model` for the model's own chat template, a built-in one (`chatml_tools`), or a path to a .jinja file."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen weights; `auto` takes bfloat16 where this machine multiplies it faster. Over a
    quantized base, the format that products are computed in."""
    quantize: str = "none"
    """How the frozen matrices are held: `none` for `precision`; `nf4` (4 bits) or `int8`, made when the model is
    loaded; or `gguf`, the blocks of the .gguf file that the model comes from. Not with `adapter.type = "full"`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    @field_validator("quantize")
    @classmethod
    def _require_known_quantizer(cls, value: str) -> str:
        return require_quantizer(value, "model.quantize")


class DataSettings(Settings):
    """Where the rows are and which of their tokens are trained on."""

    train: str = Field(min_length=1)
    """Training rows: JSONL, JSON, CSV or Parquet; relative to the recipe's folder."""
    validation: str | None = None
    """Rows that choose the best checkpoint; absent: a share of the training rows."""
    test: str | None = None
    """Rows that nothing is chosen on; absent: a share of the training rows."""
    format: str = "auto"
    """How a row is read; `auto` looks at the first rows and says what it found."""
    instruction: str | None = None
    """System message for rows that have none (text + label, prompt + completion)."""
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens are trained on: every assistant turn, the last one only, or every token."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training groups held out for validation when no file is named."""
    test_share: float = Field(0.1, ge=0, lt=0.5)
    """Share of the training groups held out for the test when no file is named; 0: none, so that the run can be trained
    and not evaluated."""
    replay: str | None = None
    """Rows of other work that are mixed into what is trained, so that the model keeps what they teach
    (docs/forgetting.md): of any format that the objective learns from. They are in no split, and those that ask what a
    held-out row asks are left out."""
    replay_share: float = Field(0.1, ge=0, lt=1)
    """Share of the rows trained on that are replay, where a file is named; 0: only `luthier train --remember` tries."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to exact repeats of a training row; dropped ones are counted and listed in the findings."""
    max_truncated_share: float = Field(0.0, ge=0, le=1)
    """Share of training rows that may lose tokens to `training.max_tokens` before the run is refused."""


def _off(value: Any) -> Any:
    return None if value is False else value


CountOrOff: TypeAlias = Annotated[
    PositiveInt | None, BeforeValidator(_off, json_schema_input_type=PositiveInt | Literal[False] | None)
]
"""A count that `false` switches off: TOML has no null, and leaving the key out means the default."""


class TrainingSettings(Settings):
    """How long, how much at once, and when to look."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; absent: as many as `epochs` passes need."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows, when `steps` is absent."""
    rows_per_step: int = Field(8, ge=1)
    """Data rows (for preferences: pairs) that make one optimizer step."""
    max_tokens: int = Field(2048, ge=8)
    """Longest row in tokens; longer ones are cut on the right and counted."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = 4096
    """Most tokens computed at once; bounds memory, and never changes the result. `auto`: as many as are predicted to
    fit into this machine's memory, and no more than make a step faster; found once, before the run."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm when they exceed it."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; absent: about ten in the run."""
    patience: CountOrOff = 3
    """Stop after this many validations without a better loss; `false`: never stop early."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; absent: at every validation."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept beside the best one."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third slower, same result."""

    @field_serializer("patience", when_used="json")
    def _dump_patience(self, patience: int | None) -> int | Literal[False]:
        return False if patience is None else patience


class ForgettingSettings(Settings):
    """General ability before and after training."""

    multiple_choice: str = "builtin"
    """`builtin`, `none`, or a JSONL file with question, choices, answer (0-based)."""
    text: str = "builtin"
    """`builtin`, `none`, or a JSONL (`text`) or plain-text file on which perplexity is measured."""
    max_rows: int = Field(300, ge=20)
    """At most this many questions."""
    max_tokens: int = Field(8000, ge=512)
    """At most this many tokens of text."""


class GroundingSettings(Settings):
    """How answers to rows with passages are judged: supported, unsupported or abstained."""

    judge: str = "none"
    """`none` for the words of answer and passages alone, or a model whose judgement was calibrated beside them
    (docs/grounding.md)."""


def _judge(table: Any) -> Settings | None:
    """The settings of the system that judges; it must be none of the models that are judged."""
    if table is None:
        return None
    with nested():
        at = ["evaluation", "style", "judge"]
        if isinstance(table, Mapping) and table.get("type") not in JUDGES:
            raise RecipeError(
                f"{'.'.join(at)}.type = {table.get('type')!r}: expected one of {', '.join(JUDGES)}; a judge is another "
                "model than those whose answers it compares"
            )
        judge = build_part(SYSTEMS, table, JUDGES[0], at)
        fields = type(judge).model_fields
        for name, value in judge.model_dump().items():
            if name in NOT_OF_JUDGES and value != fields[name].default:
                raise RecipeError(f"{'.'.join(at)}.{name} changes nothing: {NOT_OF_JUDGES[name]}")
        return judge


class StyleSettings(Settings):
    """How answers are written, beside how right they are (task `text`): docs/style.md."""

    judge: Annotated[SerializeAsAny[Settings] | None, BeforeValidator(_judge, json_schema_input_type=Tree | None)] = (
        None
    )
    """Who says which of two answers is better, asked in both orders: a table such as `{ type = "local_model", model =
    "..." }`, or a `remote` or `command`; absent: features alone are measured."""
    criterion: str = Field(
        "helpful and well written: clear, fitting in tone and length, and free of empty phrases", min_length=1
    )
    """What the judge goes by; your own guide to style, in a sentence or some."""
    against: str | None = None
    """The system that each other one is compared with; absent: the best that was not trained, by the primary metric."""

    @model_validator(mode="after")
    def _require_judge(self) -> "StyleSettings":
        for name in ("against", "criterion"):
            if self.judge is None and self.model_dump()[name] != type(self).model_fields[name].default:
                with nested():
                    raise RecipeError(f"evaluation.style.{name} changes nothing without evaluation.style.judge")
        return self

    @field_serializer("judge")
    def _dump_judge(self, judge: Settings | None) -> Tree | None:
        return None if judge is None else dump_part(judge)


Task: TypeAlias = Literal[
    "json",
    "label",
    "labels",
    "number",
    "spans",
    "tool_calls",
    "answers",
    "text",
    "language",
    "pairs",
    "rewards",
    "steps",
]
"""What kind of answer the rows want; `EvaluationSettings.task` says what each means."""


class EvaluationSettings(Settings):
    """What is measured on the test rows, and for which systems."""

    task: Literal["auto", Task] = "auto"
    """What kind of answer is expected; chooses the metrics when none are named. `labels`: a list of labels; `number`: a
    number; `spans`: parts of the text and their labels. `answers`: one of several short texts, each of which would do.
    `language` (raw text) and `pairs` are scored, not answered; `rewards` and `steps` are judged by the head of a
    `reward` or a `process_reward`."""
    metrics: tuple[str, ...] = ()
    """Names from `luthier/evaluation/metrics`; absent: those that fit the task."""
    primary_metric: str | None = None
    """The metric that decides; absent: the first that fits the task."""
    json_schema: str | None = None
    """JSON Schema file that answers must satisfy (task `json`)."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer; absent: the longest answer in the training rows and a quarter more."""
    max_rows: int | None = Field(None, ge=2)
    """Use only the first this many test rows; absent: all."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of every interval in the report."""
    precision: float = Field(0.95, gt=0, lt=1)
    """Share of right answers that is wanted of systems that tell how sure they are: the report says how many rows they
    answer at it, and leave the others to somebody else."""
    systems: Annotated[dict[str, SerializeAsAny[Settings]], BeforeValidator(_systems)] = Field(default_factory=dict)
    """Tables of systems by name, each with a `type`; absent: zero_shot, few_shot and fine_tuned, and rag where there is
    a `[retrieval]`."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """How forgetting is measured."""
    grounding: GroundingSettings = GroundingSettings()
    """How answers beside passages are judged."""
    style: StyleSettings = StyleSettings()
    """How the way that answers are written is measured."""

    @model_validator(mode="after")
    def _require_known_rival(self) -> "EvaluationSettings":
        against = self.style.against
        if against is not None and against not in self.systems:
            with nested():
                raise RecipeError(
                    f"evaluation.style.against = {against!r}: no such system{did_you_mean(against, list(self.systems))}"
                )
        return self

    @field_validator("metrics", "primary_metric")
    @classmethod
    def _require_known_metrics(cls, value: Any) -> Any:
        known = registry.names(METRICS)
        for name in value if isinstance(value, tuple) else [value]:
            if name is not None and name not in known:
                with nested():
                    raise RecipeError(f"evaluation: unknown metric {name!r}{did_you_mean(name, known)}")
        return value

    @field_serializer("systems")
    def _dump_systems(self, systems: dict[str, Settings]) -> Tree:
        return {name: dump_part(system) for name, system in systems.items()}


HOURS_PER_MONTH = 730.5
"""A twelfth of a year of 365.25 days."""


class MachineSettings(Settings):
    """An hour of this machine, where `cost.machine_usd_per_hour` does not say it, and the hours that are paid."""

    price: str | None = None
    """An entry of the price book with a price an hour (`runpod/h100-sxm`): this machine is rented at that price."""
    purchase_usd: float | None = Field(None, ge=0)
    """What it cost to buy; an hour is worked out from this, its lifetime, its use and its power."""
    lifetime_years: float | None = Field(None, gt=0)
    """For how long it will be used; with `purchase_usd`."""
    utilization: float = Field(1.0, gt=0, le=1)
    """Share of its hours in which it does paid work of any kind, which pays for the others; with `purchase_usd`."""
    watts: float | None = Field(None, ge=0)
    """What it draws at work; a measured draw (RAPL) goes before it."""
    energy: str = "eia/us-commercial"
    """An entry of the price book with the price of a kWh."""
    hours_per_month: float | None = Field(None, ge=0, le=HOURS_PER_MONTH)
    """Hours a month that it is kept for answering and paid for, also while it waits; 0: an idle hour is paid by other
    work. Absent: always on, or the share of it that `utilization` says."""

    @model_validator(mode="after")
    def _require_one_price(self) -> "MachineSettings":
        with nested():
            if (self.purchase_usd is None) != (self.lifetime_years is None):
                raise RecipeError("cost.machine: purchase_usd and lifetime_years go together; one of them is missing")
            if self.price is not None and self.purchase_usd is not None:
                raise RecipeError("cost.machine: price (rented) and purchase_usd (bought) exclude each other; keep one")
            if self.utilization < 1 and self.purchase_usd is None:
                raise RecipeError("cost.machine.utilization changes nothing without cost.machine.purchase_usd")
            most = HOURS_PER_MONTH * self.utilization
            if self.hours_per_month is not None and self.hours_per_month > most * (1 + 1e-9):
                raise RecipeError(
                    f"cost.machine.hours_per_month = {self.hours_per_month:g}: with a utilization of "
                    f"{self.utilization:g} the machine works at most {most:g} hours a month, and an idle hour would be "
                    "paid twice; lower one or raise the other"
                )
        return self


class CostSettings(Settings):
    """Prices for estimate and report; nothing is fetched."""

    answers_per_month: int = Field(100_000, ge=1)
    """Expected volume, for the cost of answers, the break-even and failures per month."""
    hosted: tuple[str, ...] = ("openai/gpt-4o-mini", "tinker/qwen3-8b")
    """Entries of the price book, hosted models or rented GPUs, to compare this machine with."""
    prices: str | None = None
    """A price book of your own (TOML), which adds to the one that ships or replaces its prices."""
    machine_usd_per_hour: float | None = Field(None, ge=0)
    """What an hour of this machine costs, power and depreciation included; absent: as `machine` says, else 0.10."""
    machine: MachineSettings = MachineSettings()
    """This machine: bought or rented, and how long it is paid for."""
    rented_speed: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Your own assumption of how many times as fast as this machine a rented GPU of `hosted` is; without it, only its
    hour is priced, as the time there was not measured."""
    repeats_per_year: float = Field(4.0, ge=0)
    """How often a year the training is done again, for new data or a new base model."""
    refresh_usd: float = Field(0.0, ge=0)
    """What the new rows of one repeat cost: people's time, labels."""
    hosted_training_usd_per_million_tokens: float | None = Field(None, ge=0)
    """A hosted price without a book: training a million tokens."""
    hosted_input_usd_per_million_tokens: float | None = Field(None, ge=0)
    """A hosted price without a book: a million prompt tokens, of the model as it is or tuned."""
    hosted_output_usd_per_million_tokens: float | None = Field(None, ge=0)
    """A hosted price without a book: a million completion tokens."""

    @model_validator(mode="after")
    def _require_one_machine(self) -> "CostSettings":
        also = "price" if self.machine.price is not None else "purchase_usd"
        priced = self.machine.price is not None or self.machine.purchase_usd is not None
        if self.machine_usd_per_hour is not None and priced:
            with nested():
                raise RecipeError(
                    f"cost.machine_usd_per_hour and cost.machine.{also} both price an hour of this machine; keep one"
                )
        return self


class DecisionSettings(Settings):
    """What the verdict assumes; the report tells what other values would lead to."""

    smallest_gain: float = Field(0.02, ge=0, lt=1)
    """Least difference worth acting on, as a share of the scale: from the worst to the best value of the metric, or the
    baseline's value where a metric has no bounds."""
    coarsest_effect: float = Field(0.10, gt=0, lt=1)
    """Two systems tie only if the test rows could have shown a difference of this share of the scale."""
    most_failures: float = Field(0.05, ge=0, le=1)
    """A system of which a larger share of answers lacks the wanted form is never chosen."""
    most_seconds: float | None = Field(None, gt=0)
    """A system that takes longer for one answer alone, on this machine, is never chosen; of a program, the mean."""
    most_forgetting: float | None = Field(None, ge=0)
    """A trained model that certainly lost a larger share of a measure of general ability is never chosen."""
    facts_change: Literal["unknown", "never", "yearly", "quarterly", "monthly", "weekly", "daily"] = "unknown"
    """How often the facts change that answers state and prompts do not hold. Monthly or faster, a model that was taught
    them is never chosen: they belong in retrieval."""


class RetrievalSettings(Settings):
    """Passages for questions: which texts there are, and how those that answer a question are found."""

    corpus: str = Field(min_length=1)
    """The texts: a JSONL, JSON, CSV or Parquet file with a field `text` and maybe `id` and `title`, a .txt or .md file,
    or a folder of such files; relative to the recipe's folder."""
    chunk_words: CountOrOff = 160
    """Most words of a passage; longer texts are cut at the ends of paragraphs and sentences. `false`: never cut."""
    overlap_words: int = Field(30, ge=0)
    """Most words that a passage repeats of the one before it."""
    retriever: Literal["hybrid", "bm25", "dense"] = "hybrid"
    """`bm25` finds passages by their words, `dense` by their vectors, `hybrid` by both."""
    embedder: str = Field("all-minilm-l6-v2", min_length=1)
    """What makes vectors of texts: a folder or hub id of a BERT-like encoder, a run that trained one, or a name that
    `luthier models` lists."""
    store: str = Field("", pattern=r"^(https?://.+)?$")
    """Where vectors are kept: empty for files in the cache, or the URL of a Qdrant server."""
    reranker: str = ""
    """What puts what was found into a better order: a folder or hub id of a cross-encoder, or a run that trained one;
    empty: none."""
    top_k: int = Field(5, ge=1)
    """Most passages before a question."""

    @field_serializer("chunk_words", when_used="json")
    def _dump_chunk_words(self, words: int | None) -> int | Literal[False]:
        return False if words is None else words


class Recipe(Settings):
    """A whole run, from raw data to report."""

    seed: int = Field(0, ge=0)
    """Decides the order of rows, dropout and adapter initialization; equal seeds give equal runs."""
    model: ModelSettings = ModelSettings()
    """The base model."""
    data: DataSettings
    """The rows."""
    adapter: Annotated[SerializeAsAny[Settings], _part("adapter")] = Field(default_factory=dict, validate_default=True)
    """What is trained: a file name in `luthier/adapters` as `type`, and its settings."""
    objective: Annotated[SerializeAsAny[Settings], _part("objective")] = Field(
        default_factory=dict, validate_default=True
    )
    """What is minimized: a file name in `luthier/objectives` as `type`, and its settings."""
    optimizer: Annotated[SerializeAsAny[Settings], _part("optimizer")] = Field(
        default_factory=dict, validate_default=True
    )
    """How steps are taken: a file name in `luthier/engine/optimizers` as `type`, and its settings."""
    schedule: Annotated[SerializeAsAny[Settings], _part("schedule")] = Field(
        default_factory=dict, validate_default=True
    )
    """How the learning rate moves: a file name in `luthier/engine/schedules` as `type`, and its settings."""
    training: TrainingSettings = TrainingSettings()
    """How long and how much at once."""
    rollout: RolloutSettings | None = None
    """Replies that are sampled and graded while training; absent: the objective learns from those of the rows."""
    teacher: TeacherSettings | None = None
    """Whom the model learns from, where the objective asks a teacher; absent: nobody."""
    constitution: ConstitutionSettings | None = None
    """Constitutional AI; absent: the rows are learned from as they are."""
    evaluation: EvaluationSettings = Field(default_factory=dict, validate_default=True)  # type: ignore[assignment]
    """What is measured."""
    retrieval: RetrievalSettings | None = None
    """Passages for questions; absent: nothing is retrieved."""
    cost: CostSettings = CostSettings()
    """Prices."""
    decision: DecisionSettings = DecisionSettings()
    """What the verdict assumes."""
    tracking: Annotated[dict[str, SerializeAsAny[Settings]], BeforeValidator(_trackers)] = Field(default_factory=dict)
    """Trackers that follow the training (docs/tracking.md): tables by name, each with a `type`; absent: none. They
    change nothing that is trained."""

    @classmethod
    def tables(cls, values: Mapping[str, Any]) -> dict[str, type[Settings]]:
        """The groups, and the parts that `values` chooses."""
        found = super().tables(values)
        for key, (package, default) in PARTS.items():
            with suppress(RecipeError):  # it is told of already
                found[key] = chosen_class(package, values.get(key, {}), default, [key])
        return found

    @model_validator(mode="before")
    @classmethod
    def _compare_what_is_given(cls, values: Any) -> Any:
        """Where no system is named, one that retrieves is among those compared if passages are given, and one with the
        teacher's prompt if it has one."""
        if not isinstance(values, Mapping):
            return values
        evaluation, teacher = values.get("evaluation", {}), values.get("teacher")
        more = [RETRIEVING_SYSTEM] if values.get("retrieval") else []
        more += [PROMPTED_SYSTEM] if isinstance(teacher, Mapping) and {"prompt", "examples"} & teacher.keys() else []
        if not more or not isinstance(evaluation, Mapping) or evaluation.get("systems"):
            return values
        systems: Tree = {name: {} for name in (*DEFAULT_SYSTEMS[:-1], *more, DEFAULT_SYSTEMS[-1])}
        return {**values, "evaluation": {**evaluation, "systems": systems}}

    @field_serializer("adapter", "objective", "optimizer", "schedule")
    def _dump_part(self, part: Settings) -> Tree:
        return dump_part(part)

    @field_serializer("tracking")
    def _dump_tracking(self, trackers: dict[str, Settings]) -> Tree:
        return {name: dump_part(tracker) for name, tracker in trackers.items()}

    def dump(self) -> Tree:
        """Every setting as plain values, defaults included; `Recipe` reads it back to an equal recipe."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """sha256 of the effective settings."""
        return canonical_hash(self.dump())


def load(path: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `--set` assignments, and check it; data paths become absolute.

    Raises:
        RecipeError: the file, a key or a value is wrong.
    """
    tree = override(read_toml(path), assignments)
    return build(Recipe, absolute_paths(tree, path.resolve().parent))
