"""`luthier constitution` with a tiny model, its critic and its judge behind an endpoint; and what is refused."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.constitutions import lines, records, that_ends, write
from tests.endpoint import Heard, Reply, completion, serving
from tests.security.test_report_injection import Skeleton, is_visible

from luthier.cli.main import main
from luthier.data.formats.base import read_examples
from luthier.examples import Conversation, Preference

ATTACK = "</pre></div><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x1b[2J{{ 7 * 7 }}"
REVISION = f"I would rather help you with something else. {ATTACK}"
CRITIQUE = "It is unkind, and that in a way which helps nobody. </td><svg onload=alert(2)>"
FEW = """
red_team_prompts = 12
harmless_prompts = 12
critic = {{ type = "remote", base_url = "{url}", model = "large" }}
judge = {{ type = "remote", base_url = "{url}", model = "other" }}
reward_models = ["reward"]
calibration = "people.jsonl"
calibration_pairs = 24
rounds = 2
"""
REWARD = """
[model]
name = "{model}"
[data]
train = "people.jsonl"
test_share = 0
[objective]
type = "reward"
[optimizer]
learning_rate = 4e-3
[training]
steps = 4
rows_per_step = 8
"""


def told(letter: str, by: float) -> Reply:
    """A letter, with log-probabilities `by` apart."""
    other = "B" if letter == "A" else "A"
    listed = [{"token": letter, "logprob": -0.1}, {"token": other, "logprob": -0.1 - by}]
    body = json.loads(completion(letter).body)
    body["choices"][0]["logprobs"] = {"content": [{"token": letter, "logprob": -0.1, "top_logprobs": listed}]}
    return Reply(json.dumps(body).encode())


def answer(body: dict[str, Any], _number: int) -> Reply:
    """A critic that likes short replies and the first place, and a judge that finds long ones harmful."""
    asked = body["messages"][-1]["content"]
    if pair := re.search(r"\[Reply A\]\n(.*)\n\n\[Reply B\]\n(.*)\n\n[^\n]* The order of", asked, re.DOTALL):
        lean = (len(pair[2]) - len(pair[1])) / 100 + 0.5
        return told("A" if lean > 0 else "B", abs(lean))
    if one := re.search(r"\[Reply\]\n(.*)\n\n.*\nA: (yes|no)", asked, re.DOTALL):
        yes_first, is_long = one[2] == "yes", len(one[1]) > 60
        return told("A" if yes_first == is_long else "B", 2.0)
    if "Write only the new reply" in asked:
        return completion(REVISION if "unkind" in body["messages"][-3]["content"] else CRITIQUE)
    return completion(CRITIQUE)


@pytest.fixture(scope="module")
def heard() -> Any:
    with serving(answer) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, heard: Heard) -> Path:
    """A finished run in `out`, and all that it was made of."""
    found = tmp_path_factory.mktemp("constitution")
    people = [
        {
            "id": f"p{n}",
            "prompt": f"May I take number {n * 71 % 997}?",
            "chosen": "No.",
            "rejected": "Yes, " * (n % 9 + 2),
        }
        for n in range(40)
    ]
    lines(found / "people.jsonl", people)
    (found / "reward.toml").write_text(REWARD.format(model=tiny_model_folder), encoding="utf-8")
    assert main(["train", str(found / "reward.toml"), "--out", str(found / "reward")]) == 0
    write(found, that_ends(tiny_model_folder, found / "model"), FEW.format(url=heard.url))
    assert run(found) == 0
    return found


def run(folder: Path, *more: str, out: str = "out") -> int:
    return main(["constitution", str(folder / "recipe.toml"), "--out", str(folder / out), *more])


def report_of(folder: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "constitution.json").read_text(encoding="utf-8"))
    return found


def test_every_reply_is_criticized_and_revised_by_drawn_principles(folder: Path) -> None:
    revised, replies = records(folder / "out/revised"), records(folder / "out/replies")
    assert len(revised) == 12 and len(replies) == 24
    assert [one["reply"] for one in replies[:12]] == [one["reply"] for one in revised]
    for one in revised:
        assert [step["principle"] for step in one["steps"]] in (["kind", "short"], ["short", "kind"])
        for step in one["steps"]:
            assert step["critique"] == CRITIQUE
            taken = step["principle"] == "kind"
            wanted = (REVISION, "") if taken else (CRITIQUE, "it begins as the critique does")
            assert (step["revision"], step["fault"]) == wanted
        assert one["final"] == REVISION and one["fault"] == ""


def test_each_question_stands_behind_the_example(heard: Heard, folder: Path) -> None:
    assert folder.is_dir() and heard.bodies
    for body in heard.bodies:
        messages = body["messages"]
        assert messages[-1]["role"] == "user"
        if body["model"] == "large":
            assert messages[0]["content"].startswith("[Request]\nHi.") and len(messages) in (3, 5, 7)
            assert ("logprobs" in body) == (len(messages) == 3)
        else:
            assert len(messages) == 1 and body["top_logprobs"] == 20


def test_revisions_and_whole_replies_to_harmless_prompts_are_learned_from(folder: Path) -> None:
    rows = list(read_examples(folder / "out/supervised.jsonl", "messages"))
    kinds = Counter(row.extra["kind"] for row in rows)
    whole = [one for one in records(folder / "out/replies") if one["kind"] == "harmless" and not one["fault"]]
    assert kinds == {"red_team": 12, "harmless": len(whole)}
    for row in rows:
        assert isinstance(row, Conversation)
        if row.extra["kind"] == "red_team":
            assert row.messages[-1].content == REVISION and row.extra["revised_by"] == ["kind"]
    assert (folder / "out/supervised/adapter/run.json").is_file()
    preflight = json.loads((folder / "out/supervised/preflight.json").read_text())
    assert preflight and all(gate["passed"] for gate in preflight)


def test_the_critic_is_asked_in_both_orders_and_its_doubt_is_the_label(folder: Path) -> None:
    compared = {one["id"]: one for one in records(folder / "out/compared")}
    pairs = list(read_examples(folder / "out/preferences.jsonl", "preference"))
    assert len(pairs) == len(compared) > 4
    temperature = report_of(folder)["critic"]["temperature"]
    for pair in pairs:
        assert isinstance(pair, Preference)
        one = compared[pair.id]
        texts = (one["a"], one["b"])
        lean = (len(one["b"].strip()) - len(one["a"].strip())) / 100
        for vote in one["votes"]:
            first, second = (order["value"] for order in vote["orders"])
            assert (first - second) / 2 == pytest.approx(lean) and (first + second) / 2 == pytest.approx(0.5)
        assert pair.extra["probability"] == pytest.approx(1 / (1 + 2.718281828 ** (-abs(lean) / temperature)), abs=1e-6)
        chosen, rejected = texts if lean >= 0 else texts[::-1]
        assert (pair.chosen[0].content, pair.rejected[0].content) == (chosen, rejected)
    for kind, names in (("red_team", {"kind", "short"}), ("harmless", {"short", "useful"})):
        votes = [{vote["principle"] for vote in one["votes"]} for one in compared.values() if one["kind"] == kind]
        assert votes and all(by == names for by in votes)


def test_the_critic_is_held_beside_people(folder: Path) -> None:
    critic = report_of(folder)["critic"]
    assert critic["people_pairs"] == 24 and critic["right"]["value"] == 1.0, (
        "people chose the shorter reply, as it does"
    )
    assert critic["place_bias"]["value"] == pytest.approx(0.5) and critic["read"] == 0.0
    assert critic["temperature"] < 1 and critic["fitted_loss"]["value"] < critic["loss"]["value"]


def test_the_second_training_goes_on_from_the_first_with_soft_labels(folder: Path) -> None:
    recipe = json.loads((folder / "out/preferred/recipe.json").read_text())
    assert recipe["adapter"]["start_from"] == str((folder / "out/supervised").resolve())
    assert recipe["objective"]["type"] == "dpo" and recipe["constitution"] is None
    rows = [json.loads(line) for line in (folder / "out/preferred/data/train.jsonl").read_text().splitlines()]
    assert all(0.5 <= row["extra"]["probability"] <= 1 for row in rows)
    assert (folder / "out/preferred/start/adapter").is_dir()


def test_measures_are_paired_with_intervals_before_and_after(folder: Path) -> None:
    report = report_of(folder)
    assert report["models"] == ["before", "supervised", "preferred"]
    names = {(one["name"], one["kind"]) for one in report["measured"]}
    assert {
        ("reward of reward", "red_team"), ("preferred by reward", "red_team"), ("harmful by other", "red_team"),
        ("helpful by other", "harmless"), ("refused", "harmless"), ("refused", "red_team"),
        ("given reply, bits a byte", "harmless"),
    } <= names  # fmt: skip
    assert report["harm"] == "reward of reward"
    for one in report["measured"]:
        for change in one["changes"]:
            d, values = change["difference"], one["values"]
            gap = values[change["model"]]["value"] - values["before"]["value"]
            assert d["low"] <= d["value"] <= d["high"] and d["value"] == pytest.approx(gap, abs=1e-9)
    won = next(one for one in report["measured"] if one["name"] == "preferred by reward")
    assert won["values"]["before"] == {"value": 0.5, "low": None, "high": None}, "by definition"
    answers = {m: records(folder / f"out/answers/{m}") for m in report["models"]}
    harmful = next(one for one in report["measured"] if one["name"] == "called harmful by other")
    for model, found in answers.items():
        is_long = [len(one["answer"].strip()) > 60 for one in found if one["kind"] == "red_team"]
        assert harmful["values"][model]["value"] == pytest.approx(sum(is_long) / len(is_long))
    rounds = report["rounds_measured"]
    assert [one["round"] for one in rounds] == [0, 1, 2] and rounds[0]["gain"] is None and rounds[2]["gain"]


def test_nothing_that_is_held_out_is_asked_before_the_end(folder: Path) -> None:
    held_out = {f"{kind}/{json.loads(line)['id']}" for kind, home in (("red_team", "."), ("harmless", "harmless"))
                for line in (folder / "out" / home / "data/test.jsonl").read_text().splitlines()}  # fmt: skip
    asked = {one["id"] for part in ("replies", "revised", "drawn") for one in records(folder / "out" / part)}
    answered = {one["id"] for one in records(folder / "out/answers/before")}
    assert answered <= held_out and not held_out & asked and len(asked) == 24


def test_every_record_can_be_read_and_none_becomes_markup(folder: Path) -> None:
    out = folder / "out"
    pages = [out / "constitution.html", *out.glob("critiques/*.html"), *out.glob("comparisons/*.html")]
    assert len(pages) == 3
    for path in pages:
        text = path.read_text(encoding="utf-8")
        found = Skeleton(text)
        tags = {tag for tag, _ in found.tags}
        assert not tags & {"script", "img", "iframe", "object", "form", "link"} and found.comments == 0
        assert not [names for _, names in found.tags if any(name.startswith("on") for name in names)]
        assert all(is_visible(character) for character in text)
    critiques = Skeleton((out / "critiques/page-0001.html").read_text(encoding="utf-8")).text
    for one in records(out / "revised"):
        assert one["id"] in critiques
    assert critiques.count("<script>alert(1)</script>") >= 12, "a revision each, to be read"
    assert critiques.count("<svg onload=alert(2)>") >= 12 * 2, "and two critiques"
    comparisons = Skeleton((out / "comparisons/page-0001.html").read_text(encoding="utf-8")).text
    assert all(one["id"] in comparisons for one in records(out / "compared"))
    data = (out / "constitution.json").read_text(encoding="utf-8")
    assert data.isascii() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", data)


def test_given_again_nothing_is_made_or_asked_and_another_way_is_refused(
    folder: Path, heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/**/batch-*.jsonl")}
    asked, page = len(heard.bodies), (out / "constitution.json").read_bytes()
    weights = (out / "preferred/adapter/adapter_model.safetensors").read_bytes()
    assert run(folder) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made and len(heard.bodies) == asked
    assert (out / "constitution.json").read_bytes() == page
    assert (out / "preferred/adapter/adapter_model.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert run(folder, "--set", "constitution.rounds=1") == 2
    assert "changed: constitution.rounds; made by it:" in capsys.readouterr().err
    mine = folder / "mine.toml"
    before = mine.read_text(encoding="utf-8")
    mine.write_text(before.replace("Make it short.", "Make it shorter."), encoding="utf-8")
    assert run(folder) == 2
    assert "holds records that were made otherwise (changed: principles)" in capsys.readouterr().err
    mine.write_text(before, encoding="utf-8")


def test_measures_may_change_later(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "out", folder / "again")
    assert (
        run(folder, "--set", "constitution.reward_models=[]", "--set", "constitution.most_refusals=1", out="again") == 0
    )
    report = report_of(folder, "again")
    assert report["harm"] == "harmful by other" and report["most_refusals"] == 1.0
    assert report["sentence"] in capsys.readouterr().out


def test_what_cannot_measure_is_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_folder, said in (("nowhere", "no trained model here"), ("out/supervised", "trained no head that judges")):
        runs = json.dumps([str(folder / run_folder)])
        assert run(folder, "--set", f"constitution.reward_models={runs}", out="early") == 2
        assert said in capsys.readouterr().err
    assert not (folder / "early/replies").exists()


def test_a_reward_model_is_trained_in_place_of_the_model(folder: Path) -> None:
    shutil.copytree(folder / "out", folder / "rewarded", ignore=shutil.ignore_patterns("preferred", "*.html", "*.json"))
    shutil.copytree(folder / "out/supervised", folder / "rewarded/supervised", dirs_exist_ok=True)
    assert run(folder, "--set", "objective.type=reward", out="rewarded") == 0
    report = report_of(folder, "rewarded")
    assert report["models"] == ["before", "supervised"]
    assert report["trainings"][1]["objective"] == "reward"
    assert (folder / "rewarded/preferred/adapter/head.safetensors").is_file()


def test_the_principles_are_shown_and_used_as_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "--show"]) == 0
    assert capsys.readouterr().out.startswith("# A constitution")
    assert main(["constitution"]) == 2 and main(["constitution", "x.toml", "--show"]) == 2
    assert "expected a recipe, or --show alone" in capsys.readouterr().err
    for verb in ("run", "train", "check"):
        assert (
            main([verb, str(folder / "recipe.toml"), *(("--out", str(folder / verb)) if verb != "check" else ())]) == 2
        )
        assert "has a table [constitution], which `luthier constitution` reads" in capsys.readouterr().err
