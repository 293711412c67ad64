"""Each rule of the decision, from both sides of its line."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.ladders import KINDS, LADDER, RETRIEVED, N, facts, failing, measured, system

from luthier.report.ladder import FEWEST_ROWS, Facts, Ladder, failure_share, rung
from luthier.report.schema import (
    Change,
    Details,
    Difference,
    Finding,
    Forgetting,
    Gate,
    Interval,
    Measure,
    Split,
    System,
    Training,
    ValidationPoint,
)
from luthier.report.verdict import contest, decide


def test_nothing_evaluated_is_not_yet() -> None:
    verdict = decide(Facts())
    assert (verdict.recommendation, verdict.rule, verdict.system) == ("not_yet", "unmeasured", None)
    assert "luthier evaluate" in verdict.would_change[0]


@pytest.mark.parametrize("missing", ["fine_tuned", "baselines"])
def test_a_ladder_without_two_sides_is_not_yet(missing: str) -> None:
    values = {k: v for k, v in LADDER.items() if (k == "fine_tuned") == (missing == "baselines")}
    verdict = decide(facts(values))
    assert (verdict.recommendation, verdict.rule) == ("not_yet", "unmeasured")
    assert ("no held-out fine-tuned model" in verdict.sentence) == (missing == "fine_tuned")


@pytest.mark.parametrize(
    ("severity", "expected"), [("error", "not_yet"), ("warning", "fine_tune"), ("note", "fine_tune")]
)
def test_only_errors_in_the_data_block(severity: Any, expected: str) -> None:
    finding = Finding(check="schema", severity=severity, message="row 7 has no answer.", count=1)
    assert decide(facts(LADDER, findings=(finding,))).recommendation == expected


@pytest.mark.parametrize(("passed", "expected"), [(False, ("not_yet", "blocked")), (True, ("fine_tune", "fine_tune"))])
def test_a_failed_gate_blocks(passed: bool, expected: tuple[str, str]) -> None:
    verdict = decide(facts(LADDER, preflight=(Gate(gate="end_of_turn", passed=passed),)))
    assert (verdict.recommendation, verdict.rule) == expected


@pytest.mark.parametrize(("n", "expected"), [(FEWEST_ROWS - 1, "few_rows"), (FEWEST_ROWS, "fine_tune")])
def test_too_few_rows_for_any_interval(n: int, expected: str) -> None:
    systems = tuple(system(name, value, n=n) for name, value in LADDER.items())
    assert decide(facts(LADDER, systems=systems)).rule == expected


@pytest.mark.parametrize(("share", "expected"), [(0.051, "unfit"), (0.049, "fine_tune")])
def test_the_format_floor_holds_for_the_best_system(share: float, expected: str) -> None:
    systems = tuple(system(name, value, failures=failing(share)) for name, value in LADDER.items())
    assert decide(facts(LADDER, systems=systems)).rule == expected


def test_an_unreliable_fine_tuned_model_is_passed_over() -> None:
    systems = (system("zero_shot", 0.6), system("few_shot", 0.8), system("fine_tuned", 0.92, failures=failing(0.2)))
    verdict = decide(facts(LADDER, systems=systems))
    assert (verdict.recommendation, verdict.system) == ("few_shot", "few_shot")
    assert "fails the wanted format in 20 %" in verdict.sentence


def test_what_is_fit_for_use_is_chosen_and_what_would_have_been_is_told() -> None:
    systems = (
        system("crf", 0.5),
        system("zero_shot", 0.6, failures=failing(0.3)),
        system("fine_tuned", 0.92, failures=failing(0.2)),
    )
    verdict = decide(facts({"crf": 0.5, "zero_shot": 0.6, "fine_tuned": 0.92}, systems=systems))
    assert (verdict.recommendation, verdict.rule) == ("external", "external")
    assert "fails the wanted format in 20 %" in verdict.sentence
    assert verdict.would_change[0].startswith("The fine-tuned model without what stands against it")


def test_a_trained_model_is_all_that_is_fit_for_use() -> None:
    systems = (system("zero_shot", 0.6, failures=failing(0.3)), system("fine_tuned", 0.58))
    verdict = decide(facts({"zero_shot": 0.6, "fine_tuned": 0.58}, systems=systems))
    assert (verdict.recommendation, verdict.rule) == ("fine_tune", "fine_tune")
    assert (
        "; nothing without training is fit for use: the plain prompt fails the wanted format in 30 %"
        in verdict.sentence
    )


@pytest.mark.parametrize(("tuned", "expected"), [(0.85, "fine_tune"), (0.81, "external")])
def test_a_program_must_hold_up_against_the_trained_models_that_are_fit(tuned: float, expected: str) -> None:
    """The best trained one, which ties with the program, breaks the format; another one is fit."""
    values = {"zero_shot": 0.5, "crf": 0.80, "fine_tuned": tuned, "fine_tuned_rag": 0.82}
    systems = tuple(
        system(name, value, failures=failing(0.47 if name == "fine_tuned_rag" else 0)) for name, value in values.items()
    )
    assert decide(facts(values, systems=systems)).recommendation == expected


@pytest.mark.parametrize("kind", ["prompt", "program"])
def test_an_unfit_trained_model_leaves_a_program_and_a_prompt_alike(kind: str) -> None:
    rival = "few_shot" if kind == "prompt" else "crf"
    values = {"zero_shot": 0.5, rival: 0.8, "fine_tuned": 0.9}
    systems = tuple(
        system(name, value, failures=failing(0.47 if name == "fine_tuned" else 0)) for name, value in values.items()
    )
    verdict = decide(facts(values, systems=systems))
    assert verdict.system == rival and "fails the wanted format in 47 %" in verdict.sentence


def test_forgetting_is_no_doubt_of_what_was_not_trained() -> None:
    change = Change(value=-0.1, low=-0.12, high=-0.08)
    lost = Measure(name="choice", before=Interval(value=0.5), after=Interval(value=0.4), difference=change)
    forgot = Forgetting(verdict="clear", measures=(lost,))
    for values, mind in ((LADDER, True), ({**LADDER, "fine_tuned": 0.8}, False)):
        verdict = decide(facts(values, forgetting=forgot))
        assert ("Mind: general ability was lost" in verdict.sentence) == mind
        assert len(verdict.warnings) == 1


@pytest.mark.parametrize(
    ("gain", "half", "expected"),
    [
        (0.05, 0.04, "fine_tune"),  # clear of zero and large
        (0.05, 0.06, "few_shot"),  # touches zero
        (0.015, 0.005, "few_shot"),  # clear of zero but too small to matter
        (0.021, 0.005, "fine_tune"),  # clear of zero and just large enough
        (-0.05, 0.01, "few_shot"),  # clearly worse
    ],
)
def test_fine_tuning_must_be_clear_of_zero_and_large_enough(gain: float, half: float, expected: str) -> None:
    verdict = decide(facts({"zero_shot": 0.5, "few_shot": 0.8, "fine_tuned": 0.8 + gain}, half))
    assert verdict.recommendation == expected
    assert verdict.baseline == "few_shot"
    assert verdict.difference is not None and verdict.difference.difference == pytest.approx(gain)


@pytest.mark.parametrize(("zero", "expected"), [(0.79, "prompt"), (0.74, "few_shot")])
def test_the_cheaper_prompt_wins_a_tie(zero: float, expected: str) -> None:
    assert decide(facts({"zero_shot": zero, "few_shot": 0.80, "fine_tuned": 0.81})).recommendation == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (0.95, "external"),  # clearly better
        (0.92, "external"),  # equal
        (0.90, "external"),  # a tie from below
        (0.85, "fine_tune"),  # clearly worse
    ],
)
def test_an_external_program_that_beats_or_ties_needs_no_language_model(program: float, expected: str) -> None:
    verdict = decide(facts({**LADDER, "crf": program}))
    assert verdict.recommendation == expected
    assert ("No language model is needed" in verdict.sentence) == (expected == "external")


def test_a_prompt_that_clearly_beats_the_program_is_not_replaced_by_it() -> None:
    assert decide(facts({"zero_shot": 0.9, "fine_tuned": 0.7, "crf": 0.7})).recommendation == "prompt"


def test_an_external_program_that_is_not_held_out_never_counts() -> None:
    values = {**LADDER, "crf": 0.99}
    systems = tuple(system(name, value, held_out=name != "crf") for name, value in values.items())
    verdict = decide(facts(values, systems=systems))
    assert (verdict.recommendation, verdict.baseline) == ("fine_tune", "few_shot")
    assert any("crf scores higher" in warning for warning in verdict.warnings)
    assert any("crf is left out of the decision" in e.text for e in verdict.evidence)


def test_a_baseline_that_is_not_held_out_is_no_baseline() -> None:
    values = {"zero_shot": 0.6, "few_shot": 0.95, "fine_tuned": 0.8}
    systems = tuple(system(name, value, held_out=name != "few_shot") for name, value in values.items())
    verdict = decide(facts(values, systems=systems))
    assert (verdict.recommendation, verdict.baseline) == ("fine_tune", "zero_shot")


def test_a_fine_tuned_model_that_is_not_held_out_is_never_chosen() -> None:
    systems = (system("zero_shot", 0.6), system("fine_tuned", 0.99, held_out=False))
    assert decide(facts({"zero_shot": 0.6, "fine_tuned": 0.99}, systems=systems)).recommendation == "not_yet"


@pytest.mark.parametrize(("mde", "expected"), [(0.11, "coarse"), (0.10, "cheaper_rung")])
def test_a_tie_counts_only_if_the_test_could_have_seen_a_difference(mde: float, expected: str) -> None:
    verdict = decide(facts({"zero_shot": 0.80, "fine_tuned": 0.82}, half=0.05, mde=mde))
    assert verdict.rule == expected


@pytest.mark.parametrize(("half", "expected"), [(0.08, "coarse"), (0.06, "cheaper_rung")])
def test_without_a_measured_effect_size_it_follows_from_the_interval(half: float, expected: str) -> None:
    # half-width times (1.96 + 0.84) / 1.96 = 1.43: 0.114 and 0.086
    verdict = decide(facts({"zero_shot": 0.80, "fine_tuned": 0.82}, half=half, mde=None))
    assert verdict.rule == expected


def test_a_clear_difference_is_never_too_coarse() -> None:
    assert decide(facts(LADDER, half=0.1, mde=0.15)).rule == "fine_tune"


def test_the_rows_that_are_needed_are_named() -> None:
    verdict = decide(facts({"zero_shot": 0.80, "fine_tuned": 0.82}, half=0.15, mde=0.2))
    assert "about 600 test rows" in verdict.would_change[0]  # 150 * (0.2 / 0.1) ** 2


def test_lower_is_better_turns_every_comparison() -> None:
    evaluation = measured(lower_is_better=("f1",), bounds={})
    better = facts({"zero_shot": 12.0, "fine_tuned": 9.0}, half=1.0, evaluation=evaluation)
    worse = facts({"zero_shot": 9.0, "fine_tuned": 12.0}, half=1.0, evaluation=evaluation)
    assert decide(better).recommendation == "fine_tune"
    assert decide(worse).recommendation == "prompt"


def test_the_best_prompt_is_the_lowest_where_lower_is_better() -> None:
    evaluation = measured(lower_is_better=("f1",), bounds={})
    verdict = decide(facts({"zero_shot": 12.0, "few_shot": 10.0, "fine_tuned": 9.0}, half=0.5, evaluation=evaluation))
    assert (verdict.baseline, verdict.recommendation) == ("few_shot", "fine_tune")


def test_without_bounds_effects_are_shares_of_the_baseline() -> None:
    loose = measured(bounds={})
    large = facts({"zero_shot": 50.0, "fine_tuned": 51.5}, half=0.4, mde=1.0, evaluation=loose)
    small = facts({"zero_shot": 50.0, "fine_tuned": 50.5}, half=0.4, mde=1.0, evaluation=loose)
    assert (decide(large).recommendation, decide(small).recommendation) == ("fine_tune", "prompt")


@pytest.mark.parametrize(
    ("bounds", "expected"), [({"f1": (0.0, 1.0)}, "prompt"), ({}, "fine_tune"), ({"f1": (1.0, 0.0)}, "prompt")]
)
def test_the_scale_is_read_and_not_guessed_from_values(bounds: Any, expected: str) -> None:
    """0.019 is under 2 % of a scale from 0 to 1, and over 2 % of 0.9 bits per byte."""
    evaluation = measured(bounds=bounds, lower_is_better=("f1",))
    ladder = facts({"zero_shot": 0.9, "fine_tuned": 0.881}, half=0.005, mde=0.005, evaluation=evaluation)
    assert decide(ladder).recommendation == expected


def test_a_scale_of_a_hundred_points() -> None:
    hundred = measured(bounds={"f1": (0.0, 100.0)})
    small = facts({"zero_shot": 50.0, "fine_tuned": 51.5}, half=0.4, mde=1.0, evaluation=hundred)
    large = facts({"zero_shot": 50.0, "fine_tuned": 52.5}, half=0.4, mde=1.0, evaluation=hundred)
    assert (decide(small).recommendation, decide(large).recommendation) == ("prompt", "fine_tune")


@pytest.mark.parametrize(("mde", "expected"), [(4.9, "cheaper_rung"), (5.1, "coarse")])
def test_what_would_show_is_a_share_of_the_scale(mde: float, expected: str) -> None:
    ladder = facts({"zero_shot": 50.0, "fine_tuned": 50.1}, half=1.0, mde=mde, evaluation=measured(bounds={}))
    assert decide(ladder).rule == expected


# pairs


def pair(a: str, b: str) -> frozenset[str]:
    return frozenset((a, b))


ZERO_FEW, ZERO_TUNED, FEW_TUNED = (
    pair("zero_shot", "few_shot"),
    pair("zero_shot", "fine_tuned"),
    pair("few_shot", "fine_tuned"),
)


def test_a_chain_of_ties_does_not_reach_a_prompt_that_is_clearly_beaten() -> None:
    """few_shot ties with both of its neighbors, and zero_shot is clearly worse than the fine-tuned model."""
    values = {"zero_shot": 0.52, "few_shot": 0.58, "fine_tuned": 0.645}
    verdict = decide(facts(values, half={ZERO_FEW: 0.07, FEW_TUNED: 0.07, ZERO_TUNED: 0.065}))
    assert (verdict.recommendation, verdict.system) == ("few_shot", "few_shot")
    assert "too small" not in verdict.sentence and "no clear gain" in verdict.sentence


@pytest.mark.parametrize(("blind", "expected"), [(FEW_TUNED, "coarse"), (ZERO_TUNED, "cheaper_rung")])
def test_what_would_show_is_that_of_the_pair(blind: frozenset[str], expected: str) -> None:
    """few_shot is the best prompt, zero_shot clearly worse: only the comparison with few_shot matters."""
    values = {"zero_shot": 0.5, "few_shot": 0.8, "fine_tuned": 0.82}
    mde = {p: 0.3 if p == blind else 0.05 for p in (ZERO_FEW, FEW_TUNED, ZERO_TUNED)}
    half = {ZERO_FEW: 0.05, FEW_TUNED: 0.06, ZERO_TUNED: 0.05}
    assert decide(facts(values, half=half, mde=mde)).rule == expected


def test_a_program_is_chosen_only_for_a_tie_that_the_test_could_have_seen() -> None:
    values = {"zero_shot": 0.5, "fine_tuned": 0.86, "crf": 0.85}
    wide = {ZERO_TUNED: 0.05, pair("crf", "fine_tuned"): 0.3, pair("crf", "zero_shot"): 0.05}
    assert decide(facts(values, half=wide, mde=None)).rule == "coarse"
    assert decide(facts(values, half={**wide, pair("crf", "fine_tuned"): 0.04}, mde=None)).rule == "external"


def test_a_prompt_is_not_chosen_over_a_program_that_clearly_beats_it() -> None:
    """The program loses to the fine-tuned model, which fails the format; the prompt is far below both."""
    values = {"zero_shot": 0.5, "fine_tuned": 0.95, "crf": 0.9}
    systems = (system("zero_shot", 0.5), system("fine_tuned", 0.95, failures=failing(0.2)), system("crf", 0.9))
    assert decide(facts(values, systems=systems, half=0.02)).recommendation == "external"


def test_a_difference_that_the_test_does_not_confirm_is_not_clear() -> None:
    ladder = facts({"zero_shot": 0.0, "fine_tuned": 0.04}, half=0.039)
    doubted = tuple(d.model_copy(update={"p_value": 0.125}) for d in ladder.differences)
    sure = tuple(d.model_copy(update={"p_value": 0.05}) for d in ladder.differences)
    found = [decide(replace(ladder, differences=d)).recommendation for d in (doubted, sure)]
    assert found == ["prompt", "fine_tune"]


def test_no_verdict_contradicts_its_own_numbers() -> None:
    """2,000 random ladders: what is chosen is clearly worse than nothing reliable, and "too small" is small."""
    rng = random.Random(14)
    spoken = 0
    for _ in range(2000):
        values = {name: round(rng.uniform(0.4, 0.9), 3) for name in KINDS if name != "crf" or rng.random() < 0.5}
        half = {pair(a, b): rng.choice((0.005, 0.03, 0.06, 0.2)) for a in values for b in values if a < b}
        systems = tuple(system(n, v, failures=failing(rng.choice((0.0, 0.0, 0.2)))) for n, v in values.items())
        ladder = facts(values, half=half, mde=None, systems=systems)
        verdict = decide(ladder)
        seen = Ladder(ladder)
        reliable = [s for s in systems if failure_share(s) < 0.05]
        if verdict.system is not None:
            chosen = next(s for s in systems if s.name == verdict.system)
            rivals = [s for s in reliable if s is not chosen and (s.type != "command" or chosen.name != "fine_tuned")]
            assert chosen in reliable and not any(seen.clearly_better(s, chosen) for s in rivals), (values, half)
        if "too small to matter" in verdict.sentence:
            spoken += 1
            assert abs(values["fine_tuned"] - values[str(verdict.system)]) < 0.02
    assert spoken > 5


# rows that repeat, answers that were cut off


@pytest.mark.parametrize(("groups", "expected"), [(FEWEST_ROWS - 1, "few_rows"), (FEWEST_ROWS, "fine_tune")])
def test_rows_that_repeat_are_not_many_rows(groups: int, expected: str) -> None:
    verdict = decide(facts(LADDER, evaluation=measured(groups=groups)))
    assert verdict.rule == expected
    assert f"{groups} different test rows cannot" in verdict.sentence or expected != "few_rows"


@pytest.mark.parametrize(("groups", "doubted"), [(40, True), (142, True), (143, False), (150, False), (None, False)])
def test_a_test_of_repeated_rows_is_a_doubt(groups: int | None, doubted: bool) -> None:
    verdict = decide(facts(LADDER, evaluation=measured(groups=groups)))
    assert any(f"only {groups} are different" in w for w in verdict.warnings) == doubted
    assert ("test rows repeat each other" in verdict.sentence) == doubted
    assert (f"150 unseen rows ({groups} of them different)" in verdict.sentence) == doubted


@pytest.mark.parametrize(
    ("name", "cut", "doubted"), [("few_shot", 8, True), ("few_shot", 7, False), ("zero_shot", 90, False)]
)
def test_a_baseline_whose_answers_were_cut_off_is_a_doubt(name: str, cut: int, doubted: bool) -> None:
    systems = tuple(system(n, v, details=Details(answers_cut_off=cut if n == name else 0)) for n, v in LADDER.items())
    verdict = decide(facts(LADDER, systems=systems))
    assert any("8 of the 150 answers of few_shot" in w for w in verdict.warnings) == doubted
    assert ("few-shot prompting were cut off" in verdict.sentence) == doubted


def test_a_difference_that_was_measured_the_other_way_round_is_turned() -> None:
    base = facts({"zero_shot": 0.5, "fine_tuned": 0.8})
    turned = Difference(a="zero_shot", b="fine_tuned", metric="f1", difference=-0.3, low=-0.35, high=-0.2)
    verdict = decide(facts({"zero_shot": 0.5, "fine_tuned": 0.8}, differences=(turned,)))
    assert verdict.difference is not None
    assert (verdict.difference.a, verdict.difference.low, verdict.difference.high) == ("fine_tuned", 0.2, 0.35)
    assert decide(base).recommendation == verdict.recommendation == "fine_tune"


@pytest.mark.parametrize(("tuned", "expected"), [(0.85, "fine_tune"), (0.83, "prompt")])
def test_without_a_paired_difference_the_intervals_are_added_as_independent(tuned: float, expected: str) -> None:
    # half-widths 0.03 and 0.03 give 0.0424, and the gap is 0.05 or 0.03
    verdict = decide(facts({"zero_shot": 0.80, "fine_tuned": tuned}, differences=()))
    assert verdict.recommendation == expected
    assert verdict.difference is not None and "not paired" in (verdict.difference.test or "")


def test_missing_intervals_never_prove_anything() -> None:
    bare = tuple(
        System(name=name, n=N, metrics={"f1": Interval(value=value)}, **KINDS[name]) for name, value in LADDER.items()
    )
    assert decide(facts(LADDER, systems=bare, differences=(), mde=None)).rule == "coarse"


def test_forgetting_that_was_not_measured_is_no_evidence() -> None:
    found = decide(facts(LADDER, forgetting=Forgetting(verdict="none measured")))
    assert "forgetting.json" not in [e.source for e in found.evidence]


def test_forgetting_is_a_warning_only_when_the_interval_is_clear_of_zero() -> None:
    def changed(low: float, high: float, higher: bool) -> Forgetting:
        change = Change(value=(low + high) / 2, low=low, high=high)
        return Forgetting(
            verdict="clear",
            measures=(
                Measure(name="choice", higher_is_better=higher, before=Interval(), after=Interval(), difference=change),
            ),
        )

    lost = [changed(-0.05, -0.01, True), changed(0.1, 0.4, False)]
    kept = [changed(-0.05, 0.01, True), changed(0.01, 0.05, True), changed(-0.4, -0.1, False)]
    assert all("general ability was lost" in decide(facts(LADDER, forgetting=f)).sentence for f in lost)
    assert not any(decide(facts(LADDER, forgetting=f)).warnings for f in kept)


def test_leaks_and_label_noise_and_interruption_are_said() -> None:
    noise = Finding(check="label_errors", severity="warning", message="12 rows look mislabeled", count=12)
    dull = Finding(check="duplicates", severity="warning", message="3 repeats", count=3)
    training = Training(stopped="interrupted")
    verdict = decide(facts(LADDER, findings=(noise, dull), split=Split(leaks=2), training=training))
    assert [w.split()[0] for w in verdict.warnings] == ["2", "The", "The"]
    assert "12 rows look mislabeled" in verdict.warnings[1]
    assert verdict.sentence.startswith(verdict.headline) and "leaked" in verdict.sentence
    assert not decide(
        facts(LADDER, findings=(dull,), split=Split(leaks=0), training=Training(stopped="finished"))
    ).warnings


@pytest.mark.parametrize(("best", "expected"), [(30, True), (20, False)])
def test_a_loss_that_still_falls_would_change_it(best: int, expected: bool) -> None:
    points = tuple(ValidationPoint(step=s, loss=1.0) for s in (10, 20, 30))
    training = Training(stopped="finished", best_step=best, validation=points)
    verdict = decide(facts(LADDER, training=training))
    assert any("Longer training" in text for text in verdict.would_change) == expected


def test_rungs_follow_type_and_baseline() -> None:
    assert [rung(system(name, 0.5)) for name in KINDS] == ["prompt", "few_shot", "fine_tune", "external"]
    assert rung(system("zero_shot", 0.5, baseline=False, held_out=False)) == "prompt"
    assert rung(system("zero_shot", 0.5, type="another")) == "prompt"
    assert rung(system("fine_tuned", 0.5, type="another")) == "fine_tune"
    assert rung(system("zero_shot", 0.5, rung="rag")) == "rag"


def test_contest_names_the_two_sides() -> None:
    assert contest(facts({**LADDER, "crf": 0.99})) == ("fine_tuned", "few_shot")
    assert contest(Facts()) == (None, None)


def test_of_equals_the_cheaper_is_best() -> None:
    found = Ladder(facts({"few_shot": 0.8, "zero_shot": 0.8, "fine_tuned": 0.9})).best("prompt", "few_shot")
    assert found is not None and found.name == "zero_shot"


def test_failure_share_is_the_worst_of_the_forms() -> None:
    both = {**failing(0.02), "schema_valid": failing(0.3)["json_valid"]}
    assert failure_share(system("zero_shot", 0.5, failures=both)) == pytest.approx(0.3)
    assert failure_share(system("zero_shot", 0.5)) == 0


def test_the_sentence_has_gain_interval_and_system() -> None:
    sentence = decide(facts(LADDER)).sentence
    assert sentence == (
        "Fine-tune: the fine-tuned model reaches F1 0.920 on 150 unseen rows, "
        "+0.12 [0.09, 0.15] over few-shot prompting, the best without training."
    )


@pytest.mark.parametrize(
    ("verdict", "short"),
    [
        ("slight", "a little general ability was lost"),
        ("clear", "general ability was lost"),
        ("none measured", "one measure"),
    ],
)
def test_forgetting_is_said_as_strongly_as_it_was_measured(verdict: str, short: str) -> None:
    change = Change(value=-0.03, low=-0.05, high=-0.01)
    lost = Measure(name="choice", before=Interval(), after=Interval(), difference=change)
    found = decide(facts(LADDER, forgetting=Forgetting(verdict=verdict, measures=(lost,))))
    assert f"Mind: {short}" in found.sentence
    assert found.warnings == ("General ability fell: choice changed by \u22120.03 [\u22120.05, \u22120.01].",)
    assert verdict not in [e.text for e in found.evidence]


# retrieval, another model, and both kinds of training


@pytest.mark.parametrize(
    ("changes", "expected", "chosen"),
    [
        ({}, "fine_tune+rag", "fine_tuned_rag"),
        ({"fine_tuned_rag": 0.71}, "rag", "rag"),  # training on passages brings nothing
        ({"fine_tuned": 0.89}, "fine_tune", "fine_tuned"),  # what needs no retrieval ties with what does
        ({"fine_tuned": 0.84}, "fine_tune+rag", "fine_tuned_rag"),  # and here it is clearly worse
        ({"rag": 0.21, "fine_tuned": 0.22, "fine_tuned_rag": 0.22}, "prompt", "zero_shot"),
        ({"other": 0.95}, "prompt", "other"),  # a larger model beats everything
        ({"other": 0.91}, "prompt", "other"),  # or ties with what was trained
        ({"other": 0.86}, "fine_tune+rag", "fine_tuned_rag"),
    ],
)
def test_each_rung_is_chosen_where_it_is_the_cheapest_that_holds_up(
    changes: Mapping[str, float], expected: str, chosen: str
) -> None:
    verdict = decide(facts({**RETRIEVED, **changes}))
    assert (verdict.recommendation, verdict.system) == (expected, chosen)
    assert verdict.fine_tuned == max(
        ("fine_tuned", "fine_tuned_rag"), key=lambda name: {**RETRIEVED, **changes}.get(name, 0)
    )


def test_the_gain_of_both_over_training_alone_is_told() -> None:
    assert "+0.60 [0.57, 0.63] over the fine-tuned model" in decide(facts(RETRIEVED)).sentence


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        ({"other": 90.0, "fine_tuned_rag": 80.0}, "fine_tune+rag"),
        ({"other": 90.0, "fine_tuned_rag": 95.0}, "prompt"),
        ({"fine_tuned_rag": 80.0}, "prompt"),  # its price is not known
    ],
)
def test_of_another_model_and_a_trained_one_that_tie_the_cheaper_is_chosen(
    usd: Mapping[str, float], expected: str
) -> None:
    verdict = decide(replace(facts({**RETRIEVED, "other": 0.91}), monthly_usd=usd))
    assert verdict.recommendation == expected
    assert ("costs $90.00 a month beside $80.00" in verdict.sentence) == (expected == "fine_tune+rag")


def test_a_better_model_is_not_passed_over_for_its_price() -> None:
    dear = {"other": 90.0, "fine_tuned_rag": 8.0}
    assert decide(replace(facts({**RETRIEVED, "other": 0.95}), monthly_usd=dear)).system == "other"
