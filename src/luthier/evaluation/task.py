"""What kind of answer the rows want, and metrics for it."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from luthier import registry
from luthier.config import build
from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.fitting import SCORED_TASKS as SCORED_TASKS, choose_metrics as choose_metrics
from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.metrics.base import Metric
from luthier.examples import Conversation, Document, Example, Judged, Preference
from luthier.recipe import Task as Task

METRICS = "luthier.evaluation.metrics"
LONGEST_LABEL = 80
ROWS_LOOKED_AT = 2000

HEAD_TASKS: Mapping[str, Task] = {"reward": "rewards", "process_reward": "steps"}
"""What is measured of a training with a head, by the head's kind."""

TEXT_HEAD_TASKS: Mapping[str, Task] = {
    "classify": "label",
    "multi_label": "labels",
    "regress": "number",
    "token_classify": "spans",
}
"""What the head of a training says of texts, by its kind: systems that write are asked for the same."""
SURE_METRICS = ("calibration_error", "brier")
"""Beside those of the task `label`, where a system tells how sure it is."""


def detect_task(examples: Sequence[Example]) -> Task:
    """The kind of answer: `language` for raw text, `pairs` for preference pairs, `tool_calls` where rows offer tools,
    `answers` where every target lists acceptable answers and the reply is one of them, `json` where every target is a
    JSON object or list, `label` where few short answers come again and again, else
    `text`. Give it training rows: there are more of them."""
    kinds = {type(example) for example in examples}
    if kinds == {Document}:
        return "language"
    if kinds == {Preference}:
        return "pairs"
    rows = [example for example in examples[:ROWS_LOOKED_AT] if isinstance(example, Conversation)]
    if any(row.tools or (row.completion is not None and row.completion.tool_calls) for row in rows):
        return "tool_calls"
    targets = [_target(row) for row in rows]
    if rows and all(_lists_answers(row) for row in rows):
        return "answers"
    if targets and all(_is_json(target) for target in targets):
        return "json"
    texts = [str(target).strip() for target in targets]
    short = all(0 < len(text) <= LONGEST_LABEL and "\n" not in text for text in texts)
    given = bool(rows) and all(isinstance(row.target, str) for row in rows)
    return "label" if short and texts and (given or len(set(texts)) <= len(texts) / 3) else "text"


def _target(row: Conversation) -> Any:
    if row.target is not None:
        return row.target
    return row.completion.content if row.completion is not None else ""


def _lists_answers(row: Conversation) -> bool:
    """Whether the target is a list of texts and the reply one of these; the reply to a JSON list is its JSON text."""
    listed = isinstance(row.target, list | tuple) and all(isinstance(text, str) for text in row.target)
    return listed and (row.completion is None or row.completion.content in row.target)


def _is_json(target: Any) -> bool:
    if isinstance(target, str):
        try:
            target = parse(target)
        except NotJson:
            return False
    return isinstance(target, dict | list)


def require_rows(task: str, rows: Sequence[Example]) -> None:
    """Check that the test rows are of the kind that the task measures.

    Raises:
        EvaluationError: a row is not; it names the row.
    """
    wanted: dict[str, tuple[type, ...]] = {
        "language": (Document,),
        "pairs": (Preference,),
        "rewards": (Preference,),
        "steps": (Conversation,),
    }
    kinds = wanted.get(task, (Conversation, Preference, Judged))
    odd = next((row for row in rows if not isinstance(row, kinds)), None)
    if odd is not None:
        raise EvaluationError(
            f"{odd.where}: the task {task!r} cannot be measured on a row of the kind {type(odd).__name__}; set "
            'evaluation.task = "auto", or name other rows in data.test'
        )


def require_metrics(task: str, metrics: Mapping[str, Metric]) -> None:
    """Check that the task gives the metrics what they look at.

    Raises:
        EvaluationError: a metric of written answers where none are written, or of pairs where there are none.
    """
    scored = {"language": ("logprobs",), "pairs": ("logprobs", "pairs"), "rewards": ("rewards",), "steps": ("steps",)}
    given = scored.get(task, ("generation", "logprobs", *(("probabilities",) if task == "label" else ())))
    for name, metric in metrics.items():
        if metric.needs not in given:
            fitting = ", ".join(choose_metrics(task))
            raise EvaluationError(f"the metric {name} measures nothing in the task {task!r}; those that fit: {fitting}")


def build_metrics(
    names: Sequence[str], json_schema: str | None = None, rewards: Mapping[str, Any] | None = None
) -> dict[str, Metric]:
    """Metrics by name; one that needs the schema gets it, and `reward` its settings.

    Raises:
        RecipeError: there is no metric of that name.
        EvaluationError: a metric needs a schema and none is given.
    """
    built = {}
    for name in names:
        cls = registry.load_class(METRICS, name, Metric)  # type: ignore[type-abstract]
        values: dict[str, Any] = {}
        if "json_schema" in cls.model_fields:
            if json_schema is None:
                raise EvaluationError(
                    f"the metric {name} needs a JSON Schema; name the file in evaluation.json_schema, or leave it out"
                )
            values["json_schema"] = json_schema
        if "rewards" in cls.model_fields and rewards is not None:
            values |= rewards
        built[name] = build(cls, values, ["evaluation", "metrics", name])
    return built


def room_for_answers(template: Template, train: Sequence[Conversation]) -> tuple[int, bool]:
    """Room for an answer: the longest reply of the training rows in tokens, and a quarter more; at least 16.

    Returns:
        The most tokens of an answer (0: no training row has a reply), and whether some training reply says one span
        over and over, as an answer that hangs in a loop does.

    Raises:
        TemplateError: the template refuses a row.
    """
    from luthier.models.generate import loops  # loads torch, which nobody else here needs

    template = copy.copy(template)
    template.max_tokens = None  # training may cut rows; the answer to them is as long as it is
    longest, looping = 0, False
    for row in train:
        if row.completion is not None:
            asked = Conversation((*row.prompt, row.completion), row.tools, row.where, row.id)
            reply = template.reply_row(asked, (row.completion,))
            longest = max(longest, reply.trained_tokens)
            ids = reply.ids[len(reply.ids) - reply.trained_tokens :]
            looping = looping or any(loops(ids[:end]) for end in range(0, len(ids) + 1, 8))
    return max(16, math.ceil(longest * 1.25)) if longest else 0, looping
