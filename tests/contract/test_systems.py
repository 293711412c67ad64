"""Every system in the directory answers all rows once, in order, leaves the model as it was, and can be recorded."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.endpoint import serving
from tests.small_encoders import write_encoder

from luthier import registry
from luthier.adapters.lora import LoRA
from luthier.config import build
from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.long_prompt import LongPrompt
from luthier.evaluation.systems.base import Context, System
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Document, Example, Message, Preference
from luthier.models.load import LoadedModel
from luthier.rag.lexical import Bm25
from luthier.rag.passages import Passage
from luthier.rag.retriever import Retriever
from luthier.recipe import SYSTEMS, dump_part

NAMES = registry.names(SYSTEMS)

PASSAGES = [Passage(f"p{i}", f"A {word} has a number.") for i, word in enumerate(("street", "city", "letter", "team"))]

ECHO = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"id": row["id"], "output": row["messages"][-1]["content"]}))
"""


def rows(count: int, prefix: str) -> list[Conversation]:
    return [
        Conversation(
            (
                Message("system", "Answer with JSON."),
                Message("user", f"The {prefix} number {i} is a {word}."),
                Message("assistant", json.dumps({"number": f"{prefix} {i}", "kind": word})),
            ),
            id=f"{prefix}-{i}",
        )
        for i, word in zip(range(count), ["street", "city", "letter", "meeting", "team", "state"] * 5, strict=False)
    ]


@pytest.fixture(scope="module")
def context(make_tiny: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Context:
    loaded = make_tiny()
    injected = LoRA(rank=4).inject(loaded.model, seed=0)
    with torch.no_grad():
        for name, parameter in injected.trainable.items():
            if name.endswith("lora_B"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return Context(
        loaded=loaded,
        template=build_template(loaded, "model"),
        adapter_disabled=injected.disabled,
        train=rows(12, "train"),
        validation=rows(3, "validation"),
        max_new_tokens=6,
        task="json",
        primary_metric=build_metrics(["field_f1"])["field_f1"],
        base_fingerprint="base",
        tuned_fingerprint="tuned",
        recipe_folder=tmp_path_factory.mktemp("recipe"),
        long_prompt=LongPrompt("Be brief.", tuple(rows(1, "solved"))),
        retriever=Retriever("bm25", PASSAGES, Bm25([passage.titled for passage in PASSAGES]), 2, "passages"),
    )


NEEDED: dict[str, dict[str, Any]] = {"command": {"command": [sys.executable, "-c", ECHO]}}
"""What a system cannot do without."""
OWN_CHOICE = {
    *("zero_shot", "few_shot", "rag", "fine_tuned_few_shot", "local_model", "optimized_prompt", "label_likelihood")
}
"""Systems that try several prompts."""


@pytest.fixture(scope="module", autouse=True)
def outside(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What systems need that ask somebody else."""
    NEEDED["linear_probe"] = {"embedder": str(write_encoder(tmp_path_factory.mktemp("encoder")))}
    NEEDED["local_model"] = {"model": str(tiny_model_folder), "precision": "float32"}
    with serving() as heard:
        NEEDED["remote"] = {"base_url": heard.url, "model": "echo"}
        yield


def system(name: str) -> System:
    return build(registry.load_class(SYSTEMS, name, System), NEEDED.get(name, {}))  # type: ignore[type-abstract]


def fitting(name: str, context: Context) -> Context:
    """The context with a task that the system can do."""
    chooses = system(name).gives_probabilities and context.task == "json"
    accuracy = build_metrics(["accuracy"])["accuracy"]
    return replace(context, task="label", primary_metric=accuracy) if chooses else context


def test_the_promised_systems_are_there() -> None:
    named = {"zero_shot", "few_shot", "rag", "fine_tuned", "fine_tuned_few_shot", "fine_tuned_rag", "command"}
    assert named | OWN_CHOICE | {"remote"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_answered_in_order(name: str, context: Context) -> None:
    test = rows(5, "test")
    answers = system(name).answer(test, fitting(name, context)).answers
    assert [answer.id for answer in answers] == [row.id for row in test]
    for row, answer in zip(test, answers, strict=True):
        assert answer.prompt and row.completion not in answer.prompt, "the wanted answer must not be in the prompt"
        assert isinstance(answer.output, str)
        assert row.prompt[1].content in "".join(message.content for message in answer.prompt)


@pytest.mark.parametrize("name", NAMES)
def test_targets_play_no_part_in_the_answers(name: str, context: Context) -> None:
    test = rows(4, "test")
    swapped = [Conversation((*row.prompt, Message("assistant", "other")), id=row.id, target={"x": 1}) for row in test]
    first, second = (system(name).answer(which, fitting(name, context)).answers for which in (test, swapped))
    assert [(a.output, a.prompt) for a in first] == [(a.output, a.prompt) for a in second]


@pytest.mark.parametrize("name", NAMES)
def test_answers_depend_on_the_adapter_as_declared(name: str, context: Context) -> None:
    """A baseline that is measured with the adapter on by mistake would be the worst error of all."""
    test = rows(4, "test")
    there = [a.output for a in system(name).answer(test, fitting(name, context)).answers]
    with context.adapter_disabled():
        off = [a.output for a in system(name).answer(test, _without_switch(fitting(name, context))).answers]
    assert (there != off) == system(name).uses_adapter


def _without_switch(context: Context) -> Context:
    return replace(context, adapter_disabled=nullcontext)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_was_chosen_says_how(name: str, context: Context) -> None:
    """All systems that try several prompts record them in one form, and the winner is one of them."""
    details = system(name).answer(rows(2, "test"), fitting(name, context)).details
    json.dumps(details, allow_nan=False)
    assert ("tried" in details) == (name in OWN_CHOICE)
    for one in details.get("tried", []):
        assert {"addition", "place", "validation_score", "rows"} <= one.keys() and one["rows"] == 3
        assert one["place"] in ("system", "user") and 0 <= one["validation_score"] <= 1
    if "tried" in details:
        best = max(details["tried"], key=lambda one: one["validation_score"])
        assert (details["addition"], details["place"]) == (best["addition"], best["place"])


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str, context: Context) -> None:
    model: Any = context.loaded.model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        system(name).answer(rows(3, "test"), fitting(name, context))
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_models_count_tokens_and_score_targets_when_asked(name: str, context: Context) -> None:
    chosen = system(name)
    answers = chosen.answer(rows(3, "test"), replace(fitting(name, context), score_targets=True)).answers
    for answer in answers:
        assert (answer.prompt_tokens is not None) == (name not in ("command", "linear_probe"))
        assert (answer.target_score is not None) == chosen.is_model
        if answer.target_score is not None:
            assert answer.target_score.tokens > 5 and answer.target_score.logprob_sum < 0
            assert 0 <= answer.target_score.correct <= answer.target_score.tokens


@pytest.mark.parametrize("task", ["language", "pairs"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_ask_nothing_are_scored_or_refused(name: str, task: str, context: Context) -> None:
    reply = (Message("assistant", "Yes, it is."),)
    test: list[Example] = [Document("The street is long.", id="t"), Document("A letter.", id="u")]
    if task == "pairs":
        test = [Preference((Message("user", text),), reply, reply, id=text) for text in ("Why?", "When?")]
    chosen, scored = system(name), replace(context, task=task, train=(), validation=())
    try:
        answers = chosen.answer(test, scored).answers
    except EvaluationError as error:
        assert str(test[0].id) in str(error) and "scored" in str(error)
        return
    for row, answer in zip(test, answers, strict=True):
        assert (answer.id, answer.output, answer.prompt) == (row.id, "", row.prompt)
        assert answer.target_score is not None and answer.target_score.logprob_sum < 0
        assert answer.rejected_score == (answer.target_score if task == "pairs" else None)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_the_recipe(name: str) -> None:
    chosen = system(name)
    dumped = json.loads(json.dumps(dump_part(chosen)))
    assert dumped.pop("type") == name
    again: System = build(type(chosen), dumped)
    assert again == chosen
    assert build(type(chosen), {**dumped, "held_out": False, "note": "seen"}).note == "seen"


@pytest.mark.parametrize("name", NAMES)
def test_progress_is_told(name: str, context: Context) -> None:
    told: list[tuple[str, int, int]] = []
    system(name).answer(rows(3, "test"), replace(fitting(name, context), on_progress=lambda *what: told.append(what)))
    assert told[-1][1:] == (3, 3)
