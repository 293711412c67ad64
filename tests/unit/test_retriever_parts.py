"""Parts of a retriever's training: values by hand, what is right and wrong, and how rows are divided."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import RandomTexts, make_run, sought_questions
from tests.small_encoders import write_encoder
from torch import Tensor

from luthier import registry
from luthier.engine.fit import fit
from luthier.engine.loop import train
from luthier.errors import DataError, EvaluationError, ModelError
from luthier.evaluation.passage_groups import by_passage
from luthier.examples import Conversation, Message
from luthier.models.catalog import resolve
from luthier.models.forest import Batch, build_batch
from luthier.models.load import LoadedModel
from luthier.objectives._retriever import RetrieverObjective, Sought, ranges
from luthier.objectives.base import Models, Objective
from luthier.objectives.contrastive import Contrastive
from luthier.objectives.rerank import Rerank
from luthier.rag.lexical import Bm25
from luthier.rag.passages import Passage
from luthier.rag.reranker import CrossEncoder
from luthier.rag.retriever import Retriever
from luthier.recipe import OBJECTIVES
from luthier.retrievers.questions import find, pool_of

PASSAGES = [
    Passage("a", "The amber bridge was opened in 1851.", "Bridges", "a"),
    Passage("b#1", "The birch bridge has two towers. It fell in 1900.", "Bridges", "b"),
    Passage("b#2", "The birch bridge was built again in 1910.", "Bridges", "b"),
    Passage("c", "A road leads over the cedar bridge since 1851.", "Roads", "c"),
]


class Fixed:
    """An encoder whose vectors and scores are given, by the tokens of a row."""

    def __init__(self, known: Mapping[tuple[int, ...], list[float]]) -> None:
        self._known = known

    def vectors(self, batch: Batch) -> Tensor:
        return torch.tensor([self._known[row.ids] for row in batch.rows], dtype=torch.float64)

    def scores(self, batch: Batch) -> Tensor:
        return self.vectors(batch)[:, 0]


def cast(known: Mapping[tuple[int, ...], list[float]], tmp_path: Path) -> Models:
    return replace(make_run(tmp_path).models, encoder=Fixed(known))


def row(id: str, question: str, gold: list[str] | None = None, answer: str = "-", **more: Any) -> Conversation:
    extra = {**more, **({} if gold is None else {"gold_passage_ids": gold})}
    return Conversation((Message("user", question), Message("assistant", answer)), id=id, target=[answer], extra=extra)


def searched() -> Retriever:
    return Retriever("bm25", PASSAGES, Bm25([passage.titled for passage in PASSAGES]), 3, "f")


def test_the_loss_is_that_of_the_paper_without_passages_that_answer_too(tmp_path: Path) -> None:
    texts = RandomTexts()
    sought = [Sought("q0", "q0", 0, (0, 2), (1,)), Sought("q1", "q1", 2, (2,), (1,))]
    vectors = {0: [1.0, 0.0], 1: [0.6, 0.8], 2: [0.0, 1.0]}
    known = {texts.passage(number): vector for number, vector in vectors.items()}
    known |= {texts.question("q0"): [0.8, 0.6], texts.question("q1"): [0.0, 1.0]}
    models, objective = cast(known, tmp_path), Contrastive(temperature=0.5)
    batches = [build_batch(unit) for unit in objective.training(sought, texts)]
    told = objective.whole_step(models, batches, {})
    first = -math.log(math.exp(1.6) / (math.exp(1.6) + math.exp(1.92)))  # passage 2 answers q0, too, and is left out
    second = -math.log(math.exp(2) / (math.exp(2) + math.exp(0) + math.exp(1.6)))
    losses = [float(objective.loss(models, batch).total) for batch in told]
    assert losses == pytest.approx([first, second], abs=1e-9)
    assert [float(batch.values_R["rank"][0]) for batch in told] == [2, 1]


def test_equally_near_passages_do_not_count_as_found(tmp_path: Path) -> None:
    texts, objective = RandomTexts(), Contrastive()
    sought = [Sought("q", "q", 0, (0,), (1,))]
    known = {ids: [1.0, 0.0] for ids in (texts.question("q"), texts.passage(0), texts.passage(1))}
    models = cast(known, tmp_path)
    (batch,) = objective.whole_step(models, [build_batch(objective.training(sought, texts)[0])], {})
    assert objective.validation(models, batch).metrics["recall_at_1"].value() == 0
    assert objective.validation(models, batch).metrics["mrr"].value() == 0.5


@pytest.mark.parametrize(
    ("penalty", "loss"),
    [
        ("listwise", -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))),
        ("pointwise", (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log(2)) / 3),
    ],
)
def test_the_losses_of_a_list(penalty: str, loss: float, tmp_path: Path) -> None:
    texts, objective = RandomTexts(), Rerank(penalty=penalty)  # type: ignore[arg-type]
    (unit,) = objective.training([Sought("q", "q", 0, (0,), (1, 2))], texts)
    models = cast({row.ids: [score] for row, score in zip(unit, (2.0, 1.0, 0.0), strict=True)}, tmp_path)
    found = objective.loss(models, build_batch(unit))
    assert float(found.total) == pytest.approx(loss, abs=1e-9)
    assert found.metrics["mrr"].value() == 1


def test_a_right_passage_that_the_search_missed_counts_as_missed(tmp_path: Path) -> None:
    texts, objective = RandomTexts(), Rerank()
    units = objective.validating([Sought("q", "q", 0, (0,), (), (1, 2))], [], texts)
    models = cast({row.ids: [1.0] for row in units[0]}, tmp_path)
    assert float(objective.validation(models, build_batch(units[0])).total) == 1


def test_right_and_wrong_passages_of_a_row() -> None:
    rows = [
        row("q0", "When was the amber bridge opened?", ["a"], "1851"),
        row("q1", "What became of the birch bridge?", ["b"], "It fell"),
        row("q2", "When was the birch bridge built again?", answer="1910"),
        row("q3", "Who knows?"),
    ]
    found = find(rows, searched(), wrong=2)
    assert found.unknown == 1
    first, second, third = found.sought
    assert (first.positive, first.right) == (0, (0,))
    assert 3 not in first.wrong and set(first.wrong) <= {1, 2}  # passage c says 1851, too
    assert (second.positive, second.right) == (1, (1, 2))  # of a source that was cut, the one that holds the answer
    assert (third.positive, third.right) == (2, (2,))


def test_wrong_passages_that_a_row_names_come_first_and_must_be_there() -> None:
    named = row("q", "When was the amber bridge opened?", ["a"], wrong_passage_ids=["c"])
    assert find([named], searched(), wrong=1).sought[0].wrong == (3,)
    with pytest.raises(DataError, match="'nowhere'"):
        find([row("q", "?", ["a"], wrong_passage_ids=["nowhere"])], searched(), wrong=1)
    with pytest.raises(EvaluationError, match="'nowhere'"):
        find([row("q", "?", ["nowhere"])], searched(), wrong=1)


def test_the_pool_holds_what_is_right_and_what_is_hard_before_others() -> None:
    sought = [Sought("q", "q", 7, (7,), (), (3, 7, 5))]
    assert pool_of(sought, 10, 3) == [3, 5, 7]
    assert pool_of(sought, 10, 5) == [0, 3, 4, 5, 7] and len(pool_of(sought, 10, 100)) == 10


def test_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]


def test_questions_about_one_passage_or_title_stay_together() -> None:
    titles = {f"p{number}": f"title {number // 2}" for number in range(32)}
    rows = [row(f"q{number}", "?", [f"p{number}"]) for number in range(32)]
    rows.append(row("both", "?", ["p0", "p30"]))
    groups = [one.group for one in by_passage(rows, titles)]
    assert groups[0] == groups[1] == groups[30] == groups[32] and groups[2] == groups[3] != groups[0]
    one_title = by_passage(rows, dict.fromkeys(titles, "handbook"))  # says nothing: passages group then
    assert one_title[1].group != one_title[2].group
    own = replace(rows[1], group="mine")
    assert by_passage([own], titles)[0].group == "mine"
    cut = by_passage([row("q", "?", ["b#2"]), row("r", "?", ["b#1"])], {"b": ""})
    assert cut[0].group == cut[1].group


CHANGES = {
    "contrastive.temperature": 0.5,
    "contrastive.negatives": 1,
    "rerank.penalty": "pointwise",
    "rerank.negatives": 1,
}


def known() -> list[str]:
    """Every setting of these objectives but the one for validation."""
    kinds = {name: registry.load_class(OBJECTIVES, name, Objective) for name in registry.names(OBJECTIVES)}  # type: ignore[type-abstract]
    trained = {name: kind for name, kind in kinds.items() if issubclass(kind, RetrieverObjective)}
    fields = [f"{name}.{field}" for name, kind in trained.items() for field in kind.model_fields]
    return [field for field in fields if not field.endswith("validation_passages")]


@pytest.mark.parametrize("name", known())
def test_every_setting_has_an_effect(name: str, tmp_path: Path) -> None:
    kind, field = name.split(".")
    runs = [
        make_run(tmp_path / str(at), objective={"type": kind, **more})
        for at, more in enumerate(({}, {field: CHANGES[name]}))
    ]
    ends = []
    for run in runs:
        list(train(run))
        ends.append([p.detach().clone() for p in run.injected.trainable.values()])
    assert any(not torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_model_that_writes_is_no_base_of_a_reranker(tiny_loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="writes text and is no encoder"):
        CrossEncoder(tiny_loaded.files, torch.device("cpu"), untrained=True)


def test_a_cross_encoder_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "base")
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**told, "pad_token": None}), encoding="utf-8")
    with pytest.raises(ModelError, match="no padding token"):
        CrossEncoder(resolve(str(folder)), torch.device("cpu"))


def test_how_many_passages_validate() -> None:
    sought = sought_questions(3)
    assert len(Rerank(validation_passages=3).validating(sought, [], RandomTexts())[0]) == 3


@pytest.mark.parametrize("objective", ["contrastive", "rerank"])
def test_the_largest_micro_batch_is_found_for_encoders_too(objective: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": objective})
    found = fit(run, most=512, available=64 * 2**30)  # the process of the tests holds some of it
    assert found.fits and found.tokens == 512
