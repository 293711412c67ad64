"""The best of a few prompts: additions that fit the task, and a competition between them on validation rows.

A baseline that was never given a chance proves nothing. Additions are learned from training rows and the schema, the
competition sees validation rows, and test rows play no part in either.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from luthier.evaluation.answering import Prompts, answer_with_model
from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.systems._forms import form_of, keys_of, schema_of
from luthier.evaluation.systems.base import (
    Context,
    after_question,
    prediction,
    require_measurable,
    with_instruction,
)
from luthier.examples import Conversation, Message

MAX_LISTED = 2000
"""Characters of keys, labels or a form that an addition may list."""
MAX_AFTER_QUESTION = 600
"""A longer addition stands in the system message only, where all rows share it and it is computed once."""


class Candidate(Protocol):
    """A way to ask that competes with others."""

    def dump(self) -> dict[str, Any]:
        """What it is, for the records."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass(frozen=True)
class Addition:
    """What is added to a row's own prompt, and where."""

    text: str = ""
    place: str = "system"
    """`system`: at the end of the system message. `user`: at the end of the question."""

    def apply(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages with the addition in them."""
        return with_instruction(messages, self.text) if self.place == "system" else after_question(messages, self.text)

    def dump(self) -> dict[str, Any]:
        """`addition` and `place`, for the records."""
        return {"addition": self.text, "place": self.place}


def additions(texts: Sequence[str]) -> list[Addition]:
    """No addition, then each text in the system message and, if it is short, after the question."""
    found = [Addition()]
    for text in texts:
        found.append(Addition(text))
        if len(text) <= MAX_AFTER_QUESTION:
            found.append(Addition(text, "user"))
    return list(dict.fromkeys(found))


def has_room(row: Conversation, prompt: tuple[Message, ...], context: Context, answer_tokens: int = 1) -> bool:
    """Whether an answer of so many tokens to the prompt fits in the model's context."""
    return len(context.template.prompt_ids(prompt, row.tools)) + answer_tokens <= context.loaded.max_tokens


def choose(
    candidates: Sequence[AnyCandidate],
    ask: Callable[[Sequence[Conversation], AnyCandidate], Prompts],
    tune_rows: int,
    context: Context,
    name: str,
) -> tuple[AnyCandidate, list[dict[str, Any]]]:
    """The candidate with the best primary metric on validation rows, and what each scored.

    Args:
        candidates: at least one; the earlier one wins a tie, and the first one wins where there are no rows.
        ask: the prompts of rows under a candidate.
        tune_rows: how many validation rows, the first that have a wanted reply and leave room for an answer.
        context: model, template and validation rows.
        name: of the system, for the progress display.

    Raises:
        EvaluationError: a validation row has a target that the metric cannot use.
    """
    rows = rows_to_compete_on(context, tune_rows, lambda row: ask([row], candidates[0])[0])
    if not rows:
        return candidates[0], []
    metric = context.primary_metric
    prompts = [prompt for candidate in candidates for prompt in ask(rows, candidate)]
    asked = rows * len(candidates)  # all at once: a large batch costs little more than a small one
    what = f"{name}: trying {len(candidates)} prompts"
    trying = replace(context, alone_rows=0)
    answers, _ = answer_with_model(asked, prompts, trying, what, score_targets=metric.needs == "logprobs")
    statistics = np.array(metric.statistics_of([prediction(r, a) for r, a in zip(asked, answers, strict=True)]))
    scores = [metric.value(part) for part in np.split(statistics, len(candidates))]
    sign = 1 if metric.higher_is_better else -1
    ranks = [-math.inf if math.isnan(score) else sign * score for score in scores]
    tried = [
        {**candidate.dump(), "validation_score": score if math.isfinite(score) else None, "rows": len(rows)}
        for candidate, score in zip(candidates, scores, strict=True)
    ]
    return candidates[ranks.index(max(ranks))], tried


def rows_to_compete_on(
    context: Context, count: int, plainest: Callable[[Conversation], tuple[Message, ...]]
) -> list[Conversation]:
    """The first validation rows that have a wanted reply and, asked plainly, leave room for an answer.

    Raises:
        EvaluationError: one has a target that the primary metric cannot use.
    """
    fitting = (r for r in context.validation if r.completion is not None and has_room(r, plainest(r), context))
    rows = list(itertools.islice(fitting, count))
    require_measurable(rows, [context.primary_metric])
    return rows


def suggested(context: Context) -> list[str]:
    """Additions that fit the task, the one that says most last; learned from training rows and schema alone."""
    if context.task == "json":
        return _for_json(context)
    if context.task == "label":
        return _for_labels(context)
    if context.task == "tool_calls":
        return ["If a tool fits the request, call it with every required argument. If none fits, say so in words."]
    if context.task == "answers":
        return ["Answer with as few words as possible, and add nothing."]
    return ["Answer in the form that is asked for, briefly, and add nothing."]


def _for_labels(context: Context) -> list[str]:
    labels = sorted({str(target) for target in _targets(context.train)})
    listed = "Allowed labels: " + ", ".join(labels) + "."
    answer = "Answer with the label alone, exactly as it is written, and nothing else."
    return [answer, f"{listed}\n{answer}"] if labels and len(listed) <= MAX_LISTED else [answer]


def _for_json(context: Context) -> list[str]:
    schema = context.json_schema or {}
    form = form_of(schema, MAX_LISTED)
    if form is None:
        schema = schema_of([value for target in _targets(context.train) for value in _values(target)])
        form = form_of(schema, MAX_LISTED)
    keys, all_required = keys_of(schema)
    what = "list" if form is not None and form.startswith("[") else "object"
    alone = f"Answer with one JSON {what} and nothing else"
    left_out = "" if all_required or not keys else " Leave out a key whose value is not stated."
    found = []
    if keys and len(", ".join(keys)) <= MAX_LISTED:
        found.append(f"{alone}. Allowed keys: {', '.join(keys)}.{left_out}")
    if form is not None:
        chosen = ', where "|" stands between the values to choose from' if " | " in form else ""
        found.append(f"{alone}, in this form{chosen}: {form}{left_out}")
    return found or [f"{alone}: no explanation and no code block."]


def _values(target: Any) -> list[Any]:
    """The JSON value of a target; nothing if it is a text that is not JSON."""
    try:
        return [parse(target) if isinstance(target, str) else target]
    except NotJson:
        return []


def _targets(train: Sequence[Conversation]) -> list[Any]:
    """What the training rows want: the target where there is one, else the text of the reply."""
    given = [row.completion.content if row.completion and row.target is None else row.target for row in train]
    return [target for target in given if target is not None]
