"""Rows, names and messages from anywhere cannot become markup, act on a terminal, or hide."""

import json
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.commands.report import summary
from luthier.report import build_report, write_report
from luthier.report.build import report_json
from luthier.report.page import render_page

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run"
ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](http://example.invalid/p.png)",
    "\x1b[2J\x1b]8;;http://example.invalid\x07link\x1b]8;;\x07",
    "</style></pre></details></section><style>*{display:none}</style>",
    "\u202e\u2066txt.exe\u2069 \u200b\ufeff \u2028 \U000e0041",
    '" onmouseover="alert(1)" x=\'',
    "' onfocus='alert(1)' autofocus '",
    "{{ 7 * 7 }}{% for x in () %}{# gone #}",
    "]]><!--<svg/onload=alert(1)>",
    "&lt;b&gt;&#x3c;script&#x3e;",
    "\x00\x08\x0b\x7f\x85\x9b31m",
)
EVERYTHING = "".join(ATTACKS)


class Skeleton(HTMLParser):
    """Tags with the names of their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.text = ""
        self.comments = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag, tuple(name for name, _ in attrs)] += 1

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments += 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "demo"))


def poison(value: Any, keep: frozenset[str], with_text: Callable[[str], str]) -> Any:
    """A copy in which every string is poisoned, but for those under the keys of `keep`, which choose."""
    if isinstance(value, str):
        return with_text(value)
    if isinstance(value, list):
        return [poison(v, keep, with_text) for v in value]
    if isinstance(value, dict):
        return {k: v if k in keep else poison(v, keep, with_text) for k, v in value.items()}
    return value


KEEP = frozenset({"severity", "stopped", "type", "primary_metric", "a", "b", "metric", "name"})


def poison_run(run: Path, with_text: Callable[[str], str]) -> None:
    for path in run.rglob("*.json"):
        keep = KEEP if path.name != "manifest.json" else frozenset()
        path.write_text(json.dumps(poison(json.loads(path.read_text()), keep, with_text)))
    for path in (run / "records").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(poison(line, frozenset({"id"}), with_text)) + "\n" for line in lines))


def is_visible(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("attack", [*ATTACKS, EVERYTHING])
def test_data_never_becomes_markup(run: Path, attack: str) -> None:
    poison_run(run, lambda text: text + "#" * len(attack))  # as long, so that the same texts are folded
    harmless = Skeleton(render_page(build_report(run)))
    shutil.rmtree(run)
    shutil.copytree(FIXTURE, run)
    poison_run(run, lambda text: text + attack)
    page = render_page(build_report(run))
    found = Skeleton(page)
    added = found.tags - harmless.tags
    # visible pictures are longer than what they stand for, so a text may be folded where a harmless one was not
    assert not {tag for tag, _ in added} - {"details", "summary", "code", "pre"}, added
    assert not [names for _, names in found.tags if any(name.startswith("on") for name in names)]
    assert found.comments == 0
    assert all(is_visible(c) for c in page), sorted({hex(ord(c)) for c in page if not is_visible(c)})


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_of_systems_and_metrics_and_keys_are_text(run: Path, attack: str) -> None:
    name = attack.replace("/", "|").replace("\x00", "")[:60]
    text = (run / "evaluation.json").read_text()
    evaluation = json.loads(text.replace('"few_shot"', json.dumps(name)).replace('"field_f1"', json.dumps(attack)))
    evaluation["systems"][1]["type"] = "few_shot"
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "manifest.json").write_text(
        json.dumps({"machine": {attack: attack}, "versions": {attack: attack}, "model": {"sha256": {attack: attack}}})
    )
    report = build_report(run)
    page = render_page(report)
    plain = Skeleton(render_page(build_report(FIXTURE)))
    assert not {tag for tag, _ in Skeleton(page).tags} - {tag for tag, _ in plain.tags}
    assert all(is_visible(c) for c in page)
    assert report.verdict.baseline == name


def test_the_texts_are_there_to_be_read(run: Path) -> None:
    path = run / "records" / "fine_tuned.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**line, "output": "<script>alert(1)</script>\x1b[31m"}) + "\n" for line in lines)
    )
    page = render_page(build_report(run))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\u241b[31m" in page
    assert "<script>alert(1)</script>\u241b[31m" in Skeleton(page).text


def test_the_json_and_the_terminal_hold_no_raw_control_character(run: Path) -> None:
    poison_run(run, lambda text: text + EVERYTHING)
    report = build_report(run)
    data = report_json(report)
    assert data.isascii() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", data)
    assert all(is_visible(c) for c in summary(report, Path("x\x1b[2J.html")))
    write_report(report, run)


def test_the_template_has_no_way_around_escaping() -> None:
    template = (Path(__file__).parents[2] / "src" / "luthier" / "report" / "page.html.jinja").read_text()
    assert not re.search(r"\|\s*safe|autoescape|Markup", template)
