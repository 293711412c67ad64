"""The base model with a prompt alone, and a prompt that somebody tried to make good.

A baseline that was never given a chance proves nothing. So a few additions to the row's own prompt, fitted to the task
(the allowed keys, the form, the labels), compete on validation rows, each in the system message and after the
question; the winner answers the test rows. Test rows play no part in the choice. Untrained models are wordy, so their
answers may be longer than those of the model that learned the format.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.metrics._json import NotJson, parse
from luthier.evaluation.systems.base import Answers, Context, System, after_question, prediction, with_instruction
from luthier.examples import Conversation, Message

MAX_LISTED = 2000
"""Characters of keys or labels that an addition may list."""
MAX_AFTER_QUESTION = 600
"""A longer addition stands in the system message only, where all rows share it and it is computed once."""


@dataclass(frozen=True)
class Addition:
    """What is added to a row's own prompt, and where."""

    text: str = ""
    place: str = "system"
    """`system`: at the end of the system message. `user`: at the end of the question."""

    def apply(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages with the addition in them."""
        return with_instruction(messages, self.text) if self.place == "system" else after_question(messages, self.text)


class ZeroShot(System):
    """The base model, asked with the best of a few prompts."""

    instruction: str = ""
    """Always added to the system message, before any addition that competes."""
    variants: tuple[str, ...] = ()
    """More additions that compete with the built-in ones."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which the additions compete; 0: none is tried, `instruction` alone is used."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def answer(self, rows: Sequence[Conversation], context: Context) -> Answers:
        """The base model's answers with the winning prompt; `details` records every candidate and its score."""
        context = replace(context, max_new_tokens=math.ceil(context.max_new_tokens * self.answer_room))
        with context.adapter_disabled():
            winner, tried = self._choose(context)
            answers, seconds = answer_with_model(rows, self._prompts(rows, winner), context, "zero_shot")
        chosen = {"instruction": self.instruction, "addition": winner.text, "place": winner.place}
        return Answers(answers, seconds, {**chosen, "tried": tried})

    def _prompts(self, rows: Sequence[Conversation], addition: Addition) -> list[tuple[Message, ...]]:
        return [addition.apply(with_instruction(row.prompt, self.instruction)) for row in rows]

    def _choose(self, context: Context) -> tuple[Addition, list[dict[str, Any]]]:
        """The winning addition, and what each scored; the earlier one wins a tie, and no addition is the first."""
        rows = [row for row in context.validation if row.completion is not None][: self.tune_rows]
        candidates = additions([*self.variants, *suggested(context)])
        if not rows:
            return Addition(), []
        metric = context.primary_metric
        prompts = [prompt for candidate in candidates for prompt in self._prompts(rows, candidate)]
        asked = rows * len(candidates)  # all at once: a large batch costs little more than a small one
        what = f"zero_shot: trying {len(candidates)} prompts"
        answers, _ = answer_with_model(asked, prompts, context, what, score_targets=metric.needs == "logprobs")
        statistics = np.array([metric.statistics(prediction(r, a)) for r, a in zip(asked, answers, strict=True)])
        values = [metric.value(part) for part in np.split(statistics, len(candidates))]
        tried = list(zip(values, candidates, strict=True))
        sign = 1 if metric.higher_is_better else -1
        best = max(tried, key=lambda t: sign * t[0])[1]
        return best, [
            {"addition": c.text, "place": c.place, "validation_score": score, "rows": len(rows)} for score, c in tried
        ]


def additions(texts: Sequence[str]) -> list[Addition]:
    """No addition, then each text in the system message and, if it is short, after the question."""
    found = [Addition()]
    for text in texts:
        found.append(Addition(text))
        if len(text) <= MAX_AFTER_QUESTION:
            found.append(Addition(text, "user"))
    return list(dict.fromkeys(found))


def suggested(context: Context) -> list[str]:
    """Additions that fit the task; learned from training rows and schema, never from test rows."""
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
    keys = list((context.json_schema or {}).get("properties", {})) or _keys(context.train)
    if not keys or len(", ".join(keys)) > MAX_LISTED:
        return ["Answer with one JSON object and nothing else: no explanation and no code block."]
    form = json.dumps({key: "..." for key in keys}, ensure_ascii=False)
    return [
        f"Answer with one JSON object and nothing else. Allowed keys: {', '.join(keys)}. "
        "Leave out a key whose value is not stated.",
        f"Reply with JSON only, in this form: {form}",
    ]


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
