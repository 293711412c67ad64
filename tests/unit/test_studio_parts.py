"""Parts of the studio that need no server: agreement of raters, rows as texts, edits and ratings with their undo."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs_service import options_of
from tests.studio import add_jobs, add_steps, chats

from luthier.jobs.http.app import Service
from luthier.jobs.service import open_service
from luthier.serve.api_error import ApiError
from luthier.web.agreement import Choice, is_swapped, krippendorff_alpha, preferred
from luthier.web.compare_pages import leaves
from luthier.web.edits import Edits, lines_of
from luthier.web.file_pages import holds
from luthier.web.forms import Posted
from luthier.web.job_list import ROWS, JobList
from luthier.web.looks import Looks
from luthier.web.new_pages import job_of
from luthier.web.pages import HERE
from luthier.web.passages import Corpora
from luthier.web.rankings import Rankings, prompts_of
from luthier.web.row_text import compact, indented, tools, turns, with_texts

HTMX = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
"""sha256 of dist/htmx.min.js of htmx.org 4.0.1, as the npm registry has it."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with open_service(options_of(tmp_path / "service", Path("base"), at_once=0)) as found:
        yield found


# agreement: the examples of Krippendorff (2011), A, B and C, and their alphas


def test_alpha_of_two_raters_and_two_values() -> None:
    a, b = "0100000010", "1110010000"
    assert krippendorff_alpha(list(zip(a, b, strict=True))) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_two_raters_and_five_values() -> None:
    a, b = "aabbdcccedda", "babbbcccedDD".lower()
    assert krippendorff_alpha(list(zip(a, b, strict=True))) == pytest.approx(0.692, abs=5e-4)


def test_alpha_of_four_raters_who_left_units_out() -> None:
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[row[at] for row in rows if row[at] != "."] for at in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_says_nothing_of_what_nobody_shares() -> None:
    assert krippendorff_alpha([["first"], []]) is None
    assert krippendorff_alpha([["first", "first"], ["first", "first"]]) is None
    assert krippendorff_alpha([["first", "first"], ["tie", "tie"]]) == 1


@pytest.mark.parametrize(
    ("said", "wins"),
    [
        (["first"], "first"),
        (["first", "second"], "tie"),
        (["second", "second", "first"], "second"),
        (["first", "tie"], "tie"),
        (["skip", "second"], "second"),
        (["skip"], None),
        ([], None),
    ],
)
def test_most_raters_decide(said: list[Choice], wins: Choice | None) -> None:
    assert preferred(said) == wins


def test_the_order_of_answers_is_a_pure_function_at_even_odds() -> None:
    shown = [is_swapped(f"pair_{n}", "key_a") for n in range(2000)]
    assert shown == [is_swapped(f"pair_{n}", "key_a") for n in range(2000)]
    assert 900 < sum(shown) < 1100
    assert shown != [is_swapped(f"pair_{n}", "key_b") for n in range(2000)]


# rows

ROW = json.dumps(
    {
        "input": {"messages": [{"role": "user", "content": "a\u202eb\r\nc"}]},
        "preferred_output": [{"role": "assistant", "content": "yes"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
        "extra": 1,
    }
)


def test_a_row_is_taken_apart_and_only_what_was_changed_is_changed() -> None:
    assert [(turn.who, turn.text) for turn in turns(ROW)] == [
        ("input: user", "a\u202eb\r\nc"),
        ("preferred output: assistant", "yes"),
        ("non preferred output: assistant", "no"),
    ]
    shown = {turn.place: turn.text.replace("\u202e", "⟨U+202E⟩").replace("\r", "␍") for turn in turns(ROW)}
    assert json.loads(with_texts(ROW, shown)) == json.loads(ROW)  # a browser sends back what it was shown
    new = json.loads(with_texts(ROW, {**shown, "preferred_output/0/content": "yes\r\n!"}))
    assert new == {**json.loads(ROW), "preferred_output": [{"role": "assistant", "content": "yes\n!"}]}


def test_tools_are_shown_whether_they_are_a_list_or_its_text() -> None:
    listed = [{"type": "function", "function": {"name": "now"}}, {"type": "function", "function": {"name": "é"}}]
    as_list, as_text = (json.dumps({"messages": [], "tools": given}) for given in (listed, json.dumps(listed)))
    assert [json.loads(line) for line in tools(as_text).splitlines()] == listed and tools(as_list) == tools(as_text)
    assert tools('{"tools": "["}') == tools('{"tools": 3}') == tools("no JSON") == ""


def test_words_are_found_as_they_are_read_and_as_they_are_written() -> None:
    row = json.dumps({"messages": [{"role": "user", "content": 'Stra\u00dfe "Nord"\nzwei'}]})  # written with escapes
    assert holds(row, ["strasse", '"nord"', "user"]) and holds(row, [])
    assert not holds(row, ["strasse", "drei"])


def test_json_of_a_row_comes_back_as_it_was() -> None:
    hidden = json.dumps({"messages": [{"role": "user", "content": "\u202e\u200b\ud83d\ude00\x07 ü"}]})
    assert "\\u202e" in indented(hidden)
    assert json.loads(compact(indented(hidden))) == json.loads(hidden)


def test_edits_are_entries_and_the_file_stays(service: Service, tmp_path: Path) -> None:
    project = service.tenants.project("default")
    with service.files.receiver(project) as received:
        received.write(chats(7))
        file = service.files.add(project, "rows.jsonl", "fine-tune", received)
    edits, path = Edits(service.database, service.files), service.files.path(project, file["id"])
    before = path.read_bytes()
    with pytest.raises(ApiError, match="No row was changed"):
        edits.make(project, file["id"])
    new = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]})
    edits.add(project, file["id"], 2, new)
    edits.add(project, file["id"], 4, None)
    edits.add(project, file["id"], 2, None)
    assert edits.undo(project, file["id"]) == 2
    assert edits.of(project, file["id"]) == {2: new, 4: None}
    assert edits.of("other", file["id"]) == {}
    made = edits.make(project, file["id"])
    assert made["filename"] == "rows-edited.jsonl"
    lines = [text for _, text in lines_of(service.files.path(project, made["id"]))]
    old = [text for _, text in lines_of(path)]
    assert lines == [old[0], new, old[2], *old[4:]]
    assert path.read_bytes() == before
    edits.add(project, made["id"], 1, None)
    service.files.delete(project, file["id"])
    assert edits.of(project, file["id"]) == {}  # what it quoted went with it
    with pytest.raises(ApiError, match="No such file"):
        edits.add(project, file["id"], 1, new)
    assert edits.of(project, made["id"]) == {1: None}


# rankings


def test_ratings_count_once_and_can_be_taken_back(service: Service, tmp_path: Path) -> None:
    project = service.tenants.project("default")
    secrets = [service.tenants.add_key("default", name) for name in ("anna", "ben")]
    anna, ben = [service.tenants.caller(secret).key_id for secret in secrets]  # type: ignore[union-attr]
    (tmp_path / "rows").write_bytes(chats(10))
    prompts = prompts_of(tmp_path / "rows", 4)
    assert len(prompts) == 4 and prompts == [one for one in prompts_of(tmp_path / "rows", 99) if one in prompts]
    assert [message["role"] for message in prompts[0]] == ["system", "user"]
    rankings = Rankings(service.database)
    made = rankings.create(project, "mine", ("x", "y"), {"temperature": 0.0}, prompts)
    for pair in rankings.unanswered(made):
        rankings.keep_answers(pair["id"], "good", "" if pair["number"] == 4 else "bad")
    one, two, three, four = [pair["id"] for pair in rankings.standing(made).pairs]
    for rater, pair, choice in ((anna, one, "first"), (anna, two, "tie"), (ben, one, "first"), (ben, two, "second")):
        rankings.rate(made, pair, rater, choice)  # type: ignore[arg-type]
    rankings.rate(made, three, anna, "skip")
    rankings.rate(made, four, anna, "first")
    standing = rankings.standing(made)
    assert standing.verdicts == {one: "first", two: "tie", four: "first"}
    assert standing.agreement == (1, 2)
    assert [row["preferred_output"][0]["content"] for row in standing.preferences()] == ["good"]  # the other is empty
    rankings.undo(made, anna)
    rankings.undo(made, anna)
    rankings.rate(made, one, anna, "second")
    assert rankings.standing(made).said == {one: {anna: "second", ben: "first"}, two: {anna: "tie", ben: "second"}}
    with pytest.raises(ApiError, match="No such pair"):
        rankings.rate("rank_other", one, anna, "tie")
    with pytest.raises(ApiError, match="No such ranking"):
        rankings.get("other", made)


# jobs


def test_jobs_are_found_by_their_words_page_by_page(service: Service) -> None:
    project, found = service.tenants.project("default"), JobList(service.database)
    ids = add_jobs(service, project, 120)
    add_jobs(service, service.tenants.project("other"), 3, "failed")
    (paused,) = add_jobs(service, project, 1, "paused")
    first = found.page(project, "", "", 1)
    assert (len(first.rows), first.found, first.pages) == (ROWS, 121, 3)
    assert dict(first.counts) == {"succeeded": 120, "paused": 1}
    assert [row["id"] for row in found.page(project, "GPT-4o try-119", "", 1).rows] == [ids[119]]
    assert [row["id"] for row in found.page(project, "", "paused", 99).rows] == [paused]
    assert found.page(project, "100% _ '", "", 1).found == 0
    add_steps(service, paused, 30, 60)
    progress = found.training(paused)
    training = progress.training
    assert progress.total == 60 and training is not None and training.best_step == 30 and len(training.curve) == 30


def test_a_form_becomes_a_job_of_the_api() -> None:
    fields = {"model": ["m"], "training_file": ["file-1"], "suffix": [" mine "], "n_epochs": ["2"], "beta": ["0.1"]}
    assert job_of(Posted(fields)) == {
        "model": "m",
        "training_file": "file-1",
        "suffix": "mine",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    }
    with pytest.raises(ApiError, match="'n_epochs': expected a number"):
        job_of(Posted({**fields, "n_epochs": ["two"]}))
    with pytest.raises(ApiError, match="'method'"):
        job_of(Posted({**fields, "method": ["reinforcement"]}))


def test_passages_are_found_in_a_file_of_the_project(service: Service) -> None:
    project = service.tenants.project("default")
    with service.files.receiver(project) as received:
        received.write(b"The tower has 31 metres.\n\n" + b"Words of other things. " * 60 + b"\n\nThe harbor is deep.\n")
        file = service.files.add(project, "notes.md", "user_data", received)
    corpora = Corpora(service.files)
    found = corpora.of(project, file["id"]).find("How deep is the harbor?")
    assert "harbor" in found[0].text and found[0].title == "notes"
    with pytest.raises(ApiError):
        corpora.of(service.tenants.project("other"), file["id"])


def test_pages_that_ask_at_once_begin_one_look(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"no rows\n")

    async def ask() -> list[dict[str, Any]]:
        looks = Looks(tmp_path / "looks", tmp_path / "jobs", at_once=1)
        found = await asyncio.gather(*(looks.found("project", tmp_path / "rows", "base", None) for _ in range(3)))
        begun = [place.stat().st_ino for place in (tmp_path / "looks").iterdir()]
        while "done" not in found[0]:
            await asyncio.sleep(0.05)
            found = [await looks.found("project", tmp_path / "rows", "base", None)]
        assert [place.stat().st_ino for place in (tmp_path / "looks").iterdir()] == begun and len(begun) == 1
        return found

    (found,) = asyncio.run(ask())
    assert "train.jsonl" in found["trouble"] and str(tmp_path) not in found["trouble"]


# what is shipped


def test_the_script_of_others_is_the_one_that_was_looked_at() -> None:
    assert hashlib.sha256((HERE / "static/htmx.min.js").read_bytes()).hexdigest() == HTMX
    assert "Zero-Clause BSD" in (HERE / "static/htmx.LICENSE").read_text()


def test_the_studio_loads_no_torch() -> None:
    program = "import sys, luthier.web.studio; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_template_has_markup_or_style_that_the_policy_forbids() -> None:
    for path in (HERE / "templates").iterdir():
        text = path.read_text(encoding="utf-8")
        for word in ("|safe", "| safe", "Markup", " style=", " onclick", "<style", "hx-on", "javascript:", "<script>"):
            assert word not in text, f"{path.name}: {word}"


# runs compared


def test_settings_that_are_compared_name_no_place() -> None:
    recipe = {
        "seed": 1,
        "data": {"train": "/srv/rows.jsonl"},
        "model": {"name": "/srv/base", "precision": "auto"},
        "adapter": {"type": "lora", "start_from": "/srv/start", "alpha": None},
    }
    assert dict(leaves(recipe)) == {"seed": "1", "model.precision": "auto", "adapter.type": "lora"}
