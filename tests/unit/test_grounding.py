"""Answers beside their passages: abstentions, words, a judge, verdicts, and shares freed of the checker's errors."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.grounding import HELD_OUT, ROWS, calibrated, confusion, cross_validated, folds, read_checked, see

from luthier.data.carried_passages import passages_of
from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.grounding.abstention import abstains
from luthier.evaluation.grounding.calibration import LEXICAL, calibration_of, fit, judges
from luthier.evaluation.grounding.check import judge_answers
from luthier.evaluation.grounding.entailment import evidence
from luthier.evaluation.grounding.item import SIGNALS, VERDICTS, Item
from luthier.evaluation.grounding.judge import ORDERS, Judge
from luthier.evaluation.grounding.prevalence import Corrected
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.share import Share
from luthier.evaluation.significance import Comparison, clopper_pearson, compare
from luthier.models.load import LoadedModel

PASSAGE = (
    "The Grainger Market replaced an earlier market, built in 1808, called the Butcher Market. It was opened in 1835 "
    "and was not listed until 1954. The opening was celebrated with a dinner attended by 2,000 guests. John Dobson and "
    "Richard Grainger were there."
)
ASKED = "What did the Grainger Market replace?"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "...",
        "I don't know.",
        "I do not know the answer to that.",
        "I’m not sure.",
        "Not in the passages.",
        "This is not mentioned in the text.",
        "The passages do not say.",
        "The passage doesn't mention the Grainger Market.",
        "There is no information about this in the passages provided.",
        "Unknown",
        "N/A",
        "I'm sorry, but I cannot answer this from the passage.",
        "I cannot determine this based on the given context. Please provide more information.",
        "It is unclear from the text.",
        "The provided documents contain no information on that.",
        "I have no idea.",
        "Nothing in the passages answers this.",
        "Unfortunately, the text does not specify what the Grainger Market replaced.",
        "The answer to the question is:",
        "We can't tell from the passage.",
        "I have no knowledge of that.",
        "No information about this is given.",
        "No idea.",
        "The exact year is not specified.",
        "It was not stated who built it.",
        "The text makes no mention of it.",
        "It is not possible to tell from the passage.",
        "It is not known.",
        "I don't know, the passage only mentions 1835.",
        "The passage does not mention Tesla, Edison or Westinghouse.",
        "I'm not sure, sorry.",
        "There is not enough evidence to say.",
        "There is no record of who built it.",
        "There is no evidence that it replaced anything in the passages.",
    ],
)
def test_an_answer_that_says_it_has_none_abstains(answer: str) -> None:
    assert abstains(answer, ASKED)


@pytest.mark.parametrize(
    "answer",
    [
        "It was not listed until 1954.",
        "No.",
        "No, Norway did not join.",
        "Not until 1954.",
        "Nobody.",
        "They could not find water.",
        "There are no trees in the desert.",
        "I don't know. It was the Butcher Market.",
        "The passage does not say so directly, but it was the Butcher Market.",
        "He did not know that the market was closed.",
        "The Butcher Market, I think.",
        "Unknown Pleasures",
        "The text was written by nobody famous.",
        "It can't be bought.",
        "The law does not apply to him.",
        "Women were not given the right to vote until 1920.",
        "Lee had no knowledge of the plot.",
        "The police found no evidence of murder.",
        "There is no evidence that he was killed.",
        "There was no record of a fire.",
        "Food was not provided to the rebels.",
        "It is not possible to divide by zero.",
        "It is not known for its beaches.",
        "He was freed for lack of evidence.",
        "I'm not sure, maybe 1851.",
        "I'm not sure, maybe a castle.",
        "I don't know, 1851.",
        "I do not know when it was built - in 1851.",
        "I'm sorry, it was William Armstrong.",
    ],
)
def test_an_answer_that_says_not_is_no_abstention(answer: str) -> None:
    assert not abstains(answer, ASKED)


def test_the_words_of_an_answer_are_found_in_its_passage() -> None:
    seen = evidence(ASKED, "The Butcher Market, built in 1808.", [PASSAGE])
    assert (seen.wrong_numbers, seen.wrong_names, seen.coverage, seen.negation) == (0, 0, 1.0, False)


@pytest.mark.parametrize(
    ("answer", "numbers", "names"),
    [
        ("It opened in 1836.", 1, 0),
        ("Two thousand guests came.", 0, 0),
        ("2000 guests came on 3 May.", 2, 0),
        ("It was built by William Armstrong.", 0, 2),
        ("The Grainger Market replaced it.", 0, 0),
    ],
)
def test_numbers_and_names_that_stand_nowhere_are_counted(answer: str, numbers: int, names: int) -> None:
    seen = evidence(ASKED, answer, [PASSAGE])
    assert (seen.wrong_numbers, seen.wrong_names) == (numbers, names)


def test_numbers_must_stand_in_one_passage_together() -> None:
    apart = ["It opened in 1835.", "It closed in 1901."]
    assert evidence("When?", "From 1835 to 1901.", apart).wrong_numbers == 1
    assert evidence("When?", "From 1835 to 1901.", [" ".join(apart)]).wrong_numbers == 0


@pytest.mark.parametrize(
    ("answer", "flips"),
    [
        ("It was opened in 1835.", False),
        ("It was not opened in 1835.", True),
        ("The opening was never celebrated with a dinner.", True),
        ("The opening was celebrated with a dinner.", False),
        ("It was not listed until 1954.", False),
    ],
)
def test_a_sentence_turned_into_its_opposite_is_seen(answer: str, flips: bool) -> None:
    assert evidence("What of the market?", answer, [PASSAGE]).negation is flips


@pytest.mark.parametrize(
    ("question", "answer", "flips"),
    [
        ("Was the opening celebrated with a dinner?", "No.", True),
        ("Was the opening celebrated with a dinner?", "No, it was quiet.", True),
        ("Was the opening celebrated with a dinner?", "Yes.", False),
        ("Was the market damaged in 1941?", "Yes.", True),
        ("Was the market damaged in 1941?", "No.", False),
        ("Was the market damaged in 1940?", "No.", False),
        ("Was the opening celebrated with a dance?", "No.", False),
        ("Was the opening not celebrated with a dinner?", "No.", False),
        ("Was the opening celebrated with a dinner or a dance?", "No.", False),
        ("How was the opening celebrated with a dinner?", "No.", False),
    ],
)
def test_yes_and_no_answer_what_was_asked(question: str, answer: str, flips: bool) -> None:
    passage = f"{PASSAGE} The market was not damaged in 1941."
    assert evidence(question, answer, [passage]).negation is flips
    if flips:
        (found,) = judge_answers([Item("a", question, answer, (passage,))]).judgements
        assert found.verdict == "unsupported"


def test_what_words_cannot_see_is_not_seen() -> None:
    """The docs say so: an opposite without "not", roles swapped between two names, a synonym, a sum."""
    assert not evidence("Who came?", "Dobson replaced Grainger.", [PASSAGE]).wrong_names
    assert evidence(ASKED, "A place where meat was sold.", [PASSAGE]).coverage < 0.5
    assert evidence(ASKED, "It is 27 years younger.", [PASSAGE]).wrong_numbers == 1


def test_verdicts_and_shares_of_several_answers() -> None:
    answers = {
        "a": "The Butcher Market.",
        "b": "An earlier market called the Butcher Market.",
        "c": "William Armstrong built it in 1870.",
        "d": "I don't know.",
    }
    found = judge_answers([Item(name, ASKED, answer, (PASSAGE,)) for name, answer in answers.items()])
    assert [one.verdict for one in found.judgements] == ["supported", "supported", "unsupported", "abstained"]
    assert [found.share(verdict) for verdict in VERDICTS] == [0.5, 0.25, 0.25]
    assert [one.probability is None for one in found.judgements] == [False, False, False, True]


def test_a_wrong_number_decides_whatever_else_fits() -> None:
    words = "The Grainger Market replaced an earlier market, built in {}, called the Butcher Market."
    right, wrong = (Item("a", ASKED, words.format(year), (PASSAGE,)) for year in (1808, 1809))
    found = judge_answers([right, wrong])
    assert [one.verdict for one in found.judgements] == ["supported", "unsupported"]


def test_an_answer_without_passages_is_refused() -> None:
    with pytest.raises(EvaluationError, match="row a: an answer is judged beside its passages"):
        judge_answers([Item("a", ASKED, "x", (" ",))])


def test_a_judge_whose_error_nobody_measured_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"'gpt-x': it was not calibrated.*benchmarks\.grounding --judge gpt-x"):
        calibration_of("gpt-x")


def test_a_judge_scores_each_item_alike_alone_and_among_others(tiny_loaded: LoadedModel) -> None:
    judge = Judge("tiny", tiny_loaded, build_template(tiny_loaded, "model"))
    items = [Item(str(n), ASKED, answer, (PASSAGE,)) for n, answer in enumerate(["The Butcher Market.", "", "In 1835"])]
    together = judge.signals(items)
    assert len(together[0]) == len(SIGNALS)
    for item, expected in zip(items, together, strict=True):
        assert judge.signals([item])[0] == pytest.approx(expected, abs=1e-4)
    assert together[1][1:] == (0.0, 0.0)  # nothing written: no lift, no surprise


def test_both_orders_are_averaged_and_the_answer_is_scored_with_and_without_passages(
    tiny_loaded: LoadedModel,
) -> None:
    """Against log-probabilities that the model itself computes from whole prompts, token by token."""
    import torch

    template = build_template(tiny_loaded, "model")
    judge = Judge("tiny", tiny_loaded, template)
    item = Item("a", ASKED, "The Butcher Market.", (PASSAGE,))
    words = [template.text_ids(word)[-1] for word in ("Yes", "No")]

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = tiny_loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return found

    odds = []
    for order in ORDERS:
        ids, _ = judge._prompt(item, item.passages, order)
        last = logprobs(ids)[-1]
        odds.append(float(last[words[0]] - last[words[1]]))
    scored = []
    for passages in (item.passages, ()):
        ids, answer = judge._prompt(item, passages, ORDERS[0])
        assert tiny_loaded.tokenizer.decode([ids[at] for at in answer]).strip() == item.answer
        table = logprobs(ids)
        scored.append([float(table[at - 1, ids[at]]) for at in answer])
    lift = float(np.mean(scored[0]) - np.mean(scored[1]))
    assert judge.signals([item])[0] == pytest.approx((np.mean(odds), lift, -min(scored[0])), abs=1e-3)


def test_an_item_that_does_not_fit_the_judge_is_named(make_tiny: "Callable[..., LoadedModel]") -> None:
    loaded = make_tiny()
    judge = Judge("tiny", loaded, build_template(loaded, "model"))
    with pytest.raises(EvaluationError, match=r"row long: .*the judge tiny ends at"):
        judge.signals([Item("long", ASKED, "x", ("word " * 2 * loaded.max_tokens,))])


def test_the_fit_finds_which_evidence_counts() -> None:
    rng = np.random.default_rng(0)
    features_NF = rng.normal(size=(400, 2))
    supported_N = (rng.random(400) < 1 / (1 + np.exp(3 * features_NF[:, 0]))).astype(np.float64)
    bias, weights = fit(features_NF, supported_N)
    assert weights[0] == pytest.approx(-3, abs=0.7)
    assert abs(weights[1]) < 0.4
    assert abs(bias) < 0.4
    with pytest.raises(ValueError, match="supported and unsupported"):
        fit(features_NF, np.ones(400))


CLEAN = ((80, 20, 0), (10, 90, 0), (0, 0, 40))
"""A checker that never takes an abstention for an answer, or an answer for one."""
RATES = np.array([[0.82, 0.18, 0.0], [0.38, 0.62, 0.0], [0.05, 0.05, 0.9]])
"""One that is wrong about as often as the shipped one."""


def given(*rows: int) -> Array:
    """So many rows of each verdict, in order."""
    return np.repeat(np.eye(3), rows, axis=0)


def drawn(rng: np.random.Generator, mix: Sequence[float], rows: int) -> Array:
    """Verdicts that a checker with `RATES` gives answers of this mix."""
    up_to = np.cumsum(RATES, axis=1)[rng.choice(3, rows, p=mix)]
    return np.asarray(np.eye(3)[(rng.random((rows, 1)) > up_to[:, :2]).sum(axis=1)])


def hand_checked(rng: np.random.Generator, times: int = 1) -> list[list[int]]:
    """Its confusion on as many rows as were checked by hand, or a multiple."""
    return [rng.multinomial(times * rows, rates).tolist() for rows, rates in zip((49, 95, 20), RATES, strict=True)]


def compared(a_NV: Array, b_NV: Array) -> list[Comparison]:
    groups = np.arange(len(a_NV))
    return [compare(Share(), a_NV[:, [at]], b_NV[:, [at]], 0.95, 0, groups) for at in range(3)]


def test_corrected_shares_are_those_whose_counts_the_checker_would_give() -> None:
    true_V = np.array([0.3, 0.5, 0.2])
    confusion = (100 * RATES).round().astype(int).tolist()
    counted_NV = given(*(10_000 * true_V @ RATES).round().astype(int))
    found = Corrected(confusion, 0.95, 0).shares(counted_NV, np.arange(len(counted_NV)))
    assert [one.value for one in found] == pytest.approx(true_V, abs=1e-3)
    assert all(one.low < one.value < one.high for one in found)


def test_of_two_classes_the_corrected_share_is_rogan_and_gladens() -> None:
    found = Corrected(CLEAN, 0.95, 0).shares(given(30, 70, 0), np.arange(100))
    assert found[0].value == pytest.approx((0.3 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert found[2].value == pytest.approx(0)
    assert found[2].high > 0.0, "none among 100 is not none ever"


def test_less_calibration_makes_the_interval_wider_and_a_coin_allows_everything() -> None:
    widths = []
    for scale in (1, 10, 100):
        confusion = (scale * np.array([[8, 2, 0], [1, 9, 0], [0, 0, 5]])).tolist()
        found = Corrected(confusion, 0.95, 0).shares(given(30, 60, 10), np.arange(100))[0]
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]
    coin = Corrected(((50, 50, 0), (50, 50, 0), (0, 0, 20)), 0.95, 0).shares(given(30, 60, 10), np.arange(100))[0]
    assert (coin.low, coin.high) == (0.0, 1.0)
    assert np.isnan(coin.value)


def test_no_rows_have_no_shares() -> None:
    found = Corrected(CLEAN, 0.95, 0).shares(given(0, 0, 0), np.arange(0))
    assert all(np.isnan([one.value, one.low, one.high]).all() for one in found)


@pytest.mark.parametrize("mix", [(0.02, 0.9, 0.08), (0.3, 0.7, 0.0), (0.6, 0.2, 0.2)])
def test_the_intervals_of_corrected_shares_cover_the_truth(mix: tuple[float, ...]) -> None:
    """150 worlds: rows, verdicts and hand-checked rows are all drawn anew; about 95 of 100 intervals must hold it."""
    rng = np.random.default_rng(1)
    held_V = np.zeros(3)
    for _ in range(150):
        found = Corrected(hand_checked(rng), 0.95, 0).shares(drawn(rng, mix, 150), np.arange(150))
        held_V += [one.low <= share <= one.high for one, share in zip(found, mix, strict=True)]
    assert (held_V >= 0.91 * 150).all()


def test_one_class_traded_for_another_makes_no_difference_of_the_third() -> None:
    """Training turns unsupported answers into abstentions. One against the rest, `supported` would fall by 0.27, and
    clearly so in every world, because unsupported answers are falsely called supported and abstentions are not."""
    rng = np.random.default_rng(2)
    before, after = np.array([0.3, 0.7, 0.0]), np.array([0.3, 0.3, 0.4])
    values, held_V = [], np.zeros(3)
    for _ in range(60):
        a_NV, b_NV = drawn(rng, before.tolist(), 500), drawn(rng, after.tolist(), 500)
        found = Corrected(hand_checked(rng), 0.95, 0).differences(a_NV, b_NV, compared(a_NV, b_NV), np.arange(500))
        held_V += [one.low <= true <= one.high for one, true in zip(found, before - after, strict=True)]
        values.append(found[0].value)
    assert abs(np.mean(values)) < 0.05
    assert (held_V >= 55).all()


def test_a_real_difference_is_covered_and_told_from_nothing() -> None:
    rng = np.random.default_rng(3)
    before, after = np.array([0.2, 0.7, 0.1]), np.array([0.7, 0.2, 0.1])
    held_V, clear = np.zeros(3), 0
    for _ in range(60):
        a_NV, b_NV = drawn(rng, before.tolist(), 300), drawn(rng, after.tolist(), 300)
        found = Corrected(hand_checked(rng), 0.95, 0).differences(a_NV, b_NV, compared(a_NV, b_NV), np.arange(300))
        held_V += [one.low <= true <= one.high for one, true in zip(found, before - after, strict=True)]
        clear += found[0].high < 0
    assert (held_V >= 0.91 * 60).all()
    assert clear >= 50


@pytest.mark.parametrize("counted", [(110, 10, 0), (1, 119, 0)])
def test_a_share_that_such_a_checker_could_not_count_is_not_called_certain(counted: tuple[int, int, int]) -> None:
    """With 82 of 100 found, nobody counts 92 of 100: the answers are of another kind than those that were checked."""
    corrected = Corrected(((40, 9, 0), (10, 90, 0), (0, 0, 20)), 0.95, 0)
    found = corrected.shares(given(*counted), np.arange(120))
    assert all(one.low <= count / 120 <= one.high for one, count in zip(found, counted, strict=True))
    assert corrected.shares(given(60, 60, 0), np.arange(120))[0].low > 0.3


def test_a_difference_of_two_systems_is_corrected_on_the_same_rows() -> None:
    corrected = Corrected(((90, 10, 0), (10, 90, 0), (0, 0, 40)), 0.95, 0)
    a_NV, b_NV = given(20, 80, 0), given(60, 40, 0)
    found = corrected.differences(a_NV, b_NV, compared(a_NV, b_NV), np.arange(100))
    assert found[0].value == pytest.approx((0.2 - 0.6) / 0.8)
    assert found[0].high < 0 < found[1].low
    for one in corrected.differences(a_NV, a_NV, compared(a_NV, a_NV), np.arange(100)):
        assert one.value == 0
        assert one.low <= 0 <= one.high


def test_correcting_makes_nothing_clear_that_counting_left_open() -> None:
    corrected = Corrected(((90, 10, 0), (10, 90, 0), (0, 0, 40)), 0.95, 0)
    a_NV, b_NV = given(20, 80, 0), given(60, 40, 0)
    unclear, clear = Comparison(-0.4, -0.8, 0.08, 0.07, 0.2, "given"), Comparison(0.4, 0.3, 0.5, 0.001, 0.05, "given")
    nothing = Comparison(0, 0, 0, 1, 0, "given")
    found = corrected.differences(a_NV, b_NV, [unclear, unclear, nothing], np.arange(100))
    assert found[0].low <= 0 <= found[0].high
    assert found[0].high - found[0].value >= 0.08 - -0.4
    assert corrected.differences(a_NV, b_NV, [unclear, clear, nothing], np.arange(100))[1].low > 0


def test_passages_are_found_in_rows_and_in_prompts() -> None:
    asked = {"role": "user", "content": ASKED}
    assert passages_of([asked], {}) == (ASKED, ())
    for extra in (
        {"passages": [PASSAGE, "Other."]},
        {"passages": [{"text": PASSAGE}, {"content": "Other."}]},
        {"context": [PASSAGE, "Other."]},
    ):
        assert passages_of([asked], extra) == (ASKED, (PASSAGE, "Other."))
    assert passages_of([asked], {"context": PASSAGE})[1] == (PASSAGE,)
    assert passages_of([asked], {"passages": [{"title": "Market", "text": PASSAGE}]})[1] == (f"Market\n{PASSAGE}",)
    assert passages_of([asked], {"context": {"lang": "en"}, "passages": []})[1] == ()
    numbered = f"Passages:\n\n[1] Market\n{PASSAGE}\n\n[2] Other.\n\nAnswer from these passages.\n\n{ASKED}"
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": numbered}]
    assert passages_of(prompt, {"passages": ["not what it read"]}) == (ASKED, (f"Market\n{PASSAGE}", "Other."))
    named = {"role": "user", "content": f"Context: {PASSAGE}\n\nQuestion: {ASKED}\nAnswer:"}
    assert passages_of([named], {}) == (ASKED, (PASSAGE,))
    turned = {"role": "user", "content": f"Question: {ASKED}\nContext: {PASSAGE}"}
    assert passages_of([turned], {}) == (ASKED, (PASSAGE,))
    assert passages_of([{"role": "user", "content": "In what context: explain. Question: why?"}], {})[1] == ()


def test_a_hundred_rows_were_checked_by_hand_and_none_is_fitted_on_and_measured_with(shared_data: Path) -> None:
    rows = read_checked(data=shared_data / "rag_qa")
    labels = Counter(row.label for row in rows)
    assert len(rows) >= 100
    assert min(labels[verdict] for verdict in VERDICTS) >= 15
    assert len({row.item.id for row in rows}) == len(rows)
    fold_of: dict[str, set[int]] = {}
    for row, fold in zip(rows, folds(rows), strict=True):
        fold_of.setdefault(row.group, set()).add(fold)
    assert all(len(found) == 1 for found in fold_of.values())


def test_the_shipped_weights_and_errors_are_those_of_the_hand_checked_rows(shared_data: Path) -> None:
    rows = read_checked(data=shared_data / "rag_qa")
    seen = see(rows, ())
    shipped, fresh = calibration_of(LEXICAL), calibrated(rows, seen, LEXICAL)
    assert shipped.confusion == fresh.confusion == confusion(rows, cross_validated(rows, seen, True, LEXICAL))
    assert shipped.weights == pytest.approx(fresh.weights, abs=1e-3)
    assert shipped.provenance == fresh.provenance


def test_rows_held_out_are_others_and_the_shipped_errors_allow_what_they_show(shared_data: Path) -> None:
    """No row of the second file was fitted on; the share judged wrongly there is not clearly above the shipped one."""
    fitted, held_out = read_checked(data=shared_data / "rag_qa"), read_checked(HELD_OUT, shared_data / "rag_qa")
    assert len(held_out) >= 50
    assert not {(r.item.question, r.item.answer) for r in fitted} & {(r.item.question, r.item.answer) for r in held_out}
    checker = calibration_of(LEXICAL)
    wrong = sum(checker.verdict(row.item)[0] != row.label for row in held_out)
    table = np.array(checker.confusion)
    shipped = 1 - float(np.trace(table) / table.sum())
    low, _ = clopper_pearson(wrong, len(held_out))
    assert low < shipped


@pytest.mark.parametrize("judge", judges())
def test_every_shipped_checker_is_better_than_a_coin(judge: str) -> None:
    for verdict in VERDICTS:
        (found, there), (passed, others) = calibration_of(judge).rates(verdict)
        assert found / there + passed / others > 1.2, (judge, verdict)


@pytest.mark.parametrize("path", [ROWS, HELD_OUT])
def test_benchmark_rows_hold_no_text_of_the_data_set(path: Path) -> None:
    fields = {key for line in path.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
    assert fields == {"id", "question", "passages", "kind", "answer", "label", "doubt"}
