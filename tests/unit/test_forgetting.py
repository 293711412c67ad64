"""Forgetting: items are read or refused, likelihoods are right, and verdicts follow from intervals."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.adapters.lora import LoRA
from luthier.errors import EvaluationError
from luthier.evaluation.forgetting import (
    NORMALIZED,
    RAW,
    TEXT,
    Ability,
    Items,
    builtin_text,
    compare_ability,
    load_items,
    measure_ability,
    measure_forgetting,
    read_questions,
    read_text,
    verdict,
    write_forgetting,
)
from luthier.evaluation.probe import Question, questions
from luthier.models.load import LoadedModel
from luthier.recipe import ForgettingSettings

SMALL = ForgettingSettings(max_rows=20, max_tokens=512)
Make = Callable[..., LoadedModel]


# the probe


def test_the_probe_is_sound() -> None:
    asked = questions()
    assert 380 <= len(asked) <= 420
    assert len({q.id for q in asked}) == len({q.question for q in asked}) == len(asked)
    assert all(len(set(q.choices)) == 4 and 0 <= q.answer < 4 for q in asked)
    assert len({q.category for q in asked}) == 12
    positions = np.bincount([q.answer for q in asked], minlength=4) / len(asked)
    assert positions.min() > 0.18, "the place of the right answer must say nothing"
    assert len({q.category for q in asked[:24]}) == 12, "any beginning is a sample of all categories"


def test_the_probe_is_the_same_everywhere() -> None:
    assert questions() == questions()
    first = questions()[0]
    assert (first.question, first.choices[first.answer]) == ("What is the capital of France?", "Paris")


def test_arithmetic_in_the_probe_is_right() -> None:
    signs = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    sums = [q for q in questions() if q.category == "arithmetic"]
    assert len(sums) == 36
    for q in sums:
        _, _, a, sign, b = q.question.rstrip("?").split()
        assert int(q.choices[q.answer]) == signs[sign](int(a), int(b))


@pytest.mark.slow
def test_the_default_model_is_above_chance_and_below_the_ceiling(real_model_folder: Path) -> None:
    from luthier.models.catalog import resolve
    from luthier.models.load import load

    loaded = load(resolve(str(real_model_folder)))
    ability = measure_ability(loaded, load_items(ForgettingSettings(text="none", max_rows=100), loaded))
    for name in (NORMALIZED, RAW):
        assert 0.5 <= ability.statistics[name][:, 0].mean() <= 0.85


# text


def test_the_text_is_prose() -> None:
    text = builtin_text()
    assert len(text) > 100_000
    assert ">>>" not in text and "::=" not in text and "***" not in text
    words = text.split()
    assert sum(word in ("the", "a", "of", "is", "to") for word in words) > 0.12 * len(words)


def test_windows_cover_the_text_once(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The meeting is on Monday at nine, and the team will write a letter. " * 60)
    settings = ForgettingSettings(multiple_choice="none", text=str(path), max_tokens=1200)
    items = load_items(settings, tiny_loaded)
    ids = tiny_loaded.tokenizer(path.read_text(), add_special_tokens=False).input_ids[:1200]
    assert [i for window in items.windows for i in window] == ids
    assert max(map(len, items.windows)) == 128 and items.questions == ()


def test_perplexity_is_that_of_plain_forward_passes(tiny_loaded: LoadedModel) -> None:
    windows = (tuple(range(3, 60)), tuple(range(80, 140)))
    found = measure_ability(tiny_loaded, Items((), windows, {})).statistics[TEXT]
    for window, (loss, tokens) in zip(windows, found, strict=True):
        ids = torch.tensor([window])
        with torch.no_grad():
            expected = float(tiny_loaded.model(ids, labels=ids).loss) * (len(window) - 1)
        assert tokens == len(window) - 1 and loss == pytest.approx(expected, rel=1e-5)


# multiple choice


def test_choices_are_weighed_by_length_and_as_they_are(tiny_loaded: LoadedModel) -> None:
    asked = tuple(questions()[:12])
    ability = measure_ability(tiny_loaded, Items(asked, (), {}))
    tokenizer = tiny_loaded.tokenizer
    for index, q in enumerate(asked):
        prompt = tokenizer(f"Question: {q.question}\nAnswer:").input_ids
        raw = []
        for choice in q.choices:
            more = tokenizer(f" {choice}").input_ids
            with torch.no_grad():
                logits = tiny_loaded.model(torch.tensor([prompt + more])).logits[0].log_softmax(-1)
            raw.append(sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(more)))
        normalized = [score / len(choice.encode()) for score, choice in zip(raw, q.choices, strict=True)]
        assert ability.statistics[RAW][index, 0] == float(np.argmax(raw) == q.answer)
        assert ability.statistics[NORMALIZED][index, 0] == float(np.argmax(normalized) == q.answer)


def test_a_blank_is_filled(make_tiny: Make) -> None:
    from luthier.evaluation.forgetting import _tokens

    loaded = make_tiny()
    ids, choices = _tokens(Question("The _ is big.", ("dog", "cat"), 0), loaded)
    assert loaded.tokenizer.decode(ids) == "The"
    assert [loaded.tokenizer.decode(c) for c in choices] == [" dog is big.", " cat is big."]


# before and after


def test_what_is_counted_is_windows_and_not_tokens(tiny_loaded: LoadedModel) -> None:
    settings = ForgettingSettings(multiple_choice="none", max_tokens=8000)
    items = load_items(settings, tiny_loaded)
    assert len(items.windows) == 63  # 8,000 / 128, rounded up
    before = np.array([[2.0 * (len(w) - 1) + i % 5, len(w) - 1] for i, w in enumerate(items.windows)])
    after = before + np.array([[0.1 * (i % 3), 0.0] for i in range(63)])
    (measure,) = compare_ability(Ability({TEXT: before}), Ability({TEXT: after}), items)["measures"]
    assert (measure["n"], measure["tokens"]) == (63, 8000 - 63)
    change = measure["difference"]
    half = (change["high"] - change["low"]) / 2
    assert measure["minimum_detectable_effect"] == pytest.approx(half * (1.96 + 0.84) / 1.96, rel=0.1)


def test_an_adapter_that_does_nothing_forgets_nothing(make_tiny: Make) -> None:
    loaded = make_tiny()
    injected = LoRA(rank=2).inject(loaded.model, seed=0)
    told: list[str] = []
    found = measure_forgetting(loaded, injected.disabled, SMALL, on_progress=lambda what, *_: told.append(what))
    assert [m["name"] for m in found["measures"]] == [NORMALIZED, RAW, TEXT]
    for measure in found["measures"]:
        assert measure["before"] == measure["after"]
        assert measure["difference"]["value"] == 0 and measure["difference"]["p_value"] == 1
    assert found["verdict"] == "none measured"
    assert told[0].startswith("before") and told[-1].startswith("after")


def test_a_ruined_model_has_clearly_forgotten(make_tiny: Make, tmp_path: Path) -> None:
    """The damage is a final norm that is ten times too large: every guess becomes a certainty, mostly a wrong one."""
    loaded = make_tiny()
    weight = dict(loaded.model.named_parameters())["model.norm.weight"].detach()
    weight.mul_(10)

    @contextmanager
    def healed() -> Iterator[None]:
        weight.div_(10)
        yield
        weight.mul_(10)

    settings = ForgettingSettings(max_rows=20, max_tokens=4096)
    found = measure_forgetting(loaded, healed, settings)
    text = found["measures"][-1]
    assert text["after"]["value"] > 2 * text["before"]["value"] and text["difference"]["low"] > 0
    assert found["verdict"] == "clear"
    write_forgetting(tmp_path, found)
    assert json.loads((tmp_path / "forgetting.json").read_text()) == found


def test_nothing_asked_nothing_measured(tiny_loaded: LoadedModel) -> None:
    items = load_items(ForgettingSettings(multiple_choice="none", text="none"), tiny_loaded)
    ability = measure_ability(tiny_loaded, items)
    assert compare_ability(ability, ability, items) == {
        "measures": [],
        "verdict": "none measured",
        "sources": {"multiple_choice": "none", "text": "none"},
    }


def answers(*right: int) -> Ability:
    column = np.array(right, dtype=np.float64)
    return Ability({NORMALIZED: np.stack([column, np.ones_like(column)], axis=1)})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1] * 80 + [0] * 20, [1] * 60 + [0] * 40, "clear"),
        ([1] * 800 + [0] * 200, [1] * 780 + [0] * 220, "slight"),
        ([1] * 60 + [0] * 40, [1] * 80 + [0] * 20, "none measured"),  # a gain is no loss
        ([1] * 12 + [0] * 8, [1] * 10 + [0, 0, 1] + [0] * 7, "none measured"),  # too few rows to tell
    ],
)
def test_verdicts(before: list[int], after: list[int], expected: str) -> None:
    items = Items(tuple(Question("?", ("a", "b"), 0) for _ in before), (), {})
    assert compare_ability(answers(*before), answers(*after), items)["verdict"] == expected


def test_a_rise_of_perplexity_is_judged_by_its_share() -> None:
    def measure(before: float, low: float, value: float, high: float) -> dict[str, Any]:
        change = {"value": value, "low": low, "high": high}
        return {"name": TEXT, "higher_is_better": False, "before": {"value": before}, "difference": change}

    assert verdict([measure(20.0, 2.5, 3.0, 3.5)]) == "clear"
    assert verdict([measure(40.0, 2.5, 3.0, 3.5)]) == "slight"
    assert verdict([measure(20.0, -0.1, 3.0, 6.0)]) == "none measured"
    assert verdict([measure(20.0, -6.0, -3.0, -1.0)]) == "none measured"


# files


def test_questions_of_ones_own(shared_data: Path, tiny_loaded: LoadedModel) -> None:
    found = read_questions(shared_data / "general_capability" / "test.jsonl")
    assert len(found) == 500 and found[0].choices[found[0].answer] == "the Golgi apparatus"
    settings = replace_settings(str(shared_data / "general_capability" / "test.jsonl"))
    assert len(load_items(settings, tiny_loaded).questions) == 25


def replace_settings(multiple_choice: str) -> ForgettingSettings:
    return ForgettingSettings(multiple_choice=multiple_choice, text="none", max_rows=25)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"question": "?", "choices": ["a"], "answer": 0}', "line 2: expected question"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 2}', "line 2: expected question"),
        ('{"question": "?", "choices": ["a", "b"], "answer": true}', "line 2: expected question"),
        ('{"question": "?", "choices": ["a", ""], "answer": 0}', "line 2: expected question"),
    ],
)
def test_bad_questions_are_refused_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "?", "choices": ["a", "b"], "answer": 1}\n' + line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_questions(path)


def test_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert read_text(tmp_path / "a.jsonl") == "one\n\ntwo"
    (tmp_path / "b.txt").write_text("one\n\ntwo")
    assert read_text(tmp_path / "b.txt") == "one\n\ntwo"
    for name, content in (("c.jsonl", '{"body": "x"}'), ("d.txt", " \n"), ("e.jsonl", "\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(EvaluationError, match=name):
            read_text(tmp_path / name)
    with pytest.raises(EvaluationError, match=r"missing\.txt: cannot be read"):
        read_text(tmp_path / "missing.txt")
    with pytest.raises(EvaluationError, match="no question in it"):
        read_questions(tmp_path / "d.txt")


def test_a_text_too_short_to_measure_is_refused(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too few words.")
    settings = ForgettingSettings(multiple_choice="none", text=str(tmp_path / "short.txt"))
    with pytest.raises(EvaluationError, match=r"short\.txt'?: under 16 tokens"):
        load_items(settings, tiny_loaded)


def test_short_contexts_get_short_windows(tiny_loaded: LoadedModel) -> None:
    items = load_items(ForgettingSettings(multiple_choice="none"), replace(tiny_loaded, max_tokens=100))
    assert max(map(len, items.windows)) == 100
