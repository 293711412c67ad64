"""The report of whole, half-finished and damaged run folders; rounding; the published schema; the page's form."""

import argparse
import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from luthier.cli.commands import report as command
from luthier.cli.main import main
from luthier.errors import DataError, RecipeError, StorageError
from luthier.report import Report, build_report, text as t, write_report
from luthier.report.build import CURVE_POINTS, build_curve, report_json
from luthier.report.folder import WRITTEN_BY
from luthier.report.page import best_values, competitions, render_page, tiles
from luthier.report.plot import curve_plot, ladder_plot
from luthier.report.rows import MOST_CHARACTERS, MOST_ROWS
from luthier.report.schema import schema_text

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "run"
SIMULATE = ROOT / "tests" / "fixtures" / "simulate_run.py"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "demo"))


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file())


def test_the_fixture_is_what_its_script_writes(tmp_path: Path) -> None:
    runpy.run_path(str(SIMULATE))["write_run"](tmp_path)
    written = {p.relative_to(tmp_path): p.read_bytes() for p in files(tmp_path)}
    assert written == {p.relative_to(FIXTURE): p.read_bytes() for p in files(FIXTURE)}


def test_the_published_schema_is_current_and_holds(run: Path) -> None:
    published = (ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run: luthier report --schema > docs/report.schema.json"
    write_report(build_report(run), run)
    jsonschema.Draft202012Validator.check_schema(json.loads(published))
    jsonschema.validate(json.loads((run / "report.json").read_text()), json.loads(published))


PROMISED = (
    "verdict",
    "verdict.recommendation",
    "verdict.sentence",
    "systems",
    "systems.0.name",
    "systems.0.n",
    "systems.0.metrics",
    "systems.0.metrics.field_f1.value",
    "systems.0.metrics.field_f1.low",
    "systems.0.metrics.field_f1.high",
    "differences",
    "differences.0.a",
    "differences.0.b",
    "differences.0.metric",
    "differences.0.difference",
    "differences.0.low",
    "differences.0.high",
    "differences.0.p_value",
    "forgetting",
    "cost",
    "cost.run_usd",
    "data",
    "data.findings",
)


def test_the_schema_refuses_a_report_without_its_promises(run: Path) -> None:
    written = json.loads(report_json(build_report(run)))
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert validator.is_valid(written)
    for path in PROMISED:
        broken = json.loads(json.dumps(written))
        node = broken
        *parents, name = path.split(".")
        for key in parents:
            node = node[int(key) if key.isdigit() else key]
        del node[name]
        assert not validator.is_valid(broken), path


def test_what_the_issue_promises_is_at_its_place(run: Path) -> None:
    report = json.loads(report_json(build_report(run)))
    assert set(report["verdict"]) >= {"recommendation", "sentence", "evidence", "would_change"}
    by_name = {s["name"]: s for s in report["systems"]}
    assert set(by_name) == {"zero_shot", "few_shot", "fine_tuned", "crf"}
    assert set(by_name["few_shot"]["metrics"]["field_f1"]) == {"value", "low", "high"}
    assert set(report["differences"][0]) >= {"a", "b", "metric", "difference", "low", "high", "p_value"}
    assert set(report) >= {"forgetting", "cost", "data", "training", "preflight", "run"}
    assert {"check", "severity", "message", "advice", "where", "count"} <= set(report["data"]["findings"][0])


def test_a_whole_run_is_whole_and_reads_back_equal(run: Path) -> None:
    report = build_report(run)
    assert report.missing == ()
    assert report.verdict.recommendation == "fine_tune"
    assert Report.model_validate_json(report_json(report)) == report


def test_reading_twice_gives_the_same_bytes_and_leaves_the_run_alone(run: Path) -> None:
    before = {p: p.read_bytes() for p in files(run)}
    first = write_report(build_report(run), run)
    texts = [p.read_bytes() for p in first]
    assert [p.read_bytes() for p in write_report(build_report(run), run)] == texts
    assert {p: p.read_bytes() for p in files(run) if p not in first} == before


@pytest.mark.parametrize("name", sorted(WRITTEN_BY))
def test_any_absent_part_is_said_and_the_page_still_drawn(run: Path, name: str) -> None:
    (run / name).unlink()
    report = build_report(run)
    assert [m.part for m in report.missing] == [name]
    assert name in render_page(report)


@pytest.mark.parametrize("name", sorted(WRITTEN_BY))
def test_any_single_part_alone_makes_a_report(run: Path, tmp_path: Path, name: str) -> None:
    alone = tmp_path / "alone"
    (alone / name).parent.mkdir(parents=True)
    shutil.copy(run / name, alone / name)
    report = build_report(alone)
    assert {m.part for m in report.missing} >= set(WRITTEN_BY) - {name}
    assert report.verdict.recommendation == ("fine_tune" if name == "evaluation.json" else "not_yet")
    assert "not whole" in render_page(report)


def test_forgetting_that_was_not_asked_for_is_not_missing(run: Path) -> None:
    (run / "forgetting.json").unlink()
    change(
        run / "recipe.json", lambda r: r["evaluation"].update(forgetting={"multiple_choice": "none", "text": "none"})
    )
    assert build_report(run).missing == ()


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run's folder"):
        build_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        build_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evaluation.json", '{\n "task": oops}', r"evaluation\.json, line 2: not JSON"),
        ("evaluation.json", "[]", "the whole file"),
        ("evaluation.json", '{"task": "json", "primary_metric": "f1", "systems": [{"name": 3}]}', r"systems\.0\.name"),
        ("findings.json", '[{"check": "x", "severity": "fatal", "message": ""}]', r"0\.severity.*'fatal'"),
        ("metrics.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, oops}\n{"step": 3}\n', r"line 2: not JSON"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1: a line of metrics has no step"),
        ("metrics.jsonl", '{"step": 1, "loss": "low"}\n', "line 1: loss = 'low'"),
        ("metrics.jsonl", "[1]\n", "expected a JSON object"),
        ("records/few_shot.jsonl", '{"id": "a"}\nnot json\n', "line 2: not JSON"),
        ("manifest.json", '{"stages": {"train": {"seconds": "long"}}}', r"stages\.train\.seconds"),
    ],
)
def test_a_damaged_part_is_an_error_that_names_it(run: Path, name: str, text: str, message: str) -> None:
    (run / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        build_report(run)


def test_two_systems_of_one_name_are_an_error(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e["systems"].append(e["systems"][0]))
    with pytest.raises(DataError, match="two systems are called 'zero_shot'"):
        build_report(run)


def test_a_wrong_price_is_a_recipe_error(run: Path) -> None:
    change(run / "recipe.json", lambda r: r["cost"].update(machine_usd_per_hour=-1))
    with pytest.raises(RecipeError, match=r"cost\.machine_usd_per_hour"):
        build_report(run)


def test_a_line_cut_by_a_kill_is_said_and_the_rest_used(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text("\n".join([*path.read_text().splitlines()[:40], '{"step": 41, "lo']))
    (run / "training.json").unlink()
    report = build_report(run)
    assert "line 41" in next(m.reason for m in report.missing if m.part == "metrics.jsonl")
    assert report.training is not None
    assert (report.training.steps, report.training.stopped, report.training.best_step) == (40, "unknown", 40)
    assert report.training.seconds == pytest.approx(
        sum(json.loads(x)["seconds"] for x in path.read_text().splitlines()[:40])
    )


def test_steps_repeated_after_a_resume_count_once(run: Path) -> None:
    (run / "training.json").unlink()
    lines = [{"step": s, "loss": float(s), "tokens": 10, "seconds": 1} for s in (1, 2, 3, 2, 3, 4)]
    lines[3]["loss"] = 20.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = build_report(run).training
    assert training is not None
    assert [(p.step, p.loss) for p in training.curve] == [(1, 1.0), (2, 20.0), (3, 3.0), (4, 4.0)]
    assert training.tokens == 40


def test_numbers_that_are_not_finite_become_null_and_are_said(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 221, "loss": NaN, "validation_loss": Infinity}\n')
    change(run / "evaluation.json", lambda e: e["systems"][0]["metrics"].update(perplexity={"value": 1e999}))
    report = build_report(run)
    assert {m.part for m in report.missing} == {"metrics.jsonl", "evaluation.json"}
    assert report.training is not None and report.training.curve[-1].loss is None
    assert report.systems[0].metrics["perplexity"].value is None
    json.loads(report_json(report), parse_constant=lambda c: pytest.fail(f"report.json holds {c}"))
    assert not re.search(r"\b(nan|inf)\b", render_page(report), re.IGNORECASE)


def test_half_characters_are_shown_as_their_code(run: Path) -> None:
    change(run / "findings.json", lambda f: f[0].update(message="half \ud83d of a smile"))
    report = build_report(run)
    assert "half \\ud83d of a smile" in report.data.findings[0].message
    write_report(report, run)


def test_findings_come_errors_first(run: Path) -> None:
    change(
        run / "findings.json",
        lambda f: f.append({"check": "schema", "severity": "error", "message": "bad", "count": 1}),
    )
    report = build_report(run)
    assert [f.severity for f in report.data.findings] == ["error", "warning", "note"]
    assert report.verdict.rule == "blocked"


def scores(run: Path, system: str) -> list[float]:
    lines = (run / "records" / f"{system}.jsonl").read_text().splitlines()
    return [json.loads(line)["scores"]["field_f1"] for line in lines]


def test_compared_rows_are_the_widest_wins_and_losses_in_turn(run: Path) -> None:
    compared = build_report(run).compared_rows
    gaps = [a - b for a, b in zip(scores(run, "fine_tuned"), scores(run, "few_shot"), strict=True)]
    assert (compared.better, compared.worse, compared.compared) == (
        sum(g > 0 for g in gaps),
        sum(g < 0 for g in gaps),
        60,
    )
    assert len(compared.rows) == MOST_ROWS
    shown = []
    for row in compared.rows:
        by_name = {a.system: a.score for a in row.answers}
        assert set(by_name) == {"zero_shot", "few_shot", "fine_tuned", "crf"}
        shown.append((by_name["fine_tuned"] or 0) - (by_name["few_shot"] or 0))
    assert all(g > 0 for g in shown[0::2]) and all(g < 0 for g in shown[1::2])
    assert shown[0] == max(gaps) and shown[1] == min(gaps)


def test_wins_are_wins_where_lower_is_better(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e.update(lower_is_better=["field_f1"]))
    report = build_report(run)
    assert report.verdict.baseline == "zero_shot"
    gaps = [scores(run, "fine_tuned")[i] - scores(run, "zero_shot")[i] for i in range(60)]
    compared = report.compared_rows
    assert (compared.better, compared.worse) == (sum(g < 0 for g in gaps), sum(g > 0 for g in gaps))
    assert compared.better != compared.worse
    by_name = {a.system: a.score or 0.0 for a in compared.rows[0].answers}
    assert by_name["fine_tuned"] - by_name["zero_shot"] == min(gaps), "the widest win comes first"


def test_the_best_value_is_the_lowest_where_lower_is_better(run: Path) -> None:
    values = [s.metrics["field_f1"].value or 0.0 for s in build_report(run).systems if s.held_out]
    assert best_values(build_report(run))["field_f1"] == max(values)
    change(run / "evaluation.json", lambda e: e.update(lower_is_better=["field_f1"]))
    assert best_values(build_report(run))["field_f1"] == min(values) < max(values)


def test_scores_without_bounds_are_neither_right_nor_wrong(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e.update(bounds={}))
    assert {a.mark for row in build_report(run).compared_rows.rows for a in row.answers} == {"unscored"}


def test_marks_follow_the_end_that_is_best(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e.update(bounds={"field_f1": [1.0, 0.0]}))
    marks = {(a.score, a.mark) for row in build_report(run).compared_rows.rows for a in row.answers}
    assert {mark for score, mark in marks if score == 0} == {"right"}
    assert {mark for score, mark in marks if score == 1} == {"wrong"}


def test_marks_follow_scores(run: Path) -> None:
    for row in build_report(run).compared_rows.rows:
        for answer in row.answers:
            assert answer.score is not None
            assert answer.mark == ("right" if answer.score == 1 else "wrong" if answer.score == 0 else "partly")


def test_records_out_of_order_are_left_out_and_said(run: Path) -> None:
    path = run / "records" / "few_shot.jsonl"
    lines = path.read_text().splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    path.write_text("\n".join(lines[:-1]) + "\n")
    report = build_report(run)
    assert report.compared_rows.compared == 57
    assert "3 rows are not in every system's records" in report.missing[0].reason


def test_a_system_whose_name_leaves_the_folder_is_not_followed(run: Path) -> None:
    (run / "outside.jsonl").write_text('{"id": "secret", "output": "secret", "scores": {}}\n')
    change(run / "evaluation.json", lambda e: e["systems"][0].update(name="../outside"))
    report = build_report(run)
    assert "records/../outside.jsonl" in [m.part for m in report.missing]
    assert "secret" not in report_json(report)


def test_outputs_of_any_shape_are_text_and_long_ones_say_they_were_cut(run: Path) -> None:
    path = run / "records" / "fine_tuned.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["output"] = {"tool": [1, None]}
        record["target"] = None
        record["prompt"] = [{"role": "assistant", "content": None, "tool_calls": [{"name": "x" * 9000}]}, "bare"]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    row = build_report(run).compared_rows.rows[0]
    assert next(a.text for a in row.answers if a.system == "fine_tuned") == '{"tool": [1, null]}'
    assert row.target == "null"
    assert (
        row.prompt[0].text.endswith("more characters are in the record file]")
        and len(row.prompt[0].text) < MOST_CHARACTERS + 80
    )
    assert row.prompt[1].text == "bare"


def test_curve_is_grouped_and_its_average_does_not_lag() -> None:
    losses: dict[int, float | None] = {step: 2.0 - step / 1000 for step in range(1, 1001)}
    losses[500] = None
    curve = build_curve(losses)
    assert len(curve) <= CURVE_POINTS and curve[-1].step == 1000
    middle = min(curve, key=lambda p: abs(p.step - 300))
    assert middle.smoothed == pytest.approx(2.0 - middle.step / 1000, abs=0.003)
    assert build_curve({}) == ()
    assert build_curve({1: None})[0].smoothed is None


def test_dots_stand_where_their_values_say(run: Path) -> None:
    report = build_report(run)
    plot = ladder_plot(report)
    assert plot is not None
    for rung, system in zip(plot.rungs, report.systems, strict=True):
        measured = system.metrics["field_f1"]
        assert rung.dot is not None and measured.value is not None
        assert rung.dot.low <= rung.dot.at <= rung.dot.high
        value = plot.axis.low + rung.dot.at / 100 * (plot.axis.high - plot.axis.low)
        assert value == pytest.approx(measured.value, abs=1e-4)
    assert [r.held_out for r in plot.rungs] == [True, True, True, False]


def test_one_wild_step_does_not_flatten_the_curve(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[100]["loss"] = 1e6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wild = curve_plot(build_report(run).training)
    assert wild is not None and wild.smoothed
    assert wild.best is not None and 0 <= wild.best[1] <= 1000


class Page(HTMLParser):
    """Collects tags, attributes and the policy of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_is_one_file_that_fetches_and_runs_nothing(run: Path) -> None:
    text = render_page(build_report(run))
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[0].startswith("on") or a[0] == "src"]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "default-src 'none'" in dict(page.attributes)["content"] or any(
        "default-src 'none'" in v for _, v in page.attributes
    )
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text


def test_the_page_tells_its_story_in_order(run: Path) -> None:
    text = render_page(build_report(run))
    marks = ['class="badge', "<h1>", 'class="tiles"']
    marks += [
        f'id="{x}"' for x in ("ladder", "metrics", "training", "forgetting", "rows", "data", "gates", "cost", "run")
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert len(re.findall(r'<div class="row">', text)) == MOST_ROWS
    assert text.count('class="dot hollow"') == 3  # the system that is not held out, and two measures before training


def test_every_section_has_its_numbers(run: Path) -> None:
    report = build_report(run)
    text = render_page(report)
    assert {tile.name for tile in tiles(report)} >= {
        "Failures per million",
        "Forgetting",
        "This run cost",
        "A thousand answers",
    }
    for expected in ("59,629", "12 inputs appear", "train.jsonl:14", "end of turn", "after 8,241 answers", "rank = 16"):
        assert expected in text
    assert all(f.text in text for f in report.verdict.evidence)


def test_paths_are_shown_without_the_folders_of_whoever_ran_it(run: Path) -> None:
    path = "/data/someone/secret/addresses/train.jsonl"
    change(run / "findings.json", lambda f: f[0].update(where=[{"path": path, "line": 3}]))
    change(run / "recipe.json", lambda r: r["data"].update(train=path))
    change(run / "manifest.json", lambda m: m["data"]["train"].update(path=f"a share of {path}"))
    change(run / "manifest.json", lambda m: m["model"].update(name="/data/someone/models/small"))
    text = render_page(build_report(run))
    assert "addresses/train.jsonl:3" in text and "a share of addresses/train.jsonl" in text and "models/small" in text
    assert "someone" not in text and "secret" not in text


def test_messages_show_no_folders_either(run: Path) -> None:
    path, shown = "/data/someone/secret/addresses/train.jsonl", "addresses/train.jsonl"
    said = {"message": f"line 3 of {path}, and '{path}'", "advice": f"mend {path}:3."}
    change(run / "findings.json", lambda f: f[0].update(said))  # a warning of label noise, so the verdict quotes it
    change(run / "preflight.json", lambda g: g[0].update(message=f"rows of {path}", proves=f"({path})"))
    change(run / "evaluation.json", lambda e: e["systems"][3].update(note=f"trained on {path}"))
    change(run / "data/split.json", lambda s: s.update(notes=[f"test: {path} is small"]))
    report = build_report(run)
    assert any(path in w for w in report.verdict.warnings)
    text = render_page(report)
    assert text.count(shown) >= 8
    assert "someone" not in text and "secret" not in text
    change(run / "findings.json", lambda f: f[0].update(severity="error"))
    blocked = build_report(run)
    assert path in blocked.verdict.headline
    assert "someone" not in render_page(blocked)


def test_the_prompts_that_were_tried_are_shown_with_the_winner(run: Path) -> None:
    report = build_report(run)
    zero, few = competitions(report.systems)
    assert [won for _, won in zero.trials] == [False, False, True] and zero.winner.place == "user"
    assert few.winner.examples == "nearest" and few.mean_shots == 2.95
    page = render_page(report)
    assert "zero_shot: 3 ways to ask on 20 validation rows; the best reached field F1 0.513" in page
    assert all(score in page for score in ("0.204", "0.448", "0.742", "0.735"))
    assert page.count("used for the test") == 2


def test_answers_that_were_cut_off_are_counted_on_the_page(run: Path) -> None:
    row = re.search(r"<tr><th>Answers cut off.*?</tr>", render_page(build_report(run)), re.DOTALL)
    assert row is not None
    assert re.findall(r'<td class="n">(.*?)</td>', row.group()) == ["2<small>3.3 %</small>", "0", "0", "n/a"]


def test_test_rows_that_repeat_are_said(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e.update(groups=40))
    report = build_report(run)
    assert "same 60 test rows, 40 of them different" in render_page(report)
    assert json.loads(report_json(report))["evaluation"]["groups"] == 40
    assert any(tile.note.endswith("60 rows, 40 different") for tile in tiles(report))


def test_what_would_show_stands_beside_each_difference(run: Path) -> None:
    report = build_report(run)
    page = render_page(report)
    for d in report.differences:
        assert d.minimum_detectable_effect is not None and t.number(d.minimum_detectable_effect) in page
    assert "n = 63 windows of text (8,000 tokens)" in page
    assert "a true change of 0.029 would have shown" in page


def test_what_the_seconds_of_a_program_hold_stands_on_the_page(run: Path) -> None:
    assert render_page(build_report(run)).count("* crf: the whole program") == 2


def test_long_names_may_break_at_underscores(run: Path) -> None:
    change(run / "evaluation.json", lambda e: e["systems"][1].update(name="few_shot_retrained"))
    assert "few_<wbr>shot_<wbr>retrained" in render_page(build_report(run))


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_a_task_in_which_nothing_is_written(run: Path, seconds: float | None) -> None:
    """Raw text: empty outputs, no tokens, bits per byte."""

    def scored(evaluation: Any) -> None:
        evaluation.update(task="language", lower_is_better=["field_f1"], bounds={})
        for system in evaluation["systems"]:
            system.update(tokens=None, seconds=seconds, failures={}, details={})

    change(run / "evaluation.json", scored)
    for path in (run / "records").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "output": "", "prompt": []}) + "\n" for line in lines))
    report = build_report(run)
    page = render_page(report)
    assert "scored, not written" in page and "empty answer" not in page
    hosted = [h for c in report.cost.systems for h in c.hosted]
    assert {h.usd_per_thousand for h in hosted} == {None} and all(h.note for h in hosted)
    jsonschema.validate(json.loads(report_json(report)), json.loads(schema_text()))


def test_the_command_writes_both_files_and_prints_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Fine-tune.\n") and shown.rstrip().endswith("report.html")
    assert (run / "report.html").exists() and (run / "report.json").exists()
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(("name", "start"), [("page.html", "<!DOCTYPE html>"), ("facts.json", "{")])
def test_out_writes_one_file_and_nothing_else(run: Path, tmp_path: Path, name: str, start: str) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "new" / name)]) == 0
    assert (tmp_path / "new" / name).read_text(encoding="utf-8").lstrip().startswith(start)
    assert not (run / "report.html").exists() and not (run / "report.json").exists()


def test_wrong_uses_of_the_command_are_errors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert main(["report", str(run), "--out", "x.pdf"]) == 2
    assert main(["report", str(run / "absent")]) == 2
    shown = capsys.readouterr().err
    assert "which run?" in shown and ".html (the page) or .json" in shown and "no such folder" in shown


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--schema"]) == 0
    assert capsys.readouterr().out == schema_text()


def test_what_cannot_be_written_is_a_storage_error_and_leaves_nothing(run: Path) -> None:
    (run / "report.json").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(build_report(run), run)
    assert not list(run.glob(".*"))


def test_arguments_are_the_documented_ones() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert vars(parser.parse_args(["x"])) == {"run": Path("x"), "out": None, "schema": False}
