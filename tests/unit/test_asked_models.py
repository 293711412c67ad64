"""Models that graders ask in a training: what is sent, kept and paid, and that no reward is made up."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.endpoint import Heard, Reply, completion, serving

from luthier.assemble import objective_of
from luthier.config import build
from luthier.engine.rollout import Prompt, Written, said
from luthier.errors import EvaluationError, RecipeError, ServiceError
from luthier.evaluation.asked_models import AskedModels
from luthier.evaluation.graders.base import Host, SamplingParams, Unanswered
from luthier.evaluation.metrics.base import Prediction
from luthier.evaluation.metrics.reward import Reward
from luthier.evaluation.systems.local_model import LocalModel
from luthier.evaluation.systems.remote import Remote
from luthier.examples import Message
from luthier.online import Hosted, Rewards, metric_of
from luthier.recipe import Recipe
from luthier.recipe.paths import absolute_paths
from luthier.run_folder import decisive, differing

GRADER = {
    "type": "score_model",
    "model": "judge",
    "input": [{"role": "user", "content": "How good is {{sample.output_text}} for {{item.row}}?"}],
}
ASKED = [Message("user", "How good?")]


def recipe(url: str = "http://127.0.0.1:9/v1", grader: Any = GRADER, **model: Any) -> Recipe:
    table = {"base_url": url, "model": "served", "first_wait_seconds": 0, "retries": 1, **model}
    rollout = {"rewards": {"good": {"weight": 2.0, "grader": grader}}, "models": {"judge": table}}
    given = {"data": {"train": "rows.jsonl"}, "objective": {"type": "grpo"}, "rollout": rollout}
    return build(Recipe, given)


def rewards(heard: Heard, folder: Path, grader: Any = GRADER, **model: Any) -> Rewards:
    settings = recipe(heard.url, grader, **model).rollout
    assert settings is not None
    remote = settings.models["judge"]
    assert isinstance(remote, Remote)
    models = AskedModels({"judge": remote}, folder, "cpu")
    found = Rewards(settings, Host(ask_model=models), models.at_once)
    found.require()
    return found


def answers(count: int, repeated: int = 1) -> list[tuple[Prompt, Written]]:
    message = Message("user", "?")
    return [
        (Prompt(f"p{i}", (1,), (message,), {"row": i}), said(Message("assistant", f"reply {i}")))
        for i in range(count)
        for _ in range(repeated)
    ]


def scored(body: dict[str, Any], _number: int) -> Reply:
    """A score that follows from the question."""
    row = int(body["messages"][-1]["content"].partition(" for ")[2].partition("?")[0])
    return completion(f'{{"result": {row / 100}}}')


def test_replies_are_graded_in_order_and_several_at_once(tmp_path: Path) -> None:
    def slowly(body: dict[str, Any], number: int) -> Reply:
        reply = scored(body, number)
        return Reply(reply.body, before_seconds=0.02 * (number % 3))

    with serving(slowly) as heard:
        grades = rewards(heard, tmp_path, concurrency=3)(answers(12))
    assert [grade.reward for grade in grades] == [pytest.approx(2 * i / 100) for i in range(12)]
    assert [grade.parts["good"] for grade in grades] == [pytest.approx(i / 100) for i in range(12)]
    assert heard.most_at_once == 3


def test_the_metric_asks_several_at_once_too(tmp_path: Path) -> None:
    with serving(lambda body, number: Reply(scored(body, number).body, before_seconds=0.02)) as heard:
        graders = rewards(heard, tmp_path, concurrency=3)
        metric = Reward(**metric_of(graders.settings, lambda: Hosted(graders.host, at_once=graders.at_once)))
        asked = [Prediction(f"p{i}", tuple(ASKED), f"reply {i}", None, item={"row": i}) for i in range(9)]
        assert metric.value(np.array(metric.statistics_of(asked))) == pytest.approx(2 * sum(range(9)) / 9 / 100)
    assert heard.most_at_once == 3


def test_what_is_asked_is_the_input_of_the_grader_and_its_sampling(tmp_path: Path) -> None:
    sampling = {"seed": 7, "top_p": 0.5, "max_completions_tokens": 30, "reasoning_effort": "low"}
    with serving(scored) as heard:
        rewards(heard, tmp_path, {**GRADER, "sampling_params": sampling})(answers(1))
        rewards(heard, tmp_path, limit_field="max_completion_tokens", send_temperature=False)(answers(1))
    first, second = heard.bodies
    form = 'Answer with a JSON object {"result": NUMBER}, where NUMBER is from 0 to 1.'
    messages = [{"role": "user", "content": f"How good is reply 0 for 0?\n\n{form}"}]
    rest = {"temperature": 0, "seed": 7, "top_p": 0.5, "reasoning_effort": "low"}
    assert first == {"model": "served", "messages": messages, "max_tokens": 30, **rest}
    assert second == {"model": "served", "messages": messages, "max_completion_tokens": 1024}


def test_the_same_question_is_asked_once_whoever_asks_it_and_whenever(tmp_path: Path) -> None:
    with serving(scored) as heard:
        first = rewards(heard, tmp_path, concurrency=8)(answers(3, repeated=4))
        assert len(heard.bodies) == 3
        assert rewards(heard, tmp_path)(answers(3, repeated=4)) == first  # of a training that goes on
        assert len(heard.bodies) == 3
        rewards(heard, tmp_path / "another run")(answers(1))
        assert len(heard.bodies) == 4


def test_an_endpoint_that_goes_on_failing_ends_the_grading_and_is_asked_for_what_is_missing(tmp_path: Path) -> None:
    broken = threading.Event()
    broken.set()

    def until_mended(body: dict[str, Any], number: int) -> Reply:
        reply = scored(body, number)
        return Reply(b"out of order", 500) if broken.is_set() and b"0.04" in reply.body else reply

    with serving(until_mended) as heard:
        with pytest.raises(ServiceError) as raised:
            rewards(heard, tmp_path, concurrency=2)(answers(8))
        message = str(raised.value)
        assert message.startswith("rollout.rewards.good: the model 'judge' could not be asked: http://127.0.0.1:")
        assert "status 500: out of order (2 attempts)" in message and "No reward is made up" in message
        asked = len(heard.bodies)
        kept = {line for path in tmp_path.iterdir() for line in path.read_text().splitlines()}
        broken.clear()
        grades = rewards(heard, tmp_path, concurrency=2)(answers(8))
        assert [grade.reward for grade in grades] == [pytest.approx(2 * i / 100) for i in range(8)]
        assert len(heard.bodies) - asked == 8 - len(kept)


def test_a_busy_endpoint_is_asked_again(tmp_path: Path) -> None:
    with serving(lambda body, number: scored(body, number) if number else Reply(b"", 429)) as heard:
        (grade,) = rewards(heard, tmp_path)(answers(1))
    assert grade.problems == {} and len(heard.bodies) == 2


def test_a_failure_within_a_formula_is_no_reward_either(tmp_path: Path) -> None:
    inner = {"good": {**GRADER, "name": "good"}, "right": {"type": "number", "name": "right"}}
    both = {"type": "multi", "calculate_output": "1 - good + right", "graders": inner}
    with serving(lambda *_: Reply(b"", 500)) as heard, pytest.raises(ServiceError, match="could not be asked"):
        rewards(heard, tmp_path, both)(answers(2))


PRICED: dict[str, Any] = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 1.0}


def test_a_spend_limit_ends_the_grading_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    def dear(body: dict[str, Any], number: int) -> Reply:
        return completion(json.loads(scored(body, number).body)["choices"][0]["message"]["content"], usage=(100, 100))

    most = 1e-6 * (2000 + 1024)
    with serving(dear) as heard:
        with pytest.raises(ServiceError, match=r"spend_limit_usd = .*a higher limit goes on"):
            rewards(heard, tmp_path, **PRICED, spend_limit_usd=most, concurrency=1)(answers(20))
        asked = len(heard.bodies)
        assert 1 < asked < 20 and asked * 200e-6 <= most
        assert len(rewards(heard, tmp_path, **PRICED, spend_limit_usd=1)(answers(20))) == 20
        assert len(heard.bodies) == 20
    given, more, other = recipe(**PRICED, spend_limit_usd=1), recipe(retries=9), recipe(url="http://127.0.0.1:8/v1")
    assert differing(decisive(given.dump()), decisive(more.dump())) == []
    assert differing(decisive(given.dump()), decisive(other.dump())) == ["rollout.models.judge.base_url"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (completion("I like it"), "has no score from 0 to 1"),
        (completion('{"result": 7}'), "has no score from 0 to 1"),
        (completion(None, refusal="I would rather not."), "the grading model refused"),
        (completion(None), "has no score from 0 to 1"),
    ],
)
def test_a_reply_that_is_no_grade_counts_nothing_and_is_told(reply: Reply, words: str, tmp_path: Path) -> None:
    for _ in range(2):  # as it was said, and as it was kept
        with serving(lambda *_: reply) as heard:
            (grade,) = rewards(heard, tmp_path)(answers(1))
            assert grade.reward == 0 and words in grade.problems["good"]


def test_where_replies_go_is_said_and_nothing_goes_without_a_key_or_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def models(**settings: Any) -> AskedModels:
        given = Remote(model="m", **{"base_url": "http://api.example.com/v1", **settings})
        return AskedModels({"judge": given}, tmp_path, "cpu")

    for switch in ("LUTHIER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    assert models().notes == [
        "replies are sent to api.example.com, which is not this machine, unencrypted, to be graded by m"
    ]
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(EvaluationError, match="JUDGE_KEY, which api_key_env names, is not set"):
        models(api_key_env="JUDGE_KEY")
    monkeypatch.setenv("LUTHIER_OFFLINE", "1")
    with pytest.raises(EvaluationError, match=r"LUTHIER_OFFLINE is set.*api\.example\.com.*unset it"):
        models()
    assert models(base_url="http://localhost:8000/v1").notes


def test_a_model_on_this_machine_answers_as_it_is_sampled(tiny_model_folder: Path, tmp_path: Path) -> None:
    models = AskedModels({"judge": LocalModel(model=str(tiny_model_folder), precision="float32")}, tmp_path, "cpu")
    ask: Callable[..., Any] = lambda **sampling: models("judge", ASKED, SamplingParams(**sampling))  # noqa: E731
    likeliest = ask(max_completions_tokens=12)
    assert likeliest == ask(max_completions_tokens=12) and likeliest.tokens
    drawn = [ask(max_completions_tokens=12, temperature=1.5, seed=seed).text for seed in (0, 1, 2, 3, 1)]
    assert len(set(drawn)) > 1 and drawn[4] == drawn[1]
    assert models.identities["judge"] and models.at_once == 1
    with pytest.raises(Unanswered, match="knows no reasoning_effort"):
        ask(reasoning_effort="low")
    with pytest.raises(Unanswered, match="use a model with a longer context"):
        models("judge", [Message("user", "word " * 2000)], SamplingParams())


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"models": {}}, r'the model \'judge\'.*write a table \[rollout.models."judge"\] with base_url and model'),
        (
            {
                "models": {
                    "judge": {"base_url": "http://127.0.0.1/v1", "model": "m"},
                    "b": {"base_url": "http://127.0.0.1/v1", "model": "m"},
                }
            },
            "rollout.models.b changes nothing",
        ),
        ({"models": {"judge": {"type": "command", "command": ["x"]}}}, "type = 'command': expected one of remote"),
        (
            {"models": {"judge": {"base_url": "http://127.0.0.1/v1", "model": "m", "shots": 2}}},
            "rollout.models.judge.shots changes nothing",
        ),
        ({"models": {"judge": {"base_url": "http://127.0.0.1/v1", "modle": "m"}}}, "did you mean 'model'"),
    ],
)
def test_models_that_are_not_named_or_not_asked_are_refused(rollout: dict[str, Any], words: str) -> None:
    given = {"rewards": {"good": {"grader": GRADER}}, **rollout}
    with pytest.raises(RecipeError, match=words):
        objective_of(build(Recipe, {"data": {"train": "r"}, "objective": {"type": "grpo"}, "rollout": given}))


def test_a_recipe_with_models_reads_back_what_it_dumps(tmp_path: Path) -> None:
    given = recipe(**PRICED, spend_limit_usd=2)
    assert build(Recipe, given.dump()) == given
    json.dumps(given.dump())
    (tmp_path / "judge").mkdir()
    tree = {"rollout": {"models": {"a": {"type": "local_model", "model": "judge"}, "b": {"model": "judge"}}}}
    found = absolute_paths(tree, tmp_path)["rollout"]["models"]
    assert (found["a"]["model"], found["b"]["model"]) == (str(tmp_path / "judge"), "judge")
