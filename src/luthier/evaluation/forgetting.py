"""What training cost in general ability: multiple choice and perplexity on general text, before and after.

Before is the same model with its adapter off, so both sides see the same items and differences are paired. An answer
is chosen by likelihood, once divided by its length in bytes and once as it is: neither is right for every test, so both
are reported. Text is scored in windows of 128 tokens, each by itself: a window is what intervals and tests count, and
many short ones cost no more than a few long ones.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from luthier.data.write import atomic_text
from luthier.errors import EvaluationError
from luthier.evaluation.answering import group_rows
from luthier.evaluation.metrics.accuracy import Accuracy
from luthier.evaluation.metrics.base import Array, Metric
from luthier.evaluation.metrics.perplexity import Perplexity
from luthier.evaluation.probe import Question, questions
from luthier.evaluation.significance import compare, finite, metric_interval, minimum_detectable_effect
from luthier.evaluation.systems.base import Progress, no_progress
from luthier.examples import Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.generate import score_choices_batch
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.recipe import ForgettingSettings

WINDOW_TOKENS = 128
BATCH_TOKENS = 1024
"""Tokens of text scored at once."""
LEAST_TOKENS = 16
"""Of a window: a shorter one is left out."""
CLEAR_ACCURACY_LOSS = 0.05
CLEAR_PERPLEXITY_RISE = 0.10
"""As a share of the perplexity before."""

Half: TypeAlias = Literal["selection", "confirmation"]

NORMALIZED = "multiple_choice_accuracy"
RAW = "multiple_choice_accuracy_raw"
TEXT = "text_perplexity"


@dataclass(frozen=True)
class Items:
    """What ability is measured on."""

    questions: tuple[Question, ...]
    windows: tuple[tuple[int, ...], ...]
    """Token ids of general text; the first of each window only gives context."""
    sources: Mapping[str, str]
    """Where both came from, for the report."""


@dataclass(frozen=True)
class Loss:
    """How much of a measure was lost, as a share of what it was before, with its interval."""

    measure: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ability:
    """One model on all items: per-item statistics by measure."""

    statistics: Mapping[str, Array]


def load_items(settings: ForgettingSettings, loaded: LoadedModel) -> Items:
    """The questions and the text that the settings name.

    Raises:
        EvaluationError: a file is missing or not of the form expected (with the line), or the text is too short.
    """
    asked: tuple[Question, ...] = ()
    if settings.multiple_choice == "builtin":
        asked = tuple(questions()[: settings.max_rows])
    elif settings.multiple_choice != "none":
        asked = tuple(read_questions(Path(settings.multiple_choice))[: settings.max_rows])
    text = ""
    if settings.text == "builtin":
        text = builtin_text()
    elif settings.text != "none":
        text = read_text(Path(settings.text))
    windows = _windows(text, loaded, settings.max_tokens) if text else ()
    if text and not windows:
        raise EvaluationError(
            f"evaluation.forgetting.text = {settings.text!r}: under {LEAST_TOKENS} tokens, too few for a perplexity; "
            'name a longer text, or "none"'
        )
    return Items(asked, windows, {"multiple_choice": settings.multiple_choice, "text": settings.text})


def half_of(items: Items, half: Half) -> Items:
    """Every other item, by a hash of what it says, so that one that is added moves no other.

    A remedy that was chosen by what it forgot on some items looks better on these than it is (Cawley and Talbot 2010):
    it is chosen on one half and reported on the other.
    """
    questions = tuple(q for q in items.questions if _is_in(half, [q.question, *q.choices]))
    windows = tuple(w for w in items.windows if _is_in(half, list(w)))
    used = "by which remedies were chosen" if half == "selection" else "by which no remedy was chosen"
    return Items(questions, windows, {name: f"{source}, the half {used}" for name, source in items.sources.items()})


def _is_in(half: Half, content: list[Any]) -> bool:
    digest = hashlib.sha256(json.dumps(content).encode()).digest()
    return (digest[0] % 2 == 0) == (half == "selection")


def measure_ability(
    loaded: LoadedModel, items: Items, what: str = "general ability", on_progress: Progress = no_progress
) -> Ability:
    """The model's answers to the questions and its log-probability of the text, in whatever state its adapter is."""
    statistics: dict[str, Array] = {}
    if items.questions:
        scores = score_choices_batch(
            loaded,
            [_tokens(question, loaded) for question in items.questions],
            on_progress=lambda done, total: on_progress(f"{what}: questions", done, total),
        )
        normalized = [[s / _bytes(c) for s, c in zip(row, q.choices, strict=True)] for row, q in _zip(scores, items)]
        statistics[NORMALIZED] = _right(normalized, items.questions)
        statistics[RAW] = _right(scores, items.questions)
    if items.windows:
        statistics[TEXT] = _score_text(loaded, items.windows, what, on_progress)
    return Ability(statistics)


def _zip(scores: list[list[float]], items: Items) -> list[tuple[list[float], Question]]:
    return list(zip(scores, items.questions, strict=True))


def _bytes(choice: str) -> int:
    return max(1, len(choice.encode()))


def _right(scores: Sequence[Sequence[float]], asked: Sequence[Question]) -> Array:
    """(N, 2): 1 where the most likely choice is the right one, and 1."""
    return np.array([[float(int(np.argmax(s)) == q.answer), 1.0] for s, q in zip(scores, asked, strict=True)])


def _tokens(question: Question, loaded: LoadedModel) -> tuple[list[int], list[list[int]]]:
    """The prompt and the continuation of each choice; a `_` in the question is a blank that the choice fills."""
    if question.question.count("_") == 1:
        before, after = question.question.split("_")
        prompt, continuations = before.rstrip(), [f" {choice}{after}" for choice in question.choices]
    else:
        prompt = f"Question: {question.question}\nAnswer:"
        continuations = [f" {choice}" for choice in question.choices]
    ids = loaded.tokenizer(prompt or "\n").input_ids
    return ids, [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in continuations]


@torch.inference_mode()
def _score_text(loaded: LoadedModel, windows: Sequence[tuple[int, ...]], what: str, on_progress: Progress) -> Array:
    """(windows, 2): negative log-probability and tokens of each window."""
    rows = [Row(ids, (0.0, *(1.0,) * (len(ids) - 1))) for ids in windows]
    parts: list[list[float]] = []
    scorer = Scorer(loaded.model)
    with evaluating(loaded.model):
        for group in group_rows(rows, BATCH_TOKENS):
            batch = build_batch(group).to(loaded.device)
            sums = batch.sum_rows(scorer.token_logprobs(batch)).tolist()
            parts.extend([-total, float(len(row.ids) - 1)] for total, row in zip(sums, group, strict=True))
            on_progress(f"{what}: text", len(parts), len(rows))
    return np.array(parts)


def measure_forgetting(
    loaded: LoadedModel,
    adapter_disabled: Callable[[], AbstractContextManager[None]],
    settings: ForgettingSettings,
    confidence: float = 0.95,
    on_progress: Progress = no_progress,
) -> dict[str, Any]:
    """General ability with the adapter off and on, as `forgetting.json` holds it.

    Raises:
        EvaluationError: the items cannot be read.
    """
    items = load_items(settings, loaded)
    with adapter_disabled():
        before = measure_ability(loaded, items, "before training", on_progress)
    after = measure_ability(loaded, items, "after training", on_progress)
    return compare_ability(before, after, items, confidence)


def compare_ability(before: Ability, after: Ability, items: Items, confidence: float = 0.95) -> dict[str, Any]:
    """Each measure before and after with intervals and the paired change, and the verdict."""
    measures = []
    for name, statistics in before.statistics.items():
        metric = _metric(name)
        change = compare(metric, after.statistics[name], statistics, confidence)
        measures.append(
            {
                "name": name,
                "unit": _UNITS[name],
                "n": len(statistics),
                "tokens": int(statistics[:, 1].sum()) if name == TEXT else None,
                "higher_is_better": metric.higher_is_better,
                "before": metric_interval(metric, statistics, confidence).dump(),
                "after": metric_interval(metric, after.statistics[name], confidence).dump(),
                "difference": {
                    "value": finite(change.difference),
                    "low": finite(change.low),
                    "high": finite(change.high),
                    "p_value": finite(change.p_value),
                },
                "minimum_detectable_effect": finite(minimum_detectable_effect(change.standard_error, confidence)),
            }
        )
    return {"measures": measures, "verdict": verdict(measures), "sources": dict(items.sources)}


_UNITS = {
    NORMALIZED: "share right, choice by log-likelihood per byte",
    RAW: "share right, choice by log-likelihood",
    TEXT: "perplexity per token",
}


def _metric(name: str) -> Metric:
    return Perplexity() if name == TEXT else Accuracy()


def verdict(measures: Sequence[Mapping[str, Any]]) -> str:
    """`none measured`, `slight` or `clear`, from the length-normalized questions and the text.

    A loss counts if its interval excludes no change. It is clear if it is more than 5 points of accuracy, or 10 % of
    the perplexity; a smaller one is slight. With no measure at all nothing was measured either.
    """
    worst = "none measured"
    for measure in measures:
        change, sign = measure["difference"], 1 if measure["higher_is_better"] else -1
        bounds = [change["low"], change["high"]]
        if measure["name"] == RAW or None in bounds:
            continue
        loss = -sign * change["value"]
        certain = max(sign * bound for bound in bounds) < 0
        limit = CLEAR_PERPLEXITY_RISE * measure["before"]["value"] if measure["name"] == TEXT else CLEAR_ACCURACY_LOSS
        if certain and loss > limit:
            return "clear"
        if certain:
            worst = "slight"
    return worst


def worst_loss(measures: Sequence[Mapping[str, Any]]) -> Loss | None:
    """The measure that lost the largest share of what it was before; None if nothing was measured.

    Negative where it was better after training. The choice by raw likelihood is left out, as in `verdict`.
    """
    found = []
    for measure in measures:
        change, before = measure["difference"], measure["before"]["value"]
        if measure["name"] == RAW or not before or None in (change["value"], change["low"], change["high"]):
            continue
        sign = -1 if measure["higher_is_better"] else 1
        low, high = sorted((sign * change["low"] / before, sign * change["high"] / before))
        found.append(Loss(measure["name"], sign * change["value"] / before, low, high))
    return max(found, key=lambda loss: loss.value, default=None)


def write_forgetting(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `forgetting.json` into a run's folder.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_text(folder / "forgetting.json") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_questions(path: Path) -> list[Question]:
    """Multiple-choice questions from JSONL: `question`, `choices` (two or more texts), `answer` (0-based index).

    Raises:
        EvaluationError: the file is missing, or a line is not of that form.
    """
    found = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        values = _object(path, number, line)
        question, choices, answer = values.get("question"), values.get("choices"), values.get("answer")
        if not (
            isinstance(question, str)
            and isinstance(choices, list)
            and len(choices) >= 2
            and all(isinstance(choice, str) and choice for choice in choices)
            and isinstance(answer, int)
            and not isinstance(answer, bool)
            and 0 <= answer < len(choices)
        ):
            raise EvaluationError(
                f"{path}, line {number}: expected question (text), choices (two or more texts) and answer (the index "
                f"of the right one, from 0); found {line.strip()[:120]}"
            )
        found.append(
            Question(question, tuple(choices), answer, str(values.get("source", "")), str(values.get("id", number)))
        )
    if not found:
        raise EvaluationError(f"{path}: no question in it")
    return found


def read_text(path: Path) -> str:
    """General text: a plain-text file, or the `text` fields of a JSONL file, with empty lines between.

    Raises:
        EvaluationError: the file is missing or empty, or a line of the JSONL has no `text`.
    """
    lines = _lines(path)
    if path.suffix not in (".jsonl", ".json"):
        text = "\n".join(lines)
    else:
        parts = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                value = _object(path, number, line).get("text")
                if not isinstance(value, str):
                    raise EvaluationError(
                        f"{path}, line {number}: expected a text in `text`, found {line.strip()[:120]}"
                    )
                parts.append(value)
        text = "\n\n".join(parts)
    if not text.strip():
        raise EvaluationError(f"{path}: no text in it")
    return text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); evaluation.forgetting names it, `builtin` needs no file"
        ) from None


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{path}, line {number}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise EvaluationError(f"{path}, line {number}: expected an object, found {line.strip()[:120]}")
    return values


@cache
def builtin_text() -> str:
    """English prose that every Python has: the topics of `help()`. It is technical prose, about one language, and it
    differs a little between Python versions; name a file of your own where that matters."""
    from pydoc_data.topics import topics

    paragraphs = []
    for name in sorted(topics):
        text = inspect.cleandoc(topics[name])
        paragraphs += [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if _is_prose(block)]
    return "\n\n".join(paragraphs)


def _is_prose(block: str) -> bool:
    """Sentences, not headings, grammars, signatures, tables or code."""
    text = " ".join(block.split())
    if len(text) < 120 or not text[0].isupper() or not text.endswith((".", ":")):
        return False
    if any(mark in text for mark in ("::=", ">>>", "***", "===", "---", "|", "~~~")):
        return False
    return sum(c.isalpha() or c.isspace() for c in text) >= 0.88 * len(text)


def _windows(text: str, loaded: LoadedModel, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The first `max_tokens` tokens in windows; a last one of under LEAST_TOKENS is left out."""
    ids = _encode_start(text, loaded, max_tokens)
    size = min(WINDOW_TOKENS, loaded.max_tokens)
    start = _bos(loaded)
    step = size - len(start)
    parts = [ids[i : i + step] for i in range(0, len(ids), step)]
    return tuple((*start, *part) for part in parts if len(part) >= LEAST_TOKENS)


def _encode_start(text: str, loaded: LoadedModel, max_tokens: int) -> list[int]:
    """The first `max_tokens` tokens. Only as much text is encoded as is likely needed: few tokens are that long."""
    ids: list[int] = loaded.tokenizer(text[: 16 * max_tokens], add_special_tokens=False).input_ids
    if len(ids) < max_tokens < len(text):
        ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
    return ids[:max_tokens]


def _bos(loaded: LoadedModel) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself: models that were trained with it fail without."""
    plain: list[int] = loaded.tokenizer("a", add_special_tokens=False).input_ids
    whole: list[int] = loaded.tokenizer("a").input_ids
    at = next((i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain), 0)
    return tuple(whole[:at])
