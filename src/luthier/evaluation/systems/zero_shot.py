"""The base model with a prompt alone, and a prompt that somebody tried to make good.

A baseline that was never given a chance proves nothing. So a few additions to the row's own system prompt, fitted to
the task (the allowed keys, the labels, "nothing but JSON"), compete on validation rows; the winner answers the test
rows. Test rows play no part in the choice.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.systems.base import Answers, Context, System, prediction, with_instruction
from luthier.examples import Conversation

MAX_LISTED = 2000
"""Characters of keys or labels that an instruction may list."""


class ZeroShot(System):
    """The base model, asked with the best of a few prompts."""

    instruction: str = ""
    """Always added to the system prompt, before any variant."""
    variants: tuple[str, ...] = ()
    """More additions that compete with the built-in ones."""
    tune_rows: int = Field(24, ge=0)
    """Validation rows on which the additions compete; 0: no addition is tried, `instruction` alone is used."""

    def answer(self, rows: Sequence[Conversation], context: Context) -> Answers:
        """The base model's answers with the winning prompt; `details` records every candidate and its score."""
        with context.adapter_disabled():
            winner, tried = self._choose(context)
            prompts = [with_instruction(row.prompt, winner) for row in rows]
            answers, seconds = answer_with_model(rows, prompts, context, "zero_shot")
        return Answers(answers, seconds, {"instruction": winner, "tried": tried})

    def _choose(self, context: Context) -> tuple[str, list[dict[str, Any]]]:
        """The winning addition, and what each scored; the earlier one wins a tie."""
        rows = context.validation[: self.tune_rows]
        candidates = _joined(self.instruction, ["", *self.variants, *suggested(context)])
        if len(rows) == 0 or len(candidates) == 1:
            return candidates[0], []
        metric = context.primary_metric
        tried = []
        for number, candidate in enumerate(candidates, 1):
            prompts = [with_instruction(row.prompt, candidate) for row in rows]
            what = f"zero_shot: prompt {number} of {len(candidates)}"
            needs_targets = metric.needs == "logprobs"
            answers, _ = answer_with_model(rows, prompts, context, what, score_targets=needs_targets)
            statistics = [metric.statistics(prediction(r, a)) for r, a in zip(rows, answers, strict=True)]
            tried.append((metric.value(np.array(statistics, dtype=np.float64)), candidate))
        sign = 1 if metric.higher_is_better else -1
        best = max(tried, key=lambda t: sign * t[0])[1]
        return best, [{"instruction": c, "validation_score": score, "rows": len(rows)} for score, c in tried]


def _joined(always: str, additions: Iterable[str]) -> list[str]:
    """Each addition after what is always there, without repeats, in order."""
    return list(dict.fromkeys("\n".join(part for part in (always, addition) if part) for addition in additions))


def suggested(context: Context) -> list[str]:
    """Additions to the system prompt that fit the task; learned from training rows and schema, never from test rows."""
    if context.task == "json":
        return _for_json(context)
    if context.task == "label":
        labels = sorted({str(t) for t in _targets(context.train)})
        listed = "Allowed labels: " + ", ".join(labels) + "."
        answer = "Answer with the label alone, exactly as it is written, and nothing else."
        return [answer, f"{listed}\n{answer}"] if labels and len(listed) <= MAX_LISTED else [answer]
    if context.task == "tool_calls":
        return ["If a tool fits the request, call it with every required argument. If none fits, say so in words."]
    return ["Answer in the form that is asked for, briefly, and add nothing."]


def _for_json(context: Context) -> list[str]:
    strict = "Answer with one JSON object and nothing else: no explanation and no code block."
    keys = list((context.json_schema or {}).get("properties", {})) or _keys(context.train)
    if not keys:
        return [strict]
    listed = f"Allowed keys: {', '.join(keys)}. Leave out a key whose value is not stated."
    form = "The form is " + json.dumps({key: "..." for key in keys}, ensure_ascii=False) + "."
    return [strict, f"{strict}\n{listed}", f"{strict} {form}"] if len(form) <= MAX_LISTED else [strict]


def _keys(train: Sequence[Conversation]) -> list[str]:
    """Top-level keys of the training targets, in the order in which they appear."""
    keys: dict[str, None] = {}
    for target in _targets(train):
        value = target
        if isinstance(target, str):
            try:
                value = parse(target)
            except NotJson:
                continue
        if isinstance(value, Mapping):
            keys.update(dict.fromkeys(map(str, value)))
    return list(keys)


def _targets(train: Sequence[Conversation]) -> list[Any]:
    return [row.target if row.completion is None or row.target is not None else row.completion.content for row in train]
