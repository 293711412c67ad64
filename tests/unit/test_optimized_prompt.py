"""The search for a prompt: who wins a race and at what cost, what a proposer is shown, and that no test row is seen."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from luthier.data.templates import build_template
from luthier.evaluation.answering import answer_with_model
from luthier.evaluation.metrics.base import Array, Metric, Prediction
from luthier.evaluation.systems._prompts import Addition
from luthier.evaluation.systems._proposer import Proposer, Writer, cleaned, distinct
from luthier.evaluation.systems._race import Race
from luthier.evaluation.systems.base import Answer, Context, prediction, with_instruction
from luthier.evaluation.systems.optimized_prompt import Candidate, OptimizedPrompt, _Asker
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Message
from luthier.models.load import LoadedModel


def row(question: str, answer: str = "ok") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), id=question)


@pytest.fixture(scope="module")
def context(tiny_loaded: LoadedModel) -> Context:
    return Context(
        loaded=tiny_loaded,
        template=build_template(tiny_loaded, "model"),
        adapter_disabled=nullcontext,
        train=[row(f"train question {i}") for i in range(6)],
        validation=[row(f"validation question {i}") for i in range(4)],
        max_new_tokens=2,
        task="answers",
        primary_metric=build_metrics(["rouge_l"])["rouge_l"],
        base_fingerprint="base",
    )


# races


class Skill(Metric):
    """A prompt says on how many of ten rows it is right (`skill=7`), and on which first row of all (`from=20`)."""

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        said, asked = prediction.prompt[0].content, int(prediction.prompt[-1].content.split()[-1])
        skill, start = (int(re.search(rf"{name}=(\d+)", said)[1]) for name in ("skill", "from"))  # type: ignore[index]
        return (float(asked >= start and asked * 7 % 10 < skill),)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        found: Array = (counts_BN @ statistics_NS)[:, 0] / counts_BN.sum(axis=1)
        return found


class Blunder(Skill):
    """The same, to be kept low."""

    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float] = 1.0
    best: ClassVar[float] = 0.0


def candidate(skill: int, start: int = 0, name: str = "") -> str:
    return f"skill={skill} from={start} {name}"


def race_of(context: Context, metric: Metric, count: int = 40) -> Race[str]:
    rows = [row(f"question {i}") for i in range(count)]

    def ask(asked: Sequence[Conversation], text: str) -> list[tuple[Message, ...]]:
        return [with_instruction(r.prompt, text) for r in asked]

    return Race(rows, ask, replace(context, primary_metric=metric), "race")


def test_the_best_wins_for_a_part_of_the_answers(context: Context) -> None:
    runners = [candidate(2 + i % 5, name=str(i)) for i in range(15)] + [candidate(9)]
    race = race_of(context, Skill())
    assert race.run(runners, 10) == candidate(9)
    assert race.rows_answered(candidate(9)) == 40 and race.score(candidate(9)) == 0.9
    assert race.calls < len(runners) * 40 / 2
    assert len(race.seen) == 16 and race.seen[0] == candidate(9)


def test_the_lowest_wins_where_lower_is_better(context: Context) -> None:
    assert race_of(context, Blunder()).run([candidate(s) for s in (5, 1, 9)], 10) == candidate(1)


def test_of_equals_the_first_wins(context: Context) -> None:
    runners = [candidate(5, name=name) for name in "abcd"]
    assert race_of(context, Skill()).run(runners, 10) == runners[0]


def test_who_is_clearly_worse_on_the_same_rows_is_out_though_among_the_better_half(context: Context) -> None:
    race = race_of(context, Skill())
    race.run([candidate(10), candidate(1), candidate(0, name="a"), candidate(0, name="b")], 10)
    assert race.rows_answered(candidate(1)) == 10, "it was second of four"
    close = race_of(context, Skill())
    close.run([candidate(10), candidate(9), candidate(0, name="a"), candidate(0, name="b")], 10)
    assert close.rows_answered(candidate(9)) > 10


def test_a_champion_meets_challengers_for_nothing_and_is_not_beaten_by_a_lucky_start(context: Context) -> None:
    race = race_of(context, Skill())
    champion = race.run([candidate(7, start=10), candidate(1)], 10)
    assert champion == candidate(7, start=10)
    before = race.calls
    # both are right on the first rows, where the champion never is, and are worse over all
    lucky = [candidate(4, name=name) for name in "ab"]
    assert race.run([champion, *lucky], 10) == champion
    assert race.calls - before == sum(race.rows_answered(c) for c in lucky)


def test_failures_are_the_worst_rows_first(context: Context) -> None:
    race = race_of(context, Skill(), count=10)
    race.run([candidate(7)], 10)
    failed = [int(r.prompt[-1].content.split()[-1]) for r, _ in race.failures(candidate(7))]
    assert sorted(failed) == [i for i in range(10) if i * 7 % 10 >= 7]


# proposers


@pytest.mark.parametrize(
    ("text", "finished", "instruction"),
    [
        ('Instruction: "Answer with JSON."', True, "Answer with JSON."),
        ("The instruction was: Answer.", True, "Answer."),
        ("**Instruction:** Answer.", True, "Answer."),
        ("Answer with JSON. Use the keys and", False, "Answer with JSON."),
        ("no end in sight", False, ""),
        ("  ", True, ""),
        ("x" * 3000, True, ""),
        ("Use this instruction manual: read it.", True, "Use this instruction manual: read it."),
    ],
)
def test_what_a_model_writes_is_cleaned(text: str, finished: bool, instruction: str) -> None:
    assert cleaned(text, finished) == instruction


def test_texts_that_say_the_same_are_one() -> None:
    assert list(distinct(["Be brief.", "be BRIEF!", "Be long."])) == ["Be brief.", "Be long."]


class Scripted:
    """Stands for a model: says what it is told to, and remembers what it was asked."""

    def __init__(self, says: dict[str, str]) -> None:
        self.says = says
        self.asked: list[str] = []

    def __call__(self, questions: Sequence[str]) -> list[tuple[str, bool]]:
        self.asked += questions
        return [(next((said for part, said in self.says.items() if part in q), ""), True) for q in questions]


class WantsWords(Metric):
    """The share of words that stand in the prompt."""

    words: tuple[str, ...]

    def statistics(self, prediction: Prediction) -> tuple[float, ...]:
        said = " ".join(m.content for m in prediction.prompt)
        SEEN.append(prediction.prompt[-1].content.split("\n\n")[0])
        return (sum(word in said for word in self.words) / len(self.words),)

    def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
        found: Array = (counts_BN @ statistics_NS)[:, 0] / counts_BN.sum(axis=1)
        return found


SEEN: list[str] = []
"""Questions that `WantsWords` scored."""


def test_instructions_are_written_said_anew_and_mended(context: Context) -> None:
    model = Scripted(
        {"What was the": "Say BANANA.", "in other words": "Do say BANANA.", "one short rule": "And CHERRY."}
    )
    chosen = replace(context, primary_metric=WantsWords(words=("BANANA", "CHERRY")))
    system = OptimizedPrompt(candidates=4, rounds=1, shots=0)
    found = system.search(chosen, Proposer(model, chosen.train, seed=0))
    assert found.best.addition.text == found.details["addition"] == "Say BANANA.\nAnd CHERRY."
    assert found.details["origin"] == "rule"
    origins = {t["addition"]: t["origin"] for t in found.details["tried"]}
    assert origins["Say BANANA."] == "written" and origins["Do say BANANA."] == "paraphrase" and origins[""] == "data"
    assert found.details["calls"]["instructions"] == len(model.asked) == 4 + 2 + 2
    assert found.details["calls"]["answers"] == sum(t["rows"] for t in found.details["tried"])
    wrote, mended = model.asked[0], next(q for q in model.asked if "one short rule" in q)
    assert "train question" in wrote and "validation question" not in wrote
    assert "Say BANANA." in mended and "Written instead: " in mended and "validation question" in mended


def test_examples_are_crossed_with_the_best_additions(context: Context) -> None:
    metric = WantsWords(words=("BANANA", "train question"))
    chosen = replace(context, primary_metric=metric)
    settings = {"candidates": 0, "variants": ("Say BANANA.", "Say nothing.")}
    given = OptimizedPrompt(shots=2, **settings).answer([row("test question?")], chosen)  # type: ignore[arg-type]
    assert (given.details["addition"], given.details["shots"]) == ("Say BANANA.", 2)
    assert [m.role for m in given.answers[0].prompt] == ["system", *["user", "assistant"] * 2, "user"]
    without = OptimizedPrompt(shots=0, **settings).answer([row("test question?")], chosen)  # type: ignore[arg-type]
    assert without.details["shots"] == 0 and all(t["shots"] == 0 for t in without.details["tried"])


def test_all_that_a_search_asks_is_training_and_validation_rows(context: Context) -> None:
    model = Scripted({"What was the": "Say BANANA.", "one short rule": "And CHERRY."})
    chosen = replace(context, primary_metric=WantsWords(words=("BANANA", "CHERRY", "none")))
    SEEN.clear()
    OptimizedPrompt(candidates=3, rounds=2).search(chosen, Proposer(model, chosen.train, seed=0))
    assert set(SEEN) == {f"validation question {i}" for i in range(4)}
    shown = {line for q in model.asked for line in q.splitlines() if line.startswith("Input: ")}
    assert len(model.asked) > 5 and len(shown) > 5
    assert all(re.fullmatch(r"Input: (train|validation) question \d", line) for line in shown)


def test_what_is_found_does_not_depend_on_the_test_rows(context: Context) -> None:
    """The search has no argument for them; and whatever is asked afterwards, the same is found."""
    chosen = replace(context, primary_metric=WantsWords(words=("train question",)))
    system = OptimizedPrompt(candidates=2, rounds=1, shots=2, tune_rows=3)
    SEEN.clear()
    first = system.answer([row("test one?", "SECRET")], chosen)
    assert not any("test" in question for question in SEEN)
    other = system.answer([row(f"another {i}", "else") for i in range(3)], chosen)
    assert first.details == other.details == system.search(chosen).details


def test_a_model_that_writes_nonsense_does_no_harm_and_seeds_decide(context: Context) -> None:
    """The tiny model is random: what it writes takes part in the race, and ties never beat what was there."""
    system = OptimizedPrompt(candidates=4, rounds=1, shots=0, tune_rows=3)
    chosen = replace(context, primary_metric=WantsWords(words=("no such word",)))
    first, again, other = (s.search(chosen) for s in (system, system, system.model_copy(update={"seed": 1})))
    assert first == again
    assert first.details["addition"] == "" and first.details["calls"]["instructions"] > 0
    written = [[t["addition"] for t in f.details["tried"] if t["origin"] == "written"] for f in (first, other)]
    assert written[0] != written[1]


def test_another_model_may_write(context: Context, tiny_model_folder: Path) -> None:
    said: list[str] = []
    chosen = replace(context, recipe_folder=tiny_model_folder.parent, say=said.append)
    system = OptimizedPrompt(proposer=tiny_model_folder.name, candidates=2, rounds=0, shots=0)
    given = system.answer([row("test?")], chosen)
    assert given.details["proposer"] == tiny_model_folder.name and given.details["calls"]["instructions"] == 2
    assert len(said) == 1 and "opening" in said[0]
    assert OptimizedPrompt().identity(chosen) is None and system.identity(chosen)
    with pytest.raises(Exception, match="unknown model"):
        OptimizedPrompt(proposer="no such model").answer([row("test?")], chosen)


def test_a_proposer_without_room_or_rows_writes_nothing(context: Context) -> None:
    tight = replace(context, loaded=replace(context.loaded, max_tokens=200))
    proposer = Proposer(Writer(tight, seed=0, temperature=0.8), tight.train, seed=0)
    assert proposer.write(3) == [] and proposer.calls == 0
    asked = Scripted({"": "x"})
    assert Proposer(asked, [], 0).write(3) == [] and Proposer(asked, context.train, 0).mend("x", [], 3) == []
    assert asked.asked == []


def test_every_call_of_a_writer_has_random_numbers_of_its_own(context: Context) -> None:
    writer = Writer(context, seed=0, temperature=1.0)
    said = [text for _ in range(2) for text, _ in writer(["Say something."] * 3)]
    assert len(set(said)) == 6
    assert [text for text, _ in Writer(context, seed=0, temperature=1.0)(["Say something."] * 3)] == said[:3]


def test_nothing_is_tried_without_validation_rows(context: Context) -> None:
    for chosen, settings in ((context, {"tune_rows": 0}), (replace(context, validation=[]), {})):
        given = OptimizedPrompt(instruction="In French.", **settings).answer([row("test?")], chosen)  # type: ignore[arg-type]
        assert given.details["tried"] == [] and given.details["addition"] == ""
        assert given.answers[0].prompt[0].content == "In French."


def test_a_score_that_says_nothing_never_wins(context: Context) -> None:
    class Nothing(WantsWords):
        """Not a number where the word is missing."""

        def values(self, statistics_NS: Array, counts_BN: Array) -> Array:
            found = super().values(statistics_NS, counts_BN)
            return np.where(found == 0, np.nan, found)

    chosen = replace(context, primary_metric=Nothing(words=("BANANA",)))
    given = OptimizedPrompt(variants=("BANANA",), candidates=0, shots=0).answer([row("t?")], chosen)
    assert given.details["addition"] == "BANANA"
    assert {t["validation_score"] for t in given.details["tried"]} == {1.0, None}


def test_answers_are_those_of_the_base(context: Context) -> None:
    given = OptimizedPrompt(tune_rows=0).answer([row("test?")], context)
    assert isinstance(given.answers[0], Answer) and given.answers[0].completion_tokens


# free text: races by the probability of what was wanted


def text_context(context: Context, count: int = 24, **changes: object) -> Context:
    rows = [row(f"validation question {i}", f"wanted reply {i}") for i in range(count)]
    return replace(context, task="text", validation=rows, **changes)  # type: ignore[arg-type]


def test_a_race_by_likelihood_writes_nothing_and_ranks_by_what_was_wanted(context: Context) -> None:
    chosen = text_context(context)
    rows = list(chosen.validation)
    race: Race[str] = Race(rows, lambda r, t: [with_instruction(x.prompt, t) for x in r], chosen, "race", True)
    runners = ["", "Say BANANA.", "wanted reply", "x y z"]
    best = race.run(runners, 6)
    assert all(not answer.output and answer.target_score for _, answer in race.failures(best))
    metric = build_metrics(["perplexity"])["perplexity"]
    scores = {}
    for text in runners:
        prompts = [with_instruction(r.prompt, text) for r in rows]
        answers, _ = answer_with_model(rows, prompts, chosen, "by hand", score_targets=True)
        statistics = [metric.statistics(prediction(r, a)) for r, a in zip(rows, answers, strict=True)]
        scores[text] = metric.value(np.array(statistics))
    assert race.score(best) == pytest.approx(scores[best], rel=1e-5)
    survivors = [text for text in runners if race.rows_answered(text) == len(rows)]
    assert best == min(survivors, key=lambda text: scores[text])
    worst, *others = [answer.target_score for _, answer in race.failures(best)]
    assert worst is not None and all(
        other is not None and worst.logprob_sum / worst.tokens <= other.logprob_sum / other.tokens for other in others
    )


def test_champions_of_likelihood_and_no_addition_answer_in_the_end_and_the_metric_decides(context: Context) -> None:
    model = Scripted({"What was the": "Say CHERRY.", "in other words": "Do say CHERRY.", "one short rule": "BANANA."})
    chosen = text_context(context, primary_metric=WantsWords(words=("BANANA",)))
    SEEN.clear()
    system = OptimizedPrompt(candidates=4, rounds=1, shots=0)
    found = system.search(chosen, Proposer(model, chosen.train, seed=0))
    tried = found.details["tried"]
    finalists = [t for t in tried if t["rows"]]
    assert 2 <= len(finalists) <= 4 and all(t["rows"] == 20 for t in finalists)
    assert "" in [t["addition"] for t in finalists]
    assert tried[: len(finalists)] == finalists, "who answered stands first"
    assert all(t["perplexity"] > 1 and t["perplexity_rows"] >= 10 for t in tried)
    assert all(t["validation_score"] is None for t in tried[len(finalists) :])
    best = max(finalists, key=lambda t: t["validation_score"])
    assert found.details["addition"] == best["addition"] == tried[0]["addition"]
    calls = found.details["calls"]
    assert calls["likelihoods"] == sum(t["perplexity_rows"] for t in tried)
    assert calls["answers"] == 12 + 20 * len(finalists), "12 for rules, and the finals"
    mended = next(q for q in model.asked if "one short rule" in q)
    assert len(re.findall(r"Written instead: ", mended)) >= 3


def test_where_champions_are_no_better_nothing_is_added(context: Context) -> None:
    chosen = text_context(context, primary_metric=WantsWords(words=("no such word",)))
    found = OptimizedPrompt(candidates=0, shots=2, variants=("Say BANANA.",)).search(chosen)
    assert (found.details["addition"], found.details["shots"]) == ("", 0)


def test_rows_whose_wanted_reply_does_not_fit_are_left_out_and_examples_make_room(context: Context) -> None:
    chosen = text_context(context, loaded=replace(context.loaded, max_tokens=120))
    long = row("long question", "far too long " * 100)
    chosen = replace(chosen, validation=[long, *chosen.validation])
    found = OptimizedPrompt(candidates=0, shots=3, variants=("Say BANANA. " * 20,)).search(chosen)
    assert all(t["perplexity_rows"] <= 24 for t in found.details["tried"])
    assert max(t["perplexity_rows"] for t in found.details["tried"]) == 24, "all that fit"


def test_how_a_test_row_is_asked_does_not_depend_on_its_wanted_reply(context: Context) -> None:
    asker = _Asker(OptimizedPrompt(), text_context(context, loaded=replace(context.loaded, max_tokens=120)), 0)
    short, long = row("a question", "ok"), row("a question", "far too long " * 100)
    added = Candidate(Addition("Say BANANA."))
    assert asker.prompts([short], added) == asker.prompts([long], added) != [asker.plain(short)]
    assert asker.prompts_to_score([long], added) == [asker.plain(long)], "a validation row that is scored"
