"""Another local model in the table: which one answers, when it is opened, what it may need, and that it goes."""

import gc
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from luthier.config import build
from luthier.data.templates import build_template
from luthier.engine.fit import MARGIN
from luthier.errors import EvaluationError, ModelError, RecipeError
from luthier.evaluation.harness import Options, evaluate
from luthier.evaluation.systems._other_model import ModelChoice, opened, predict
from luthier.evaluation.systems.base import Context
from luthier.evaluation.systems.few_shot import FewShot
from luthier.evaluation.systems.local_model import LocalModel
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Message
from luthier.models.catalog import known, resolve
from luthier.models.load import LoadedModel, load
from luthier.models.memory import held_bytes


def row(question: str, answer: str = "ok") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), id=question)


TEST = [row(f"test question {i}") for i in range(3)]


@pytest.fixture(scope="module")
def context(tiny_loaded: LoadedModel) -> Context:
    return Context(
        loaded=tiny_loaded,
        template=build_template(tiny_loaded, "model"),
        adapter_disabled=nullcontext,
        train=[row(f"train question {i}") for i in range(6)],
        validation=[row(f"validation question {i}") for i in range(4)],
        max_new_tokens=6,
        task="text",
        primary_metric=build_metrics(["rouge_l"])["rouge_l"],
        base_fingerprint="base",
        say=lambda text: None,
    )


@pytest.fixture(scope="module")
def other_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer and shape with other weights."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny_model_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.normal_(std=0.15, generator=torch.Generator().manual_seed(number + 100))
    model.save_pretrained(folder)
    return folder


def local(folder: Path | str, **more: Any) -> LocalModel:
    return build(LocalModel, {"model": str(folder), "precision": "float32", "tune_rows": 3, **more})


@pytest.mark.parametrize("shots", [0, 2])
def test_it_answers_as_that_model_would_with_the_same_search(context: Context, other_folder: Path, shots: int) -> None:
    given = local(other_folder, shots=shots).answer(TEST, context)
    there = load(resolve(str(other_folder)), precision="float32", device="cpu")
    own = replace(context, loaded=there, template=build_template(there, "model"))
    asker = FewShot(shots=shots, tune_rows=3) if shots else ZeroShot(tune_rows=3)
    wanted = asker.answer(TEST, own)
    assert [(a.output, a.prompt, a.prompt_tokens) for a in given.answers] == [
        (a.output, a.prompt, a.prompt_tokens) for a in wanted.answers
    ]
    assert given.details["tried"] == wanted.details["tried"] and len(given.details["tried"]) > 2
    here = asker.answer(TEST, context)
    assert [a.output for a in given.answers] != [a.output for a in here.answers]
    assert given.details["model_fingerprint"] == there.files.fingerprint and given.details["parameters"] > 100_000


def test_wanted_replies_are_scored_by_that_model(context: Context, other_folder: Path) -> None:
    scoring = replace(context, score_targets=True)
    (there, *_), (here, *_) = (s.answer(TEST, scoring).answers for s in (local(other_folder), ZeroShot(tune_rows=3)))
    assert there.target_score is not None and here.target_score is not None
    assert there.target_score.logprob_sum != here.target_score.logprob_sum


def models_held() -> int:
    """Models that this process holds."""
    gc.collect()
    return sum(issubclass(type(one), PreTrainedModel) for one in gc.get_objects())


@pytest.mark.slow
def test_it_is_freed_after_its_answers(context: Context, other_folder: Path) -> None:
    before = models_held()
    local(other_folder).answer(TEST, context)
    assert models_held() == before
    with opened(ModelChoice(str(other_folder)), context, "x") as other:
        # a language model holds the decoder as a second one
        assert models_held() == before + 2 and other.context.loaded is not context.loaded
    assert other.context is context and models_held() == before, "nothing refers to the other model any more"
    with pytest.raises(EvaluationError, match="the model's context ends at"):
        local(other_folder).answer([row("word " * 2000)], context)
    assert models_held() == before


def test_it_is_opened_only_to_answer_and_again_when_its_files_change(
    context: Context, other_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(other_folder, tmp_path / "big")
    said: list[str] = []
    beside = replace(context, recipe_folder=tmp_path, say=said.append)  # a folder is found beside the recipe
    metrics = build_metrics(["rouge_l"])

    def measured() -> bool:
        options = Options(tmp_path / "run", "rouge_l")
        return evaluate({"big": local("big")}, TEST, beside, metrics, options).measured["big"].reused

    assert [measured(), measured()] == [False, True] and len(said) == 1
    config = tmp_path / "big" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert measured() is False and len(said) == 2


def test_a_model_that_is_pinned_is_known_without_fetching_it(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.setenv("LUTHIER_OFFLINE", "1")
    name = next(iter(known()))
    assert LocalModel(model=name).identity(context) == known()[name].sha256
    with pytest.raises(ModelError, match=name):
        LocalModel(model=name).answer(TEST, context)


def test_a_model_that_is_nowhere(context: Context) -> None:
    with pytest.raises(ModelError, match="unknown model 'no-such-model'"):
        local("no-such-model").answer(TEST, context)
    with pytest.raises(RecipeError, match="unknown format 'nf5'"):
        local("x", quantize="nf5")


# memory


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(context: Context, other_folder: Path) -> None:
    said: list[str] = []
    listening = replace(context, say=said.append)
    refused = r"the system x: .* needs about .* GiB beside the run's model.* 0\.0 GiB are free.* set quantize = 'nf4'"
    with (
        pytest.raises(EvaluationError, match=refused),
        opened(ModelChoice(str(other_folder)), listening, "x", free=2**20),
    ):
        pytest.fail("it was opened")
    with (
        pytest.raises(EvaluationError, match="To mend it, name a smaller model"),
        opened(ModelChoice(str(other_folder), quantize="int8"), listening, "x", free=2**20),
    ):
        pytest.fail("it was opened")
    assert said == []


def test_short_memory_means_fewer_rows_in_flight(context: Context, other_folder: Path) -> None:
    choice = ModelChoice(str(other_folder), precision="float32")
    needed = predict(resolve(str(other_folder)), choice, context)
    with opened(choice, context, "x") as roomy:
        plenty = roomy.context.batch_tokens
    just = int((needed.least.total + 100 * needed.cache_bytes_per_token) * MARGIN)
    with opened(choice, context, "x", free=just) as tight:
        assert needed.least_tokens <= tight.context.batch_tokens <= needed.least_tokens + 100 < plenty


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_the_weights_are_foretold(context: Context, other_folder: Path, quantize: str) -> None:
    files = resolve(str(other_folder))
    needed = predict(files, ModelChoice(str(other_folder), "float32", quantize), context)
    held = held_bytes(load(files, "float32", "cpu", quantize=quantize).model)
    largest_matrix = 459 * 64 * 8  # the embedding, in the file's type and in the model's, while it is read
    assert held * 0.95 <= needed.least.weights <= held * 1.1 + largest_matrix


def test_what_is_opened_is_said(context: Context, other_folder: Path) -> None:
    said: list[str] = []
    local(other_folder).answer(TEST, replace(context, say=said.append))
    assert len(said) == 1 and "beside the run's model" in said[0] and "are free" in said[0]


@pytest.mark.slow
def test_answers_may_be_as_long_in_tokens_of_another_tokenizer(
    context: Context, real_model_folder: Path, make_tiny: Callable[..., LoadedModel]
) -> None:
    prose = [row("?", "The quick brown fox jumps over the lazy dog and runs away into the forest.")]
    wordy = replace(context, train=prose, max_new_tokens=100)
    choice = ModelChoice(str(real_model_folder), "bfloat16")
    with opened(choice, wordy, "x") as other:
        assert 16 <= other.context.max_new_tokens < 60, "its tokenizer knows whole words"
