"""A recipe that fits rows: kind of answer, lengths, instruction, metrics, and defaults by the size of model and data.

These are the rules by which `luthier init` writes a commented recipe, and the job service that of a job.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config import write_toml
from luthier.data.profile import MESSAGE_TOKENS, Profile, estimate_tokens
from luthier.errors import DataError, EvaluationError
from luthier.evaluation.fitting import SCORED_TASKS, choose_metrics

SMALL_MODEL = 1_000_000_000
"""Parameters below which a model likes a higher learning rate."""
INSTRUCTION_CHARACTERS = 1500
"""Room for labels in an instruction that is trained with; it costs time in every row."""
LISTED_BY_ZERO_SHOT, BASELINE_CHARACTERS = 1900, 8000
"""Fewer characters of labels the system zero_shot lists by itself; more are too many for a prompt."""
SCHEMA = "schema.json"
TOKENS_OF_WORK, LEAST_ROWS_SEEN, MOST_ROWS_SEEN = 450_000, 1200, 4000
"""Training on about 450,000 tokens takes some ten minutes on two cores for a model of 135 million parameters."""
WRITTEN_TOKENS = 100_000
"""Answers of so many tokens in all are what one system may write in an evaluation; beyond, test rows are left out."""
LARGEST_CONTEXT = 8192
SMALL_TOP_K = 3
"""A small model loses its way in more passages, and a small machine its time."""
PASSAGE_TOKENS = 200
"""Of a middling passage."""
SAFETY = 1.25
"""The tokens of a row are an estimate; no row shall be cut."""

TASKS = {
    "json": "answers are JSON objects",
    "label": "answers are one of {labels} labels",
    "tool_calls": "answers call tools",
    "answers": "each question has several answers, any of which will do",
    "text": "answers are free text",
    "pairs": "pairs of a better and a worse answer",
    "language": "raw text, trained on from beginning to end",
    "steps": "replies whose steps are judged",
    "labels": "each text has several labels, or none",
    "number": "answers are numbers",
    "spans": "parts of texts have labels",
}
MANY_LABELS = 20
"""With more labels than these a head answers rather than words: it is quicker, and tells how sure it is."""
HEADS = {
    "labels": ("multi_label", "a head says which labels a text has"),
    "number": ("regress", "a head says the number"),
    "spans": ("token_classify", "a head says what each word is"),
}
"""Which head is for which kind of answer, and why."""
TEXT_TASKS = {"text_labels": "labels", "text_number": "number", "text_spans": "spans"}
"""The kind of answer that a format is for."""

COMPARED = {
    "preference": ("dpo", "the chosen reply shall gain on the rejected one"),
    "judged": ("kto", "good replies shall gain, bad ones lose"),
}
"""Kinds of rows that are compared with a reference: which objective does it, and why."""
REWARD_RATE = 1e-4
"""Learning rate of an objective whose model judges replies."""


OFFER = "# More to compare with. Take the first # away from what you want; each costs time or money."
LARGER = "qwen2.5-coder-1.5b-instruct"
"""A larger model of the catalogue, as an example."""


@dataclass(frozen=True)
class Entry:
    """One line of a recipe: a key, its value, and why."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Section:
    """A table of a recipe; `note` stands above it."""

    name: str
    entries: Sequence[Entry]
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known before the recipe is written."""

    train: Profile
    test: Profile | None
    validation: Profile | None
    model: str
    folder: Path
    schema: Path | None
    corpus: Path | None = None
    has_test: bool = True
    """False: the run is only trained, and no row is held out for a test."""

    @property
    def trained_rows(self) -> int:
        """Rows left to train on, about."""
        rows = self.train.rows * (1 - (0 if self.test else self.test_share))
        return max(1, round(rows - (0 if self.validation else self.train.rows * self.validation_share)))

    @property
    def test_share(self) -> float:
        """For at least 100 test rows, at most 1,000, and never more than a fifth; none for a run without a test."""
        if not self.has_test:
            return 0.0
        return _share(100, 1000, 0.2, self.train.rows)

    @property
    def validation_share(self) -> float:
        """For at least 50 validation rows, at most 500, and never more than 15 %."""
        return _share(50, 500, 0.15, self.train.rows)

    @property
    def is_small_model(self) -> bool:
        """Whether the model is known, or named, to have fewer than a billion parameters."""
        return parameters_of(self.model) < SMALL_MODEL

    @property
    def instruction(self) -> str | None:
        """System message for rows of text and label that have none."""
        if self.train.format != "text_label" or self.train.has_system:
            return None
        listing = label_instruction(self.train.labels)
        if self.train.labels and len(listing) <= INSTRUCTION_CHARACTERS:
            return listing
        return "Classify the text. Answer with its label and nothing else."

    @property
    def row_tokens(self) -> int:
        """Tokens of a middling row, about, the instruction included."""
        return self.train.row_tokens.median + self._instruction_tokens

    @property
    def read_tokens(self) -> int:
        """Tokens that a model reads for a middling row: of a pair, the prompt with each reply; with a corpus, the
        passages of the second training."""
        passages = self.top_k * PASSAGE_TOKENS if self.corpus is not None else 0
        return self.row_tokens * (2 if self.train.kind == "preference" else 1) + passages

    @property
    def top_k(self) -> int:
        """Passages before a question."""
        return SMALL_TOP_K if self.is_small_model else 5

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest row that is trained or validated on, about."""
        longest = [p.row_tokens.longest for p in (self.train, self.validation) if p is not None]
        return max(longest) + self._instruction_tokens

    @property
    def _instruction_tokens(self) -> int:
        return round(estimate_tokens(self.instruction)) + MESSAGE_TOKENS if self.instruction else 0


# What was found


def require_same_kind(train: Profile, other: Profile | None) -> None:
    """Check that held-out rows are of the kind of the training rows.

    Raises:
        DataError: they are not.
    """
    if other is None:
        return
    mine, theirs = (rows_of(p) for p in (train, other))
    if mine != theirs:
        raise DataError(
            f"the rows are {rows_of(other)}, but {train.path} has {rows_of(train)}; expected the same", other.path
        )


def rows_of(found: Profile) -> str:
    """What the rows are, in words."""
    if found.is_raw_text:
        return "raw text"
    return {"preference": "preference pairs", "judged": "judged replies"}.get(found.kind, "conversations")


def findings(facts: Facts) -> list[str]:
    """What the rows are like, for the user."""
    train = facts.train
    lines = [f"{train.path}: {train.rows:,} rows in the format {train.format}"]
    lines.append(f"  task       {describe_task(train)}")
    for name, of in (("prompts", train.prompt_characters), ("replies", train.reply_characters)):
        if of.longest:
            lines.append(f"  {name:<10} {of.median:,} characters in the middle, {of.longest:,} at most")
    lines.append(
        f"  rows       about {facts.row_tokens:,} tokens in the middle, {facts.longest_tokens:,} at most (estimated)"
    )
    has = [name for name, there in (("tools", train.has_tools), ("system messages", train.has_system)) if there]
    lines.append(f"  with       {' and '.join(has) or 'neither tools nor system messages'}")
    lines.append(f"  repeats    {train.repeats:,} of {train.rows:,} rows ({train.repeat_share:.1%})")
    for name, other in (("test", facts.test), ("validation", facts.validation)):
        if other is not None:
            lines.append(f"{other.path}: {other.rows:,} rows for {name}")
    return [*lines, *_warnings(facts)]


def describe_task(train: Profile) -> str:
    """The kind of task in words."""
    task = task_of(train)
    return f"{task}: " + TASKS[task].format(labels=len(train.labels))


def task_of(train: Profile) -> str:
    """What `evaluation.task` calls the kind of the rows."""
    if train.is_raw_text:
        return "language"
    if train.format == "stepwise":
        return "steps"
    if train.format in TEXT_TASKS:
        return TEXT_TASKS[train.format]
    return {"preference": "pairs", "judged": "text"}.get(train.kind, train.kind)


def head_of(train: Profile) -> tuple[str, str] | None:
    """The objective that trains a head for these rows, and why; None: replies are learned."""
    task = task_of(train)
    if task == "label" and train.format == "text_label" and len(train.labels) > MANY_LABELS:
        return "classify", f"a head says which of {len(train.labels)} labels, and how sure it is"
    return HEADS.get(task)


def _warnings(facts: Facts) -> Iterator[str]:
    if facts.train.rows < 50:
        yield f"note: {facts.train.rows} rows are very few; differences between systems will hardly be told from chance"
    test = facts.test
    if test is not None and test.kind == "label" and (new := sorted(set(test.labels) - set(facts.train.labels))):
        yield f"note: {len(new)} labels of {test.path} never occur in {facts.train.path}, so they cannot be learned"
    if facts.longest_tokens * SAFETY > LARGEST_CONTEXT:
        yield (
            f"note: the longest row may have {facts.longest_tokens:,} tokens; training.max_tokens stays at "
            f"{LARGEST_CONTEXT}, and `luthier check` says which rows would be cut"
        )


def find_schema(train: Profile) -> tuple[Path | None, list[str]]:
    """schema.json beside the data, if it is a JSON Schema that the replies satisfy; and what to say about it."""
    path = train.path.parent / SCHEMA
    if train.kind != "json" or not path.is_file():
        return None, []
    from referencing.exceptions import Unresolvable

    from luthier.evaluation.schema import read_schema, validator_of

    try:
        schema = read_schema(path)
        validator = validator_of(schema)
        valid = sum(_satisfies(validator, reply) for reply in train.sample_replies)
    except (EvaluationError, Unresolvable, ValueError) as error:
        return None, [f"note: {path} is left out: {error}"]
    if schema.get("type") != "object" and "properties" not in schema:
        return None, [f"note: {path} is left out: it is no schema of an object"]
    if valid < 0.95 * len(train.sample_replies):
        looked = len(train.sample_replies)
        return None, [f"note: {path} is left out: only {valid} of the first {looked} replies satisfy it"]
    return path, [f"{path}: a JSON Schema that the replies satisfy; it becomes a metric"]


def _satisfies(validator: Any, reply: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(reply)))
    except (json.JSONDecodeError, RecursionError):
        return False


# The recipe


def render(facts: Facts) -> str:
    """The recipe as TOML text."""
    train = facts.train
    head = [
        f"# Written by `luthier init` for {_comment(train.path.name)}: {train.rows:,} rows, {describe_task(train)}.",
        "# Paths are read from this file's folder. Keys that are left out have defaults.",
        "",
        "seed = 0",
    ]
    body = [line for section in sections(facts) for line in _render_section(section)]
    offered = [f"# {line}".rstrip() for section in _offered(facts) for line in _render_section(section)]
    return "\n".join([*head, *body, *(["", OFFER] if offered else []), *offered]) + "\n"


def _comment(text: str) -> str:
    """Foreign text on a comment line: nothing in it can end the line."""
    return json.dumps(text, ensure_ascii=True)


def _render_section(section: Section) -> Iterator[str]:
    yield ""
    if section.note:
        yield from (f"# {line}" for line in section.note.splitlines())
    yield f"[{section.name}]"
    lines = [(write_toml({entry.key: entry.value}).rstrip(), entry.why) for entry in section.entries]
    width = max((len(line) for line, why in lines if why and len(line) <= 44), default=0)
    for line, why in lines:
        if len(line) > 44 and why:
            yield f"# {why}"
        yield f"{line:<{width}}  # {why}" if why and len(line) <= 44 else line


def sections(facts: Facts) -> list[Section]:
    """The tables of the recipe, in their order."""
    return [
        _model(facts),
        _data(facts),
        Section("adapter", [Entry("type", "lora", "small matrices beside the frozen weights"), Entry("rank", 16)]),
        _objective(facts),
        Section("optimizer", [Entry("type", "adamw"), _learning_rate(facts)]),
        Section("schedule", [Entry("type", "cosine", "warms up over the first steps, then falls to zero")]),
        _training(facts),
        *_retrieval(facts),
        *([_evaluation(facts), *_systems(facts)] if facts.has_test else []),
    ]


def _model(facts: Facts) -> Section:
    entries = [Entry("name", facts.model)]
    if facts.train.has_tools and "smollm2" in Path(facts.model).name.lower():
        entries.append(Entry("template", "chatml_tools", "the model's own template would drop the tools"))
    return Section("model", entries)


def _data(facts: Facts) -> Section:
    train = facts.train
    profiles = {"train": train, "validation": facts.validation, "test": facts.test}
    entries = [Entry(name, _relative(p.path, facts.folder)) for name, p in profiles.items() if p is not None]
    same = {p.format for p in profiles.values() if p is not None} == {train.format}
    entries.append(Entry("format", train.format if same else "auto", "found by looking at the rows"))
    if facts.instruction is not None:
        listed = (
            "names the labels"
            if facts.instruction == label_instruction(train.labels)
            else "the labels are too many to name"
        )
        entries.append(Entry("instruction", facts.instruction, f"System message of every row; {listed}."))
    if facts.validation is None:
        entries.append(Entry("validation_share", facts.validation_share, "chooses the best checkpoint"))
    if facts.test is None:
        entries.append(
            Entry(
                "test_share",
                facts.test_share,
                "nothing is chosen on these rows" if facts.has_test else "all rows train or validate",
            )
        )
    if train.repeats:
        entries.append(Entry("duplicates", "drop", f"{train.repeats:,} of {train.rows:,} rows repeat another"))
    return Section("data", entries)


def _objective(facts: Facts) -> Section:
    if facts.train.kind in COMPARED:
        objective, why = COMPARED[facts.train.kind]
        return Section(
            "objective",
            [
                Entry("type", objective, why),
                Entry("beta", 0.1, "pull towards the base model; higher stays closer"),
            ],
        )
    if task_of(facts.train) == "steps":
        return Section("objective", [Entry("type", "process_reward", "whether each step is right")])
    if (head := head_of(facts.train)) is not None:
        return Section("objective", [Entry("type", *head)])
    why = "every token of the text" if facts.train.is_raw_text else "loss on the replies only"
    return Section("objective", [Entry("type", "sft", why)])


def _learning_rate(facts: Facts) -> Entry:
    size = "below a billion parameters" if facts.is_small_model else "a billion parameters or more, or unknown"
    if facts.train.kind in COMPARED:
        name = COMPARED[facts.train.kind][0].upper()
        return Entry("learning_rate", 5e-5 if facts.is_small_model else 1e-5, f"for {name} with LoRA; model {size}")
    if task_of(facts.train) == "steps":
        return Entry("learning_rate", REWARD_RATE, "for a reward with LoRA")
    return Entry("learning_rate", 5e-4 if facts.is_small_model else 2e-4, f"for LoRA; model {size}")


def _training(facts: Facts) -> Section:
    epochs, per_step = plan_work(facts)
    steps = math.ceil(epochs * facts.trained_rows / per_step)
    longest = min(LARGEST_CONTEXT, max(128, 64 * math.ceil(facts.longest_tokens * SAFETY / 64)))
    seen = epochs * facts.trained_rows * facts.read_tokens
    note = (
        f"About {steps:,} steps over {_round(seen):,} tokens; `luthier estimate` tells time and memory on this machine."
    )
    if seen > 3 * TOKENS_OF_WORK:
        few = max(1, _round(steps / 10))
        note += f"\nThat is long without a GPU; for a first look run with --set training.steps={few}."
    return Section(
        "training",
        [
            Entry("epochs", epochs, f"passes over about {facts.trained_rows:,} rows"),
            Entry("rows_per_step", per_step),
            Entry("max_tokens", longest, f"the longest row has about {facts.longest_tokens:,}, estimated"),
            Entry("patience", 3, "stop after three validations without a lower loss"),
        ],
        note,
    )


def plan_work(facts: Facts) -> tuple[float, int]:
    """(epochs, rows per step): fewer rows are seen more often, and the work stays at minutes for some 1,000 rows."""
    rows = facts.trained_rows
    seen = min(MOST_ROWS_SEEN, max(LEAST_ROWS_SEEN, TOKENS_OF_WORK // max(facts.read_tokens, 1)))
    epochs = min(10.0, max(1.0, seen / rows))
    if facts.train.kind in COMPARED:
        epochs = min(epochs, 3.0)  # preferences overfit sooner than replies
    epochs = round(epochs * 2) / 2 if epochs < 3 else float(round(epochs))
    per_step = 4 if rows < 150 else 8 if rows < 5000 else 16 if rows < 20_000 else 32
    return epochs, per_step


def _evaluation(facts: Facts) -> Section:
    train = facts.train
    task, metrics = task_of(train), metrics_of(facts)
    entries = [Entry("task", task, describe_task(train).split(": ")[1])]
    entries += [Entry("metrics", metrics), Entry("primary_metric", metrics[0], "the one that decides")]
    if facts.schema is not None:
        entries.append(Entry("json_schema", _relative(facts.schema, facts.folder)))
    rows = facts.test.rows if facts.test else train.rows * facts.test_share
    tokens, budget = train.reply_tokens.median, WRITTEN_TOKENS
    if task in SCORED_TASKS:
        tokens, budget = facts.read_tokens, TOKENS_OF_WORK
    most = max(200, 50 * round(budget / max(tokens, 1) / 50))
    if rows * tokens > budget and most < round(rows):
        entries.append(Entry("max_rows", most, f"of {round(rows):,} test rows, to keep the evaluation short"))
    return Section("evaluation", entries)


def metrics_of(facts: Facts) -> list[str]:
    """Names of the metrics that fit the kind of answer, the deciding one first."""
    fewer = {
        "json": ["field_f1", "exact_match", "json_valid", *(["schema_valid"] if facts.schema else [])],
        "label": ["accuracy", "macro_f1", *(["calibration_error"] if head_of(facts.train) else [])],
        "text": ["rouge_l", "chrf"],
    }
    task = task_of(facts.train)
    return fewer.get(task) or list(choose_metrics(task))


def _retrieval(facts: Facts) -> list[Section]:
    if facts.corpus is None:
        return []
    note = "Passages for questions; `luthier retrieve` measures how often the right one is found."
    top_k = Entry("top_k", facts.top_k, "passages before a question; each costs time")
    return [Section("retrieval", [Entry("corpus", _relative(facts.corpus, facts.folder)), top_k], note)]


def _systems(facts: Facts) -> list[Section]:
    train = facts.train
    note = "What is compared, on the same test rows:"
    listing = label_instruction(train.labels)
    is_named = facts.instruction is None or facts.instruction == listing
    variants = []
    if not is_named and LISTED_BY_ZERO_SHOT < len(listing) <= BASELINE_CHARACTERS:
        variants = [Entry("variants", [listing], "Another prompt to try: without training, labels cannot be known.")]
    tuned = Section("evaluation.systems.fine_tuned", [], "the model that this run trains")
    if task_of(train) in SCORED_TASKS:
        return [Section("evaluation.systems.zero_shot", [], f"{note}\nthe base model as it is"), tuned]
    zero = Section("evaluation.systems.zero_shot", variants, f"{note}\nthe base model, with the best of a few prompts")
    shots = max(1, min(8, 1200 // max(train.turn_tokens.median, 1)))
    why = f"solved examples before each question, each about {train.turn_tokens.median:,} tokens"
    few = Section(
        "evaluation.systems.few_shot", [Entry("shots", shots, why)], "the base model, shown similar training rows"
    )
    retrieved = Section("evaluation.systems.rag", [], "the base model with retrieved passages")
    both = Section(
        "evaluation.systems.fine_tuned_few_shot",
        [Entry("shots", shots)],
        "the trained model, shown similar training rows where that helps",
    )
    read = Section(
        "evaluation.systems.fine_tuned_rag",
        [],
        "a second training, on the same rows with retrieved passages in their prompts",
    )
    if head_of(train) is not None:
        probe = Section(
            "evaluation.systems.linear_probe", [], "a linear classifier over a small encoder: trained in seconds"
        )
        return [zero, few, *([probe] if task_of(train) == "label" else []), tuned]
    if facts.corpus is None:
        return [zero, few, tuned, both]
    return [zero, few, retrieved, tuned, both, read]


def _offered(facts: Facts) -> list[Section]:
    """Further rungs, which are written as comments: what they need, no data file tells."""
    if task_of(facts.train) in SCORED_TASKS:
        return []
    at = "evaluation.systems."
    likelihood = Section(f"{at}label_likelihood", [], "the base model, by its likeliest label and not by its words")
    style = [
        Section(
            "evaluation.style",
            [Entry("criterion", "warm, brief, without jargon")],
            "which answers another model prefers, asked in both orders: docs/style.md",
        ),
        Section("evaluation.style.judge", [Entry("type", "local_model"), Entry("model", LARGER)]),
    ]
    return [
        *([likelihood] if task_of(facts.train) == "label" else []),
        Section(f"{at}optimized_prompt", [], "the base model with the best prompt that a budget finds"),
        Section(
            f"{at}larger",
            [Entry("type", "local_model"), Entry("model", LARGER)],
            "a larger model, asked as well as can be",
        ),
        Section(
            f"{at}hosted",
            [
                Entry("type", "remote"),
                Entry("base_url", "https://api.example.com/v1"),
                Entry("model", "name"),
                Entry("api_key_env", "API_KEY", "the variable that holds the key"),
                Entry("input_usd_per_million_tokens", 0.15),
                Entry("output_usd_per_million_tokens", 0.6),
                Entry("spend_limit_usd", 1.0, "never more than this"),
            ],
            "a model behind an OpenAI-compatible endpoint; the rows leave this machine",
        ),
        Section(
            f"{at}program",
            [Entry("type", "command"), Entry("command", ["python", "answer.py"])],
            "a program of yours: rules or a classic model",
        ),
        *(style if task_of(facts.train) == "text" else []),
    ]


# Small things


def label_instruction(labels: Sequence[str]) -> str:
    """An instruction that names the labels."""
    return f"Classify the text. Answer with exactly one of these labels and nothing else: {', '.join(labels)}"


def parameters_of(model: str) -> float:
    """Parameters of a model, as the catalogue or its name tells (`0.5b`, `135M`); infinite if neither does."""
    from luthier.models.catalog import known

    entry = known().get(model)
    if entry is not None:
        return entry.parameters
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z])", Path(model).name.lower())
    return float(sizes[0][0]) * {"m": 1e6, "b": 1e9}[sizes[0][1]] if sizes else math.inf


def _share(least: int, most: int, highest: float, rows: int) -> float:
    return round(min(highest, max(least / rows, min(0.1, most / rows))), 3) or most / rows


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:  # another drive, on Windows
        return path.resolve().as_posix()


def _round(value: float) -> int:
    """Two significant digits: it is an estimate."""
    digits = max(0, len(str(int(value))) - 2)
    return int(round(value, -digits))
