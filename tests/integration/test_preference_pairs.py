"""`luthier data preferences` with a tiny model that was trained a little, an endpoint and judges; and what pairs train,
those of the studio as well."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.endpoint import Reply, completion, serving
from tests.integration.test_run import write_rows
from tests.integration.test_run_styled import JUDGE
from tests.jobs_service import options_of

from luthier.cli.main import main
from luthier.data.formats.base import read_examples
from luthier.examples import Preference
from luthier.jobs.service import open_service
from luthier.preferences.choice import (
    ALIKE,
    NO_ROOM,
    NOT_WHOLE,
    NOTHING_NAMED,
    ONE_NOT_WHOLE,
    ONE_ORDER,
    SAME,
    TOO_CLOSE,
)
from luthier.web.rank_pages import lines_of_preferences
from luthier.web.rankings import Rankings

HEAD = """
[model]
name = "{model}"
[data]
train = "rows.jsonl"
[optimizer]
learning_rate = 8e-3
[training]
rows_per_step = 8
max_tokens = 256
"""
DRAWN = """
[adapter]
start_from = "first"
[evaluation.style]
criterion = "long"
judge = {{ type = "command", command = [{python}, "judge.py", "longer"] }}
[evaluation.systems.elsewhere]
type = "remote"
base_url = "http://127.0.0.1:1/v1"
model = "large"
instruction = "Be brief."
[rollout]
group_size = 4
max_new_tokens = 40
[rollout.rewards.fields]
grader = {{ type = "fields", reference = "{{{{item.reference_answer}}}}" }}
[rollout.rewards.named]
weight = 0.25
grader = {{ type = "string_check", input = "{{{{sample.output_text}}}}", reference = "street", operation = "like" }}
"""
LONG = "word " * 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Rows, some of them too long to be asked, a training on them in `first`, and a recipe that draws from it."""
    found = tmp_path_factory.mktemp("pairs")
    write_rows(found / "rows.jsonl")
    (found / "judge.py").write_text(JUDGE, encoding="utf-8")
    head = HEAD.format(model=tiny_model_folder)
    (found / "first.toml").write_text(f"{head}steps = 40\n", encoding="utf-8")
    assert main(["train", str(found / "first.toml"), "--out", str(found / "first")]) == 0
    with (found / "rows.jsonl").open("a", encoding="utf-8") as file:
        for number in range(4):  # so that the split leaves one among the training rows
            messages = [{"role": "user", "content": f"{number}: {LONG}"}, {"role": "assistant", "content": "{}"}]
            file.write(json.dumps({"id": f"long{number}", "messages": messages}) + "\n")
    drawn = head + DRAWN.format(python=json.dumps(sys.executable))
    (found / "pairs.toml").write_text(drawn, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def graded(folder: Path) -> Path:
    """Pairs by rewards."""
    return make(folder, "graded", "--report", str(folder / "report.jsonl"))


def make(folder: Path, out: str, *options: str, code: int = 0) -> Path:
    given = ["data", "preferences", str(folder / "pairs.toml"), "--out", str(folder / out), *options]
    assert main(given) == code
    return folder / out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replies_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("replies/batch-*.jsonl")):
        for line in lines(path):
            found.setdefault(line["id"].partition("/")[0], []).append(line)
    return found


def test_best_and_worst_become_rows_and_every_row_has_its_fate(folder: Path, graded: Path) -> None:
    report, replies = lines(folder / "report.jsonl"), replies_of(graded)
    train = [row["id"] for row in lines(graded / "data/train.jsonl")]
    assert [one["id"] for one in report] == train and 40 < len(train) < 64
    pairs = list(read_examples(graded / "preferences.jsonl", "preference"))
    assert [pair.id for pair in pairs] == [one["id"] for one in report if one["pair"]] and len(pairs) > 10
    assert {None, SAME, NO_ROOM} <= {one["reason"] for one in report} <= {None, SAME, NO_ROOM, NOT_WHOLE}
    for one in report:
        said = [line["extra"] for line in replies.get(one["id"], [])]
        whole = [extra["reward"] for extra in said if not extra["truncated"] and not extra["fault"]]
        lowest = min((extra["reward"] for extra in said if not extra["fault"]), default=0.0)
        reason = NO_ROOM if not said else NOT_WHOLE if not whole else SAME if max(whole) <= lowest else None
        assert one["reason"] == reason, one
    assert {len(group) for group in replies.values()} == {4} and not any(row.startswith("long") for row in replies)
    for pair in pairs:
        assert isinstance(pair, Preference)
        worth = {(line["messages"][-1]["content"]): line["extra"] for line in replies[pair.id]}
        whole = [one["reward"] for one in worth.values() if not one["truncated"] and not one["fault"]]
        assert pair.extra["chosen_reward"] == worth[pair.chosen[0].content]["reward"] == max(whole)
        lowest = min(one["reward"] for one in worth.values() if not one["fault"])
        assert pair.extra["rejected_reward"] == worth[pair.rejected[0].content]["reward"] == lowest
        assert pair.extra["source"] == pair.id and pair.extra["writer"] == "first"
        rewards = pair.extra["chosen_rewards"]
        assert pair.extra["chosen_reward"] == rewards["fields"] + 0.25 * rewards["named"]
    held_out = {row["id"] for split in ("validation", "test") for row in lines(graded / f"data/{split}.jsonl")}
    assert held_out and held_out.isdisjoint(replies)


def test_what_was_lost_is_made_again_and_nothing_else(folder: Path, graded: Path) -> None:
    out = folder / "again"
    shutil.copytree(graded, out)
    before, batches = (out / "preferences.jsonl").read_bytes(), sorted(out.glob("replies/*"))
    kept, lost = batches[0], batches[-1]
    assert len(batches) > 1
    was, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (out / "preferences.jsonl").unlink()
    make(folder, "again")
    assert (out / "preferences.jsonl").read_bytes() == before and lost.read_bytes() == was
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
    make(folder, "again", code=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--margin", "0.3"], "changed: margin"),
        (["--by", "judge"], "changed: by"),
        (["--set", "seed=1"], "changed: seed; made by it: replies"),
        (["--set", "rollout.temperature=0.5"], "changed: rollout.temperature; made by it: replies"),
        (["--model", "elsewhere"], "changed: writer"),
    ],
)
def test_another_way_is_refused_in_the_same_folder(
    folder: Path, graded: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (graded / "preferences.jsonl").read_bytes()
    make(folder, "graded", *options, code=2)
    assert said in capsys.readouterr().err and (graded / "preferences.jsonl").read_bytes() == before


def test_a_margin_leaves_out_what_is_close(folder: Path, graded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = make(folder, "wide", "--margin", "0.3", "--report", str(folder / "wide.csv"))
    gaps = {
        pair["id"]: pair["extra"]["chosen_reward"] - pair["extra"]["rejected_reward"]
        for pair in lines(graded / "preferences.jsonl")
    }
    assert [pair["id"] for pair in lines(wide / "preferences.jsonl")] == [n for n, gap in gaps.items() if gap >= 0.3]
    close = sum(gap < 0.3 for gap in gaps.values())
    assert f"{close} without a pair: {TOO_CLOSE}" in capsys.readouterr().out and close
    assert (folder / "wide.csv").read_text().count(TOO_CLOSE) == close


def test_a_judge_makes_pairs_only_where_both_orders_agree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make(folder, "judged", "--by", "judge", "--report", str(folder / "judged.jsonl"))
    report = lines(folder / "judged.jsonl")
    pairs = {pair["id"]: pair for pair in lines(out / "preferences.jsonl")}
    assert len(pairs) > 10 and {one["reason"] for one in report} <= {None, ONE_NOT_WHOLE, ALIKE, ONE_ORDER, NO_ROOM}
    replies = replies_of(out)
    without_room = sum(one["reason"] == NO_ROOM for one in report)
    assert without_room and len(report) == 2 * len(replies) + without_room  # two at a time of four
    for pair in pairs.values():
        source, _, number = pair["id"].partition("/")
        shown = [line["messages"][-1]["content"] for line in replies[source][2 * int(number) : 2 * int(number) + 2]]
        chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert {chosen, rejected} == set(shown) and len(chosen.strip()) > len(rejected.strip())
        assert pair["extra"] == {"source": source, "writer": "first", "by": "judge", "judge": pair["extra"]["judge"]}
    asked, out_text = (folder / "asked.txt").read_text(), capsys.readouterr().out
    assert f"of {int(asked) // 2:,} judgements {len(pairs):,} name the same reply in both orders" in out_text
    make(folder, "judged", "--by", "judge")
    assert (folder / "asked.txt").read_text() == asked
    make(folder, "judged", "--by", "judge", "--set", "evaluation.style.criterion=short", code=2)
    assert "changed: judge.criterion" in capsys.readouterr().err


def test_a_judge_that_names_a_place_makes_no_pair(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = json.dumps([sys.executable, "judge.py", "place"])
    out = make(folder, "place", "--by", "judge", "--set", f"evaluation.style.judge.command={place}", code=2)
    said = capsys.readouterr().err
    assert "no pair came of any row" in said and ONE_ORDER in said and not (out / "preferences.jsonl").exists()


def by_seed(body: dict[str, Any], _number: int) -> Reply:
    """Three different replies."""
    return completion(json.dumps({"number": body["messages"][-1]["content"].split()[0]}) if body["seed"] % 3 else "no")


def test_an_endpoint_is_asked_for_several_replies_and_never_twice(folder: Path) -> None:
    with serving(by_seed) as heard:
        elsewhere = ["--model", "elsewhere", "--set", f"evaluation.systems.elsewhere.base_url={heard.url}"]
        out = make(folder, "remote", *elsewhere)
        asked = len(heard.bodies)
        (out / "replies/batch-000001.jsonl").unlink()
        before = (out / "preferences.jsonl").read_bytes()
        make(folder, "remote", *elsewhere, "--set", "evaluation.systems.elsewhere.concurrency=1")
        assert len(heard.bodies) == asked and (out / "preferences.jsonl").read_bytes() == before
    train = [row["id"] for row in lines(out / "data/train.jsonl")]
    assert asked == 4 * len(train) and len({(str(b["messages"]), b["seed"]) for b in heard.bodies}) == asked
    for body in heard.bodies:
        assert body["temperature"] == 1.0 and body["max_tokens"] == 40 and body["model"] == "large"
        assert body["messages"][0]["content"].endswith("Be brief.") and body["messages"][-1]["role"] == "user"
    pairs = list(read_examples(out / "preferences.jsonl", "preference"))
    assert pairs and {pair.extra["writer"] for pair in pairs} == {"large"}
    assert {pair.rejected[0].content for pair in pairs if isinstance(pair, Preference)} == {"no"}
    assert "held" not in json.loads((out / "manifest.json").read_text()), "a model was opened for nothing"


def write_or_judge(body: dict[str, Any], number: int) -> Reply:
    """As `by_seed`; asked to judge, it prefers JSON."""
    text = body["messages"][-1]["content"]
    if "[Answer A]" not in text:
        return by_seed(body, number)
    first, second = (part.strip().startswith("{") for part in text.split("[Answer A]")[1].split("[Answer B]"))
    return completion("tie" if first == second else "A" if first else "B")


def test_an_endpoint_can_write_and_judge(folder: Path) -> None:
    with serving(write_or_judge) as heard:
        judge = f'{{ type = "remote", base_url = "{heard.url}", model = "judge" }}'
        where = f"evaluation.systems.elsewhere.base_url={heard.url}"
        out = make(
            folder, "both", "--model", "elsewhere", "--by", "judge", "--set", where,
            "--set", f"evaluation.style.judge={judge}", "--report", str(folder / "both.jsonl"),
        )  # fmt: skip
    pairs = lines(out / "preferences.jsonl")
    assert pairs and {pair["extra"]["judge"] for pair in pairs} == {"judge"}
    assert all(pair["chosen"][0]["content"][0] == "{" and pair["rejected"][0]["content"] == "no" for pair in pairs)
    assert {one["reason"] for one in lines(folder / "both.jsonl")} == {None, ALIKE}


def test_a_local_judge_that_cannot_judge_says_so(
    folder: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = f'evaluation.style.judge={{ type = "local_model", model = "{tiny_model_folder}" }}'
    make(folder, "random", "--by", "judge", "--set", judge, code=2)
    told = capsys.readouterr().err
    assert NOTHING_NAMED in told and "no pair came of any row" in told


def trains(objective: str, rows: Path, base: Path, out: Path) -> dict[str, Any]:
    """What a short training with this objective on a file of pairs reports."""
    recipe = rows.parent / f"{objective}.toml"
    head = HEAD.format(model=base).replace("rows.jsonl", rows.name)
    recipe.write_text(f'{head}steps = 2\n[objective]\ntype = "{objective}"\n', encoding="utf-8")
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    return json.loads((out / "data/split.json").read_text())  # type: ignore[no-any-return]


def test_the_pairs_are_rows_to_train_on(graded: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    shutil.copy(graded / "preferences.jsonl", rows)
    counts = trains("dpo", rows, tiny_model_folder, tmp_path / "run")
    assert sum(counts[split] for split in ("train", "validation", "test")) == len(lines(rows))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The studio's export of a ranking."""
    with open_service(options_of(tmp_path_factory.mktemp("service"), Path("base"), at_once=0)) as service:
        project, rankings = service.tenants.project("default"), Rankings(service.database)
        rater = service.tenants.caller(service.tenants.add_key("default", "anna")).key_id  # type: ignore[union-attr]
        prompts = [
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Where is house {n * 37 % 991}?"}]
            for n in range(60)
        ]
        made = rankings.create(project, "mine", ("x", "y"), {"temperature": 0.0}, prompts)
        for number, pair in enumerate(rankings.unanswered(made)):
            rankings.keep_answers(pair["id"], f"House {number * 37 % 991} is in Main Street.", f"No, {number}!")
            rankings.rate(made, pair["id"], rater, ("first", "second", "tie")[number % 3])  # type: ignore[arg-type]
        return lines_of_preferences(rankings.standing(made))


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_what_people_ranked_in_the_studio_trains_as_it_was_exported(
    ranked: bytes, tmp_path: Path, tiny_model_folder: Path, objective: str
) -> None:
    rows = tmp_path / "preferences.jsonl"
    rows.write_bytes(ranked)
    counts = trains(objective, rows, tiny_model_folder, tmp_path / "run")
    assert sum(counts[split] for split in ("train", "validation", "test")) == 40  # two of three have a winner


ASKED = """
[rollout.rewards.good.grader]
type = "score_model"
model = "grader"
input = [{{ role = "user", content = "{{{{sample.output_text}}}}" }}]
[rollout.models.grader]
base_url = "{url}"
model = "served"
"""


def test_a_model_that_a_grader_asks_decides_and_is_asked_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def commas(text: str) -> float:
        return text.count(",") / max(len(text), 1)

    def score(body: dict[str, Any], _number: int) -> Reply:
        asked = body["messages"][0]["content"].partition("\n\nAnswer with")[0]
        return completion(json.dumps({"result": commas(asked)}))

    drawn = (folder / "pairs.toml").read_text(encoding="utf-8").partition("[rollout.rewards.fields]")[0]
    recipe, out = folder / "asked.toml", folder / "asked"
    with serving(score) as heard:
        recipe.write_text(drawn + ASKED.format(url=heard.url), encoding="utf-8")
        given = ["data", "preferences", str(recipe), "--out", str(out)]
        assert main(given) == 0
        assert "to be graded by served" in "".join(capsys.readouterr())
        asked = len(heard.bodies)
        assert main([*given, "--set", "rollout.models.grader.retries=1"]) == 0
        assert len(heard.bodies) == asked > 0
    pairs = lines(out / "preferences.jsonl")
    assert pairs
    for pair in pairs:
        chosen, rejected = (pair[name][-1]["content"] for name in ("chosen", "rejected"))
        assert commas(chosen) > commas(rejected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "rollout.vllm.python=/a/python"], "rollout.vllm is of trainings"),
        (
            ["--set", "rollout.models.x.model=m", "--set", "rollout.models.x.base_url=http://127.0.0.1/v1"],
            "no grader asks",
        ),
        (
            [
                "--by",
                "judge",
                "--set",
                "rollout.models.x.model=m",
                "--set",
                "rollout.models.x.base_url=http://127.0.0.1/v1",
            ],
            "--by judge has none",
        ),
    ],
)
def test_servers_that_nobody_would_ask_are_refused(
    folder: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder, "refused", *options, code=2)
    assert words in capsys.readouterr().err
