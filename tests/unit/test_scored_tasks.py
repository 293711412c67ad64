"""Raw text and preference pairs: nothing is written, and the probability of what is there is compared."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.data.asked import conversations
from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.answering import SCORED_TOKENS, answer_with_model, score_targets_of, windows_of
from luthier.evaluation.metrics.bits_per_byte import BitsPerByte
from luthier.evaluation.systems.base import Context, prediction
from luthier.evaluation.systems.command import Command
from luthier.evaluation.systems.few_shot import FewShot
from luthier.evaluation.systems.fine_tuned import FineTuned
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.evaluation.task import build_metrics, require_metrics, require_rows
from luthier.examples import Conversation, Document, Message, Preference, Row
from luthier.models.load import LoadedModel
from luthier.objectives.dpo import DPO

TEXTS = [
    Document("The answer is written as strict JSON. " * 400, id="long"),  # some six times the context of the tiny model
    Document("Größe.", id="short"),
    Document("Ωmega", id="begins in the middle of a character"),
]
PAIRS = [
    Preference(
        (Message("user", f"What is the capital of France, {i}?"),),
        (Message("assistant", "It is Paris."), Message("user", "Sure?"), Message("assistant", "Yes.")),
        (Message("assistant", "No."),),
        id=f"pair-{i}",
    )
    for i in range(3)
]


def context_for(loaded: LoadedModel, task: str, metric: str) -> Context:
    return Context(
        loaded=loaded,
        template=build_template(loaded, "model", max_tokens=32),  # training cuts rows; evaluation does not
        adapter_disabled=nullcontext,
        train=[],
        validation=[],
        max_new_tokens=0,
        task=task,
        primary_metric=build_metrics([metric])[metric],
        base_fingerprint="base",
    )


@pytest.fixture(scope="module")
def language(tiny_loaded: LoadedModel) -> Context:
    return context_for(tiny_loaded, "language", "bits_per_byte")


@pytest.fixture(scope="module")
def pairs(tiny_loaded: LoadedModel) -> Context:
    return context_for(tiny_loaded, "pairs", "pair_accuracy")


def logprobs(loaded: LoadedModel, ids: tuple[int, ...]) -> Any:
    """(L - 1,) log-probability of each id but the first, by transformers alone."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


# raw text


def test_bits_per_byte_are_those_of_plain_forward_passes(language: Context) -> None:
    loaded, limit = language.loaded, language.loaded.max_tokens
    answers, seconds = answer_with_model(TEXTS, [()] * 3, language, "x")
    assert seconds > 0 and all(answer.output == "" and answer.prompt == () for answer in answers)
    for document, answer in zip(TEXTS, answers, strict=True):
        (row,) = build_template(loaded, "model").rows(document)
        ids = row.ids
        nats = -sum(float(logprobs(loaded, ids[i : i + limit]).sum()) for i in range(0, len(ids) - 1, limit - 1))
        assert answer.target_score is not None and answer.target_score.tokens == len(ids) - 1
        first = len(loaded.tokenizer.convert_ids_to_tokens(ids[0]))  # in this alphabet a character is a byte
        if document.text[0] == "Ω":
            assert first == 1
            first = 2  # what is left of the character cannot be read by itself
        size = len(document.text.encode()) - first
        assert answer.target_score.bytes == size
        one = prediction(document, answer)
        assert one.target == document.text
        assert BitsPerByte().row_score(BitsPerByte().statistics(one)) == pytest.approx(nats / math.log(2) / size)


def test_the_long_text_is_longer_than_the_context(language: Context) -> None:
    (row,) = build_template(language.loaded, "model").rows(TEXTS[0])
    assert len(row.ids) > 2 * language.loaded.max_tokens


def test_a_tokenizer_that_begins_texts_gives_every_window_its_beginning(make_tiny: Callable[..., LoadedModel]) -> None:
    from tokenizers.processors import TemplateProcessing

    loaded = make_tiny()
    bos: int = loaded.tokenizer.bos_token_id
    loaded.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    short = replace(loaded, max_tokens=10)
    document = Document("The capital of France is Paris. " * 3, id="d")
    ((score, _),) = score_targets_of([document], [()], context_for(short, "language", "bits_per_byte"))
    (row,) = build_template(loaded, "model").rows(document)
    assert row.ids[0] == bos and row.ids[1] != bos and 18 < len(row.ids) < 50
    known = float(logprobs(loaded, row.ids[:10]).sum())
    for end in range(10, len(row.ids), 8):
        known += float(logprobs(loaded, (bos, *row.ids[end - 1 : end + 8]))[1:].sum())
    assert score.logprob_sum == pytest.approx(known, rel=1e-5)
    assert (score.tokens, score.bytes) == (len(row.ids) - 1, len(document.text))


@pytest.mark.parametrize("lead", [(), (7,)])
@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 11, 19, 20, 100])
def test_windows_predict_every_token_once_from_the_one_before(lead: tuple[int, ...], length: int) -> None:
    ids = (*lead, *range(100, 100 + length))
    row = Row(ids, (0.0,) * min(1, len(ids)) + (1.0,) * (len(ids) - 1), "r")
    windows = windows_of(row, 10, lead)
    predicted = [id for w in windows for id, m in zip(w.ids, w.loss_mask, strict=True) if m]
    assert predicted == list(ids[1:])
    for window in windows:
        assert 2 <= len(window.ids) <= 10 and window.ids[: len(lead)] == lead
        first = next(i for i, m in enumerate(window.loss_mask) if m)
        assert first == len(lead) + (window is not windows[0]) or not lead
        assert all(b == a + 1 for a, b in zip(window.ids[len(lead) :], window.ids[len(lead) + 1 :], strict=False))


def test_a_window_bounds_memory_where_the_context_is_huge(make_tiny: Callable[..., LoadedModel]) -> None:
    loaded = make_tiny()
    computed: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda _model, _args, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    huge = context_for(replace(loaded, max_tokens=1_000_000), "language", "bits_per_byte")
    text = Document("The capital of France is Paris. " * (SCORED_TOKENS // 2), id="w")
    ((score, _),) = score_targets_of([text], [()], huge)
    assert len(computed) > 2 and max(computed) <= SCORED_TOKENS <= score.tokens


def test_raw_text_has_no_prompt(language: Context) -> None:
    with pytest.raises(EvaluationError, match=r"row short .*leave out the instruction"):
        ZeroShot(instruction="Be brief.").answer(TEXTS[1:], language)


# pairs


def test_both_replies_of_a_pair_are_scored_as_dpo_trains_on_them(pairs: Context) -> None:
    answers, _ = answer_with_model(PAIRS, [pair.prompt for pair in PAIRS], pairs, "x")
    whole = build_template(pairs.loaded, "model")
    for pair, answer in zip(PAIRS, answers, strict=True):
        assert answer.target_score is not None and answer.rejected_score is not None
        scores = (answer.target_score, answer.rejected_score)
        for row, score in zip(DPO().rows(pair, whole), scores, strict=True):
            mask = torch.tensor(row.loss_mask[1:]).double()
            assert score.tokens == row.trained_tokens
            assert score.logprob_sum == pytest.approx(float((logprobs(pairs.loaded, row.ids) * mask).sum()), rel=1e-5)
        assert [score.bytes for score in scores] == [len("It is Paris.Yes."), len("No.")]
        one = prediction(pair, answer)
        assert (one.output, one.target, one.prompt) == ("", "It is Paris.\nYes.", pair.prompt)
        assert one.rejected_score == answer.rejected_score


def test_an_instruction_stands_before_both_replies(pairs: Context) -> None:
    plain, told = (
        ZeroShot(instruction=text).answer(PAIRS, pairs).answers[0] for text in ("", "Name the city, and be brief.")
    )
    assert told.prompt[0] == Message("system", "Name the city, and be brief.")
    assert plain.target_score != told.target_score and plain.rejected_score != told.rejected_score


# systems


@pytest.mark.parametrize("system", [FewShot(), Command(command=("no-such-program",))])
def test_systems_that_write_say_that_they_cannot_score(system: Any, language: Context, pairs: Context) -> None:
    with pytest.raises(EvaluationError, match=r"row long .* is raw text, .*leave the system out"):
        system.answer(TEXTS, language)
    with pytest.raises(EvaluationError, match=r"row pair-0 .* is a preference pair, .*leave the system out"):
        system.answer(PAIRS, pairs)


def test_the_base_is_scored_without_a_competition_and_the_progress_is_told(language: Context, pairs: Context) -> None:
    for rows, context in ((TEXTS, language), (PAIRS, pairs)):
        told: list[tuple[str, int, int]] = []
        context = replace(context, tuned_fingerprint="t", on_progress=lambda *what, told=told: told.append(what))
        base, tuned = ZeroShot().answer(rows, context), FineTuned().answer(rows, context)
        assert told == [(name, done, 3) for name in ("zero_shot", "fine_tuned") for done in (1, 2, 3)]
        assert base.answers == tuned.answers and "tried" not in base.details


# tasks


def test_rows_and_metrics_must_fit_the_task() -> None:
    chat = Conversation((Message("user", "?"), Message("assistant", "!")), id="c")
    require_rows("language", TEXTS)
    require_rows("pairs", PAIRS)
    require_rows("text", [chat, *PAIRS])  # a pair's chosen reply may be the wanted answer
    for task, row in (("language", chat), ("pairs", chat), ("text", TEXTS[0]), ("pairs", TEXTS[0])):
        with pytest.raises(EvaluationError, match=f"the task '{task}' cannot be measured"):
            require_rows(task, [row])
    require_metrics("text", build_metrics(["rouge_l", "perplexity", "bits_per_byte"]))
    for task, metric in (("language", "rouge_l"), ("pairs", "exact_match"), ("text", "pair_accuracy")):
        with pytest.raises(EvaluationError, match=f"{metric} measures nothing in the task '{task}'"):
            require_metrics(task, build_metrics([metric]))
    with pytest.raises(EvaluationError, match="pair_accuracy measures nothing in the task 'language'"):
        require_metrics("language", build_metrics(["pair_accuracy"]))


def test_a_pair_may_be_asked_its_prompt() -> None:
    (asked,) = conversations([replace(PAIRS[0], extra={"references": ["x"]}), TEXTS[0]])
    assert asked.messages == PAIRS[0].prompt + PAIRS[0].chosen and asked.extra == {"references": ["x"]}
