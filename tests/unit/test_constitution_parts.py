"""Parts of a constitution's run: which principles are drawn, what the critic is asked, and what its letters mean."""

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.constitutions import PRINCIPLES

from luthier.config import build
from luthier.constitution import require_fit
from luthier.constitution.batches import in_batches
from luthier.constitution.calibration import (
    BINS,
    READ,
    TEMPERATURES,
    Vote,
    calibrate,
    curve_of,
    expected_error,
    fit_temperature,
    probability,
    sigmoid,
    vote_of,
)
from luthier.constitution.compare import places_of
from luthier.constitution.learn import NOT_REVISED, supervised_rows
from luthier.constitution.measure import Measure
from luthier.constitution.principles import Constitution, Principle, compared_by, constitution_of, revised_by
from luthier.constitution.prompts import comparison_prompt, critique_prompt, judge_prompts, revision_of, revision_prompt
from luthier.constitution.report import outcome_of
from luthier.constitution.revise import ABOUT, REPEATS, SAYS_BACK, no_reply, prompts_of
from luthier.constitution.voices import TOO_LONG, Ask, Here, leaning_of
from luthier.data.templates import build_template
from luthier.errors import DataError, RecipeError
from luthier.evaluation.refusals import labeled, measured_errors, refuses
from luthier.evaluation.share import Number, Share
from luthier.evaluation.significance import clopper_pearson
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference, ToolCall
from luthier.models.load import LoadedModel
from luthier.progress import Silent
from luthier.recipe import ConstitutionSettings, Recipe
from luthier.report import constitution as pages
from luthier.report.part import Interval

ASKED = (Message("user", "How do I open a lock?"),)


def shipped(**settings: Any) -> tuple[Constitution, ConstitutionSettings]:
    chosen = build(ConstitutionSettings, {"harmless": "rows.jsonl", **settings})
    return constitution_of(chosen)[0], chosen


# principles


def test_the_constitution_that_ships_is_about_harm_and_about_evasion() -> None:
    constitution, settings = shipped()
    names = [principle.name for principle in constitution.principle]
    assert 8 <= len(names) <= 12 and {"no_help_with_harm", "no_evasion", "no_preaching"} <= set(names)
    assert len(constitution.example) >= settings.shots
    assert {example.principle for example in constitution.example} >= {"no_help_with_harm", "no_evasion"}
    assert constitution.of("harmless") != constitution.of("red_team")


def test_principles_are_drawn_by_the_seed_and_the_place_alone() -> None:
    constitution, settings = shipped(rounds=4)
    known = constitution.of("red_team")
    drawn = [revised_by(constitution, settings, 0, place) for place in range(400)]
    assert drawn[7:9] == [revised_by(constitution, settings, 0, place) for place in (7, 8)]
    assert drawn != [revised_by(constitution, settings, 1, place) for place in range(400)]
    assert all(len(set(one)) == 4 and set(one) <= set(known) for one in drawn), "none again before all were"
    counted = Counter(principle.name for one in drawn for principle in one)
    low, high = clopper_pearson(4 * 400 // len(known), 4 * 400, 0.9999)
    assert all(low < counted[principle.name] / (4 * 400) < high for principle in known)
    many, more = shipped(rounds=25)
    assert set(revised_by(many, more, 0, 0)[: len(known)]) == set(known) and len(revised_by(many, more, 0, 0)) == 25


def test_all_principles_in_turn() -> None:
    constitution, settings = shipped(draw="all", rounds=2)
    assert revised_by(constitution, settings, 0, 3) == constitution.of("red_team") * 2
    assert "helpfulness" not in [principle.name for principle in revised_by(constitution, settings, 0, 3)]


def test_votes_are_by_different_principles_of_the_kind() -> None:
    constitution, settings = shipped(votes=3)
    votes = [compared_by(constitution, settings, "harmless", 0, place) for place in range(60)]
    assert all(len(set(one)) == 3 for one in votes) and any(p.name == "helpfulness" for one in votes for p in one)
    every, all_of_them = shipped(votes=50)
    assert set(compared_by(every, all_of_them, "red_team", 0, 0)) == set(every.of("red_team"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("kind", "short"), "'short' stands there twice"),
        (
            ('principle = "kind"', 'principle = "kin"'),
            "follows the principle 'kin', and there is none; did you mean 'kind'",
        ),
        (('name = "short"', 'name = "short"\nprompts = "red_team"'), None),
        (("prefer =", "preferr ="), "unknown key"),
        (('prompts = "red_team"', 'prompts = "bad"'), "prompts"),
        (('name = "useful"', 'name = "so useful"'), "name = 'so useful'"),
    ],
)
def test_a_constitution_that_is_none_is_told_with_its_file(
    change: tuple[str, str], said: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PRINCIPLES.replace(*change, 1), encoding="utf-8")
    settings = build(ConstitutionSettings, {"harmless": "rows.jsonl", "principles": str(path), "shots": 1})
    if said is None:
        assert constitution_of(settings)[0].principle[0] == build(Principle, {
            "name": "kind", "critique": "Say where it is unkind.", "revise": "Make it kind.",
            "prefer": "Which reply is kinder?", "prompts": "red_team",
        })  # fmt: skip
        return
    with pytest.raises(RecipeError, match=r"(?s)mine\.toml.*" + said):
        constitution_of(settings)


def test_more_shots_than_examples_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"has 3 examples, and constitution\.shots = 4"):
        shipped(shots=4)


# recipe


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"constitution": None}, r"has no constitution: write a table \[constitution\]"),
        ({"objective": {"type": "sft"}}, "'sft' does not learn from preference pairs"),
        (
            {"objective": {"type": "dpo", "penalty": "hinge"}},
            r"knows no soft labels: set constitution\.labels = 'hard'",
        ),
        ({"objective": {"type": "orpo"}}, "knows no soft labels"),
        ({"adapter": {"start_from": "runs/first"}}, r"adapter\.start_from: a constitution begins with the base"),
        ({"retrieval": {"corpus": "texts"}}, r"\[retrieval\] changes nothing"),
        ({"teacher": {"model": "larger"}}, r"\[teacher\] changes nothing"),
        ({"evaluation": {"max_rows": 5}}, r"evaluation\.max_rows changes nothing"),
        ({"decision": {"smallest_gain": 0.5}}, r"decision\.smallest_gain changes nothing"),
        ({"cost": {"machine_usd_per_hour": 1.0}}, r"cost\.machine_usd_per_hour changes nothing"),
        ({"data": {"train": "a.jsonl", "replay": "b.jsonl"}}, r"data\.replay changes nothing"),
        ({"data": {"train": "a.jsonl", "validation": "b.jsonl"}}, r"data\.validation changes nothing"),
    ],
)
def test_what_does_not_go_together_is_told(tables: dict[str, Any], said: str) -> None:
    given = {
        "data": {"train": "a.jsonl"},
        "objective": {"type": "dpo"},
        "constitution": {"harmless": "h.jsonl"},
        **tables,
    }
    recipe = build(Recipe, {key: value for key, value in given.items() if value is not None})
    with pytest.raises(RecipeError, match=said):
        require_fit(recipe)


@pytest.mark.parametrize("objective", [{"type": "dpo"}, {"type": "reward"}, {"type": "orpo"}])
def test_objectives_over_pairs_are_taken(objective: dict[str, Any]) -> None:
    labels = "hard" if objective["type"] == "orpo" else "soft"
    given = {"data": {"train": "a.jsonl"}, "constitution": {"harmless": "h.jsonl", "labels": labels}}
    assert require_fit(build(Recipe, {**given, "objective": objective})).labels == labels


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"critic": {"type": "zero_shot"}}, r"constitution\.critic\.type = 'zero_shot'"),
        ({"judge": {"type": "local_model", "model": "m", "shots": 3}}, r"constitution\.judge\.shots changes nothing"),
        ({"calibration_pairs": 50}, r"calibration_pairs changes nothing without constitution\.calibration"),
        ({"reward_models": ["one/a", "two/a/"]}, "two folders are called 'a'"),
        ({"critic_logprobs": False}, r"critic_logprobs changes nothing: neither critic nor judge is an endpoint"),
        ({"least_probability": 0.4}, "least_probability"),
        ({"harmles": "x"}, "unknown key"),
    ],
)
def test_a_setting_that_is_wrong_or_would_be_ignored_is_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(Recipe, {"data": {"train": "a"}, "constitution": {"harmless": "rows.jsonl", **settings}})


# what is asked


def test_prompts_of_rows_of_every_format_end_with_the_question() -> None:
    reply = (Message("assistant", "No."),)
    rows: list[Example] = [
        Preference(ASKED, reply, reply, id="p"),
        Judged(ASKED, reply, True, id="j"),
        Conversation((*ASKED, *reply), id="c"),
        Conversation((*ASKED, Message("assistant")), id="open"),
    ]
    found = prompts_of(rows, "red_team", None)
    assert [one.messages for one in found] == [ASKED] * 4
    assert [one.given for one in found] == [None, None, "No.", None] and found[1].id == "red_team/j"
    assert len(prompts_of(rows, "red_team", 2)) == 2
    unasked: list[Example] = [Document("text", id="d"), Conversation((Message("system", "Be kind."),), id="s")]
    for odd in unasked:
        with pytest.raises(DataError, match="a harmless prompt ends with what a user says"):
            prompts_of([odd], "harmless", None)
    called = (*ASKED, Message("assistant", tool_calls=(ToolCall("open", {}),)), Message("tool", "done"), *ASKED)
    for odd in (Judged(ASKED, reply, True, ({"name": "open"},)), Preference(called, reply, reply)):
        with pytest.raises(DataError, match="a red_team prompt is text, and this row's is about tools"):
            prompts_of([odd], "red_team", None)


def test_the_critic_sees_examples_and_then_the_question() -> None:
    constitution, settings = shipped()
    principle = constitution.principle[0]
    asked = critique_prompt(constitution, settings.shots, principle, ASKED, "Use a pick.")
    assert [message.role for message in asked] == [*["user", "assistant"] * 4, "user"]
    assert principle.critique in asked[-1].content and "Use a pick." in asked[-1].content
    assert asked[3].content == constitution.example[0].revision
    again = revision_prompt(asked, "It helps a thief.", principle)
    assert again[: len(asked)] == asked and again[-2].content == "It helps a thief."
    assert principle.revise in again[-1].content
    bare = critique_prompt(constitution, 0, principle, ASKED, "Use a pick.")
    assert bare == asked[-1:]


def test_examples_of_comparisons_favor_no_letter() -> None:
    constitution, _ = shipped()
    prompt = comparison_prompt(constitution, 2, constitution.principle[0], ASKED, ("one", "two"))
    assert [message.content for message in prompt if message.role == "assistant"] == ["A", "B"]
    for number, at in ((0, 0), (1, 2)):
        text, example = prompt[at].content, constitution.example[number]
        first = text.index(example.revision) < text.index(example.reply)
        assert first == (prompt[at + 1].content == "A"), "the letter is that of the better reply"
    assert prompt[-1].content.index("one") < prompt[-1].content.index("two")


def test_a_judge_is_asked_with_yes_first_and_with_no_first() -> None:
    (first,), (second,) = judge_prompts("harmful", ASKED, "Use a pick.")
    assert "A: yes, it is harmful\nB: no, it is harmless" in first.content
    assert "A: no, it is harmless\nB: yes, it is harmful" in second.content


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("Revised reply: Be careful.", "Be careful."),
        ("[Reply]\n: Be careful.", "Be careful."),
        ("  Here is how: press the button.", "Here is how: press the button."),
        ("Reply to him at once: he waits.", "Reply to him at once: he waits."),
        ("\n", ""),
    ],
)
def test_a_label_before_a_revision_is_no_part_of_it(said: str, reply: str) -> None:
    assert revision_of(said) == reply


@pytest.mark.parametrize(
    ("revision", "fault"),
    [
        ("I'm sorry, but I cannot help with that.", ""),
        ("Open the Task Manager, choose the program and press End task.", ""),
        ("No.", ""),
        ("It demeans people from the north, which is unfair. So is this.", REPEATS),
        ("The reply refuses a question that could be answered.", ABOUT),
        ("Your revised response is now kinder to all of them.", ABOUT),
        ("Your reply to her was kind. Send it as it is.", ""),
        ("回复应当冷静得体，不含侮辱。", SAYS_BACK),
        ("It treats all people with respect and calmly corrects what is unfair in the question.", SAYS_BACK),
        ("I won't help with getting into his phone, since that is his own life. Talk to him.", SAYS_BACK),
    ],
)
def test_a_revision_that_is_no_reply_is_told(revision: str, fault: str) -> None:
    told = (
        "Make it so that it treats all people with respect and calmly corrects what is unfair in the question.",
        "I won't help with getting into his phone, since that would be breaking into his private life. Talk to him.",
        "请改写回复：回复应当冷静得体，不含侮辱。",
    )
    assert no_reply(revision, "It demeans people from the north, which is unfair.", told) == fault


def test_only_what_was_revised_is_learned_from_of_red_team_prompts() -> None:
    (bad,) = prompts_of([Conversation(ASKED, id="b")], "red_team", None)
    (good,) = prompts_of([Conversation((*ASKED, Message("assistant", "With the key.")), id="g")], "harmless", None)

    def red_team(*faults: str, fault: str = "") -> dict[str, Any]:
        steps = [{"principle": f"p{number}", "fault": one} for number, one in enumerate(faults)]
        return {"reply": "Pick it.", "final": "Ask a locksmith.", "steps": steps, "fault": fault}

    own = {"reply": "Use the key.", "fault": "", "given_fault": ""}
    records = [red_team("", "it is empty"), red_team("it is empty"), red_team("", fault="it is cut off")]
    rows, without = supervised_rows([(bad, record) for record in records], [(good, own)], given=False)
    assert [row.messages[-1].content for row in rows] == ["Ask a locksmith.", "Use the key."]
    assert rows[0].extra == {"kind": "red_team", "revised_by": ["p0"]}
    assert without == {NOT_REVISED: 1, "it is cut off": 1}
    given, _ = supervised_rows([], [(good, own)], given=True)
    assert given[0].messages[-1].content == "With the key."


# letters


def test_both_orders_tell_the_lean_from_the_place() -> None:
    vote = vote_of("kind", 1.5, 0.5)  # leans to the first place by 1, and to `a` by 1/2
    assert vote == Vote("kind", 0.5, 1.0) and vote.names_a_place
    swapped = vote_of("kind", 0.5, 1.5)
    assert swapped is not None and swapped.lean == -0.5 and swapped.bias == 1.0
    assert vote_of("kind", None, 1.0) is None
    assert not Vote("kind", -2.0, 1.0).names_a_place


def test_probabilities_of_both_replies_add_up_to_one() -> None:
    votes = [Vote("a", 0.3, 9.0), Vote("b", -2.0, -9.0)]
    opposite = [Vote(v.principle, -v.lean, v.bias) for v in votes]
    for temperature in (0.1, 1.0, 10.0):
        assert probability(votes, temperature) + probability(opposite, temperature) == pytest.approx(1)
    assert probability([], 1.0) == 0.5
    assert probability([Vote("a", 2.0, 0.0)], 2.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert probability([Vote("a", -1e6, 0.0)], 1.0) == 0.0 and sigmoid(1e6) == 1.0


def drawn_votes(count: int, scale: float, seed: int) -> list[list[Vote]]:
    """Pairs whose first reply is what people chose, of a critic whose log-odds are `scale` times too large."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        true = chance.gauss(0, 1.5)
        sign = 1 if chance.random() < sigmoid(true) else -1
        found.append([Vote("kind", sign * true * scale, chance.gauss(3, 1))])
    return found


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(scale: float) -> None:
    voted = drawn_votes(1500, scale, 1)
    assert fit_temperature(voted) == pytest.approx(scale, rel=0.2)
    found = calibrate(voted, seed=0)
    assert found.temperature == pytest.approx(scale, rel=0.2) and found.knows_something
    assert found.fitted_off < 0.06 and found.fitted_loss.value <= found.loss.value + 0.002
    if scale == 4.0:
        assert found.off > 0.1
    assert len(found.curve) == BINS and sum(one.pairs for one in found.curve) == 1500


def test_a_critic_that_knows_nothing_is_not_believed() -> None:
    chance = random.Random(2)
    voted = [[Vote("kind", chance.gauss(0, 2), 0.0)] for _ in range(400)]
    found = calibrate(voted, seed=0)
    assert not found.knows_something and found.temperature > 5
    assert all(abs(probability(votes, found.temperature) - 0.5) < 0.25 for votes in voted)
    assert found.fitted_loss.value < found.loss.value
    wrong = [[Vote("kind", -abs(chance.gauss(0, 2)), 0.0)] for _ in range(100)]
    assert fit_temperature(wrong) == pytest.approx(TEMPERATURES[1])


def test_the_reliability_curve_in_closed_form() -> None:
    chosen = np.array([0.9] * 9 + [0.1] + [0.6] * 6 + [0.4] * 4)
    curve = curve_of(chosen)
    assert expected_error(curve[:5]) == pytest.approx(
        expected_error(curve_of(np.array([0.6] * 6 + [0.4] * 4))), abs=0.3
    )
    whole = curve_of(np.array([0.75]))
    assert (whole[0].told, whole[0].right, whole[0].pairs) == (0.75, 1.0, 1)
    assert expected_error(whole) == 0.25


def test_an_even_critic_has_no_position_bias_and_a_leaning_one_has_its_own() -> None:
    def record(first: float | None, second: float | None, read: bool = False) -> dict[str, Any]:
        orders = [{"value": value, "was_read": read} for value in (first, second)]
        return {"votes": [{"principle": "kind", "orders": orders}]}

    found = places_of([record(2.0, 1.0), record(1.0, 2.0), record(3.0, -1.0, read=True), record(None, 1.0)], 0)
    assert found is not None and found.votes == 3
    assert found.bias.value == pytest.approx((1.5 + 1.5 + 1.0) / 3) and found.contradicts == pytest.approx(2 / 3)
    assert found.read == pytest.approx(2 / 8)
    assert places_of([record(None, None)], 0) is None


@pytest.mark.parametrize(
    ("text", "logprobs", "value", "was_read"),
    [
        ("A", {"A": -0.1, " A": -3.0, "B": -2.5}, math.log(math.exp(-0.1) + math.exp(-3.0)) + 2.5, False),
        ("A", {"A": -0.1, "x": -9.0}, 8.9, False),
        ("B", {}, -READ, True),
        ("The better one is A.", {"The": -0.1}, READ, True),
        ("tie", {}, 0.0, True),
        ("neither of them", {}, None, True),
    ],
)
def test_what_an_endpoint_tells_becomes_log_odds(
    text: str, logprobs: dict[str, float], value: float | None, was_read: bool
) -> None:
    found = leaning_of(text, logprobs)
    assert found.was_read == was_read
    assert found.value is None if value is None else found.value == pytest.approx(value)


def test_a_model_here_tells_the_log_odds_of_its_next_token(tiny_loaded: LoadedModel) -> None:
    import torch

    template = build_template(tiny_loaded, "model")
    here = Here("tiny", tiny_loaded, template)
    asks = [Ask(str(n), (Message("user", "A or B? " * n),)) for n in (1, 2, 3)]
    found = here.choose([*asks, Ask("long", (Message("user", "word " * 2000),))])
    assert found[-1].value is None
    for ask, leaning in zip(asks, found, strict=False):
        ids = torch.tensor([template.prompt_ids(ask.messages)])
        with torch.no_grad():
            logits = tiny_loaded.model(input_ids=ids).logits[0, -1]
        a, b = (template.text_ids(letter)[-1] for letter in "AB")
        assert leaning.value == pytest.approx(float(logits[a] - logits[b]), abs=1e-4)
    # what is asked beside changes nothing
    assert here.choose(asks[1:2])[0].value == pytest.approx(found[1].value, abs=1e-4)


def test_a_text_is_drawn_by_its_own_seed_alone(tiny_loaded: LoadedModel) -> None:
    here = Here("tiny", tiny_loaded, build_template(tiny_loaded, "model"))
    asks = [Ask(str(n), (Message("user", f"Tell me about {n}."),), seed=n) for n in range(4)]
    together = here.write(asks, 12, 1.0)
    assert [here.write([one], 12, 1.0)[0].text for one in asks] == [said.text for said in together]
    assert here.write([Ask("long", (Message("user", "word " * 2000),))], 12, 1.0)[0].fault
    chats = [Conversation((*asks[0].messages, Message("assistant", "Yes.")), id="x")]
    (value,) = here.reply_logprobs(chats)
    assert value is not None and value < 0


def test_what_fits_into_no_row_is_told(tiny_loaded: LoadedModel) -> None:
    here = Here("tiny", tiny_loaded, build_template(tiny_loaded, "model"))
    assert here.unfit(ASKED, "Use a pick.", 512) == ""
    assert here.unfit(ASKED, "Use a pick.", 8) == TOO_LONG
    assert here.unfit(ASKED, "word " * 2000, 100_000) == TOO_LONG, "the model's context counts as well"


# batches


def test_a_batch_is_made_once_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    made: list[int] = []

    def make(batch: Any) -> list[dict[str, Any]]:
        made.extend(batch)
        return [{"n": n} for n in batch]

    def again(count: int = 5) -> list[dict[str, Any]]:
        return in_batches(range(count), 2, tmp_path / "b", make, Silent(), "numbers")

    assert again() == [{"n": n} for n in range(5)] == again() and made == [0, 1, 2, 3, 4]
    (tmp_path / "b/batch-000002.jsonl").unlink()
    assert again() == [{"n": n} for n in range(5)] and made == [0, 1, 2, 3, 4, 2, 3]
    (tmp_path / "b/batch-000003.jsonl").write_text('{"n": 4}\n{"n": 5}\n')
    with pytest.raises(DataError, match=r"batch-000003\.jsonl: holds 2 records where 1 were written"):
        again()
    (tmp_path / "b/batch-000003.jsonl").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        again()


def test_a_record_holds_any_end_of_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\r\nsix"
    for _ in range(2):
        found = in_batches([text], 1, tmp_path, lambda batch: [{"text": one} for one in batch], Silent(), "texts")
        assert found == [{"text": text}]


# refusals


def test_the_rules_err_as_little_as_is_said() -> None:
    found = measured_errors()
    assert found.refusals == found.others == 40 and found.missed <= 5 and found.false_alarms <= 2
    assert found.missed_share[1] < found.missed_share[0] < found.missed_share[2]
    assert len({text for text, _ in labeled()}) == 80


@pytest.mark.parametrize(
    ("reply", "is_refusal"),
    [
        ("", False),
        ("I can’t help with that.", True),
        ("I CANNOT ASSIST WITH THAT.", True),
        ('Write to her: "I am sorry, but I cannot help you." That is polite.', False),
        ("I can't help but smile at that story! Yes, of course.", False),
        ("I can't help, but here is a number to call.", True),
        ("Sure. " + "Step by step. " * 40 + "I'm sorry, but I can't help further.", False),
    ],
)
def test_a_refusal_stands_at_the_beginning_and_is_not_quoted(reply: str, is_refusal: bool) -> None:
    assert refuses(reply) == is_refusal


# measures and outcome


def test_a_measure_compares_the_same_prompts_alone() -> None:
    scores = {"before": [0.0, None, 1.0, 2.0], "supervised": [1.0, 5.0, None, 4.0]}
    one = Measure("reward", "red_team", "what", "higher", Number(), scores)
    assert one.known() == [0, 3]
    assert one.interval("before", 0.95, 0).value == 1.0 and one.interval("supervised", 0.95, 0).value == 2.5
    assert one.change("supervised", 0.95, 0).difference == 1.5
    refused = Measure("refused", "harmless", "what", "lower", Share(), {"before": [0.0] * 9, "supervised": [1.0] * 9})
    assert refused.change("supervised", 0.95, 0).p_value == pytest.approx(2 * 0.5**9)


def measured(name: str, kind: Any, better: Any, low: float, high: float) -> pages.Measured:
    d = Interval(value=(low + high) / 2, low=low, high=high)
    change = pages.Change(model="preferred", difference=d, p_value=0.1, test="none")
    return pages.Measured(name=name, kind=kind, what="", better=better, prompts=9, values={}, changes=(change,))


@pytest.mark.parametrize(
    ("harm", "refused", "outcome"),
    [
        ((0.1, 0.3), (-0.05, 0.05), "less_harmful"),
        ((0.1, 0.3), (0.0, 0.2), "less_harmful_refusals_unsure"),
        ((0.1, 0.3), (0.06, 0.2), "evasive"),
        ((-0.1, 0.3), (0.06, 0.2), "no_difference"),
        ((-0.3, -0.1), (0.0, 0.0), "more_harmful"),
    ],
)
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_outcome_follows_from_the_ends_of_the_intervals(
    harm: tuple[float, float], refused: tuple[float, float], outcome: str, better: str
) -> None:
    low, high = harm if better == "higher" else (-harm[1], -harm[0])
    found = [
        measured("refused", "harmless", "lower", *refused),
        measured("refused", "red_team", "neither", 0.5, 0.9),
        measured("reward of r", "red_team", better, low, high),
    ]
    assert outcome_of(found, "reward of r", "preferred", 0.05) == outcome
    assert outcome_of(found[:2], None, "preferred", 0.05) == "not_measured"
