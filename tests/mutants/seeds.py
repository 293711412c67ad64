"""The mutants: each seeds one failure of the catalog into a correct run and names the gate that must refuse it.

The catalog of silent failures and its numbers are in docs/preflight.md.
"""

import html
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tests.mutants import parts
from tests.mutants.bench import (
    OWN_TEMPLATE,
    WEATHER,
    Bench,
    held_out,
    template,
    tokenizer,
)
from tests.mutants.parts import first_trained, last_trained, masked, without, wrong_template
from tests.mutants.registry import Mutant, register_in

from luthier.examples import Conversation, Message, Row, Where
from luthier.objectives.base import Models
from luthier.preflight.base import RowSettings, Subject

MUTANTS: list[Mutant] = []
mutant = partial(register_in, MUTANTS)

END = tokenizer("chatml").convert_tokens_to_ids("<|im_end|>")
OTHER_END = tokenizer("chatml").convert_tokens_to_ids("<|endoftext|>")


def _rows(change: parts.RowChange, bench: Bench | None = None) -> Subject:
    return wrong_template((bench or Bench()).subject(), on_row=change)


def _prepend(token: int) -> parts.RowChange:
    return lambda row: replace(row, ids=(token, *row.ids), loss_mask=(0.0, *row.loss_mask))


# text to tokens


@mutant("A1", "single_bos")
def bos_written_by_template_and_tokenizer() -> Subject:
    return _rows(_prepend(tokenizer("bos").bos_token_id), Bench(kind="bos"))


@mutant("A1", "single_bos")
def bos_doubled_where_it_opens_turns() -> Subject:
    return _rows(_prepend(tokenizer("chatml").bos_token_id))


@mutant("A2", "single_bos")
def bos_missing_in_training() -> Subject:
    return _rows(lambda row: without(row, lambda i: i == 0), Bench(kind="bos"))


@mutant("A2", "single_bos")
def bos_missing_in_serving() -> Subject:
    return wrong_template(Bench(kind="bos").subject(), on_prompt=lambda ids: ids[1:])


@mutant("A3", "end_of_turn")
def labels_masked_where_id_is_the_padding_id() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 0.0 if row.ids[i] == tokenizer("chatml").pad_token_id else w))


@mutant("A4", "end_of_turn")
def no_end_of_turn_written() -> Subject:
    return _rows(lambda row: without(row, lambda i: row.ids[i] == END and bool(row.loss_mask[i])))


@mutant("A4", "end_of_turn")
def end_of_another_template_written() -> Subject:
    def change(row: Row) -> Row:
        return replace(
            row, ids=tuple(OTHER_END if i == END and w else i for i, w in zip(row.ids, row.loss_mask, strict=True))
        )

    return _rows(change)


@mutant("A5", "prefix_preserved")
def history_rendered_otherwise_when_served() -> Subject:
    def forget(messages: Any) -> Any:
        return [replace(m, content="") if m.role == "assistant" else m for m in messages]

    return wrong_template(Bench().subject(), on_messages=forget)


@mutant("A5", "serving_prompt")
def served_with_another_system_message() -> Subject:
    hello = Message("system", "You are a helpful assistant.")
    return wrong_template(
        Bench().subject(), on_messages=lambda ms: ms if ms[:1] and ms[0].role == "system" else [hello, *ms]
    )


@mutant("A5", "serving_prompt")
def tools_in_training_but_not_served() -> Subject:
    return wrong_template(Bench().subject(), drop_served_tools=True)


@mutant("A5", "serving_prompt")
def generation_prompt_without_its_newline() -> Subject:
    return wrong_template(Bench().subject(), on_prompt=lambda ids: ids[:-1])


@mutant("A6", "masked_text")
def closing_tag_without_its_opening() -> Subject:
    close = tokenizer("chatml").convert_tokens_to_ids("</think>")

    def change(row: Row) -> Row:
        at = first_trained(row)
        return Row((*row.ids[:at], close, *row.ids[at:]), (*row.loss_mask[:at], 1.0, *row.loss_mask[at:]), row.id)

    return _rows(change)


@mutant("A7", "boilerplate")
def role_header_trained() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 1.0 if first_trained(row) - 3 <= i < first_trained(row) else w))


def _change_messages(change: Callable[[Message], Message]) -> parts.ExampleChange:
    def apply(example: Any) -> Any:
        return replace(example, messages=tuple(change(m) for m in example.messages))

    return apply


@mutant("A8", "nothing_dropped")
def own_template_drops_tools_and_calls() -> Subject:
    return Bench(source=OWN_TEMPLATE).subject()


@mutant("A8", "nothing_dropped")
def tools_dropped_where_the_question_holds_their_words() -> Subject:
    question = "Which of get_weather, Tells the weather of a city., city, Name of the city is asked for in Paris?"
    row = Conversation((Message("user", question), Message("assistant", "get_weather")), (WEATHER,), id="row-1")
    return Bench(examples=[row], source=OWN_TEMPLATE).subject()


@mutant("A8", "nothing_dropped")
def tool_calls_dropped_by_a_converter() -> Subject:
    return wrong_template(Bench().subject(), on_example=_change_messages(lambda m: replace(m, tool_calls=())))


@mutant("A8", "nothing_dropped")
def tools_dropped_by_a_converter() -> Subject:
    return wrong_template(Bench().subject(), on_example=lambda e: replace(e, tools=()))


@mutant("A8", "nothing_dropped")
def system_message_dropped() -> Subject:
    def drop(example: Any) -> Any:
        return replace(example, messages=tuple(m for m in example.messages if m.role != "system"))

    return wrong_template(Bench().subject(), on_example=drop)


@mutant("A8", "nothing_dropped")
def first_line_of_content_only() -> Subject:
    def cut(message: Message) -> Message:
        return replace(message, content=message.content.partition("\n")[0])

    return wrong_template(Bench().subject(), on_example=_change_messages(cut))


@mutant("A9", "serving_prompt")
def boundary_token_merged_with_the_reply() -> Subject:
    return _rows(lambda row: without(row, lambda i: i == first_trained(row) - 1))


@mutant("A10", "no_control_tokens")
def content_encoded_with_control_tokens_on() -> Subject:
    def encode_again(row: Row) -> Row:
        text = tokenizer("chatml").decode(row.ids, skip_special_tokens=False)
        ids = tuple(tokenizer("chatml")(text, add_special_tokens=False)["input_ids"])
        trained = min(row.trained_tokens, len(ids) - 1)
        return Row(ids, (0.0,) * (len(ids) - trained) + (1.0,) * trained, row.id)

    return _rows(encode_again)


def _edited_before_it_is_encoded(edit: Callable[[str], str]) -> Subject:
    """The text of a row is edited, and then encoded with control tokens switched on."""

    def change(row: Row) -> Row:
        text = tokenizer("chatml").decode(row.ids, skip_special_tokens=False)
        if edit(text) == text:
            return row
        ids = tuple(tokenizer("chatml")(edit(text), add_special_tokens=False)["input_ids"])
        return Row(ids, (0.0, *[1.0] * (len(ids) - 1)), row.id)

    return _rows(change)


@mutant("A10", "no_control_tokens")
def capitals_folded_into_control_tokens() -> Subject:
    return _edited_before_it_is_encoded(lambda text: text.replace("<|IM_END|>", "<|im_end|>"))


@mutant("A10", "no_control_tokens")
def references_cut_out_of_content() -> Subject:
    return _edited_before_it_is_encoded(lambda text: text.replace("[ref]", ""))


@mutant("A10", "no_control_tokens")
def html_entities_of_content_unescaped() -> Subject:
    return _edited_before_it_is_encoded(html.unescape)


@mutant("A14", "splits_disjoint")
def test_prompt_in_the_training_rows() -> Subject:
    bench = Bench()
    leaked = bench.examples[0]
    assert isinstance(leaked, Conversation)
    spaced = tuple(replace(m, content=f" {m.content}\n") if m.role == "user" else m for m in leaked.messages)
    bench.held_out = {"test": [replace(leaked, messages=spaced, where=Where("test.jsonl", 1))]}
    return bench.subject()


@mutant("A16", "truncation")
def limit_ignored_for_a_default() -> Subject:
    return replace(Bench().subject(), template=template("chatml", max_tokens=40))


@mutant("A16", "truncation")
def a_third_of_the_rows_too_long() -> Subject:
    return Bench(settings=RowSettings(max_tokens=60)).subject()


@mutant("A33", "truncation")
def rows_cut_on_the_left() -> Subject:
    limit = 60
    subject = Bench(settings=RowSettings(max_tokens=limit, max_truncated_share=1.0)).subject()
    cut = parts.WrongTemplate(
        template("chatml"), on_row=lambda row: Row(row.ids[-limit:], row.loss_mask[-limit:], row.id)
    )
    subject.template = cut  # type: ignore[assignment]
    return subject


@mutant("A33", "truncation")
def validation_rows_cut() -> Subject:
    bench = Bench(settings=RowSettings(max_tokens=405))
    bench.held_out = {"validation": [_long_row("validation.jsonl")]}
    return bench.subject()


@mutant("A16", "every_row", "all_rows")
def a_row_behind_the_sample_cut() -> Subject:
    bench = Bench(settings=RowSettings(max_tokens=405))
    bench.examples[1] = _long_row("train.jsonl")
    return bench.with_units(max_rows=2)


@mutant("A20", "every_row", "all_rows")
def a_reply_behind_the_sample_cut_off() -> Subject:
    bench = Bench(settings=RowSettings(max_tokens=405, max_truncated_share=1.0))
    bench.held_out = {"validation": [*held_out(), _long_row("validation.jsonl"), *held_out()]}
    return bench.with_units(max_rows=2)


def _long_row(path: str) -> Conversation:
    """A row whose prompt alone is longer than 405 tokens."""
    asked = Message("user", "What is the weather in Paris? " * 60)
    return Conversation((asked, Message("assistant", "Sunny.")), (), Where(path, 2), "long")


# labels and loss


@mutant("A17", "trained_tokens")
def loss_mask_all_zero() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 0.0))


@mutant("A18", "masked_text")
def mask_runs_on_to_the_end_of_the_row() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 1.0 if i >= first_trained(row) else 0.0))


@mutant("A19", "masked_text")
def prompt_trained_instead_of_reply() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 0.0 if w or i == 0 else 1.0))


@mutant("A19", "masked_text")
def first_token_of_the_reply_not_trained() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 0.0 if i == first_trained(row) else w))


@mutant("A19", "masked_text")
def reply_of_weight_zero_trained() -> Subject:
    return wrong_template(Bench().subject(), on_example=_change_messages(lambda m: replace(m, weight=None)))


@mutant("A19", "end_of_turn")
def last_trained_token_dropped_from_the_mask() -> Subject:
    return _rows(lambda row: masked(row, lambda i, w: 0.0 if i == last_trained(row) else w))


@mutant("A20", "trained_tokens")
def prompt_longer_than_the_limit() -> Subject:
    return Bench(settings=RowSettings(max_tokens=30, max_truncated_share=1.0)).subject()


@mutant("A23", "base_loss", "model")
def numerator_without_the_weights_of_the_denominator() -> Subject:
    return Bench(objective=parts.UnweightedSFT()).with_model()


@mutant("A21", "gradient_equivalence", "model")
def loss_averaged_over_each_micro_batch() -> Subject:
    return Bench(objective=parts.MeanOfRowsSFT()).with_model()


@mutant("A23", "label_shift")
def message_weights_lost_in_the_batch() -> Subject:
    return replace(Bench().subject(), batches=parts.WrongBatches(parts.wrong_weights))


@mutant("A24", "label_shift")
def labels_shifted_twice() -> Subject:
    return replace(Bench().subject(), batches=parts.WrongBatches(parts.double_shift))


@mutant("A24", "label_shift")
def labels_not_shifted() -> Subject:
    return replace(Bench().subject(), batches=parts.WrongBatches(parts.no_shift))


@mutant("A27", "label_shift")
def first_token_predicted_from_the_row_before() -> Subject:
    return replace(Bench().subject(), batches=parts.WrongBatches(parts.across_rows))


# packing and attention


def scored_by(scorer: Callable[[Any], Any], bench: Bench | None = None) -> Subject:
    subject = (bench or Bench()).with_model()
    cast = subject.need_models()
    return replace(subject, models=Models(scorer(subject.need_model().model), cast.reference))


@mutant("A28", "row_isolation", "model")
def attention_across_rows() -> Subject:
    return scored_by(parts.LeakyScorer)


@mutant("A28", "forest_equivalence", "model")
def attention_across_rows_changes_the_scores() -> Subject:
    return scored_by(parts.LeakyScorer)


@mutant("A29", "forest_equivalence", "model")
def positions_run_on_through_the_batch() -> Subject:
    # Rotary attention sees only distances, so a row that starts late scores the same: the gap must be inside a row,
    # as it is where a shared prefix and its branches are numbered in the order of the batch.
    return replace(Bench().with_model(), batches=parts.WrongBatches(parts.running_positions))


@mutant("own", "gradient_equivalence", "model")
def backward_pass_of_the_attention_wrong() -> Subject:
    return Bench().with_model(parts.weaken_backward)


@mutant("own", "decode_equivalence", "model")
def attention_of_generation_scaled_otherwise() -> Subject:
    return Bench().with_model(parts.flatten_decoding)


@mutant("A37", "forest_equivalence", "model")
def logits_divided_by_the_sampler_temperature() -> Subject:
    return scored_by(parts.WarmScorer)


@mutant("A56", "base_loss", "model")
def a_weight_is_not_a_number() -> Subject:
    def break_one(model: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")

    return Bench().with_model(break_one)
