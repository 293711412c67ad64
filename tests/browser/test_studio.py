"""The studio in a real Chromium: one long way through all of it, and its pages as different people need them."""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser.chromium import PHONE, Person, chromium
from tests.jobs_service import rows
from tests.studio import Studio, add_jobs, add_steps, chats, studio

pytestmark = pytest.mark.browser
NOTES = b"The lighthouse is 31 metres high.\n\nIt was built in 1887 by Anna Berg.\n"
HOSTILE = "<script>window.hit=1</script><img src=x onerror=window.hit=1>\u202e{{7*7}}</textarea><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Studio]:
    with studio(tmp_path_factory.mktemp("service"), tiny_model_folder) as found:
        yield found


def test_from_a_file_to_a_model_that_people_preferred(
    served: Studio, browser: Browser, tmp_path: Path, tiny_model_folder: Path
) -> None:
    anna = Person(browser, served.url, served.key())
    page = anna.page
    upload(page, tmp_path, "train.jsonl", chats(40))
    page.wait_for_url("**/job")
    expect(page.get_by_text("exact duplicates")).to_be_visible()
    expect(page.locator("#findings").get_by_role("link", name="6", exact=True)).to_be_visible()  # the repeated line
    expect(page.locator(".tokens").first).to_contain_text("<|im_start|>assistant")
    trained = page.locator(".tokens").first.locator("mark").all_inner_texts()
    assert re.fullmatch(r"It is \d+\.<\|im_end\|>", "".join(trained))
    expect(page.get_by_text("Memory at most")).to_be_visible()
    anna.require_accessible()
    require_no_place(page, tiny_model_folder)

    page.get_by_label("Name").fill("sums")
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/studio/jobs/ftjob-*")
    expect(page.locator("#state .status")).to_have_text("succeeded")  # without a reload
    expect(page.locator("#losses polyline.valid")).to_have_attribute("points", re.compile("[0-9]"))
    page.reload()
    report = page.frame_locator("iframe.report")
    page.locator("iframe.report").scroll_into_view_if_needed()
    expect(report.get_by_role("heading", level=1)).to_be_visible()
    anna.require_accessible()
    require_no_place(page, tiny_model_folder)

    page.get_by_role("link", name="Try it beside its base").click()
    page.get_by_label("Question").fill("What is 1 plus 1?")
    page.get_by_label("Seeds").fill("3, 3")
    page.get_by_label("Tokens at most").fill("12")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("All answers are there.")).to_be_visible()
    said = page.locator("#answers pre").all_inner_texts()
    assert len(said) == 4 and said[:2] == said[2:]  # the same seed says the same
    anna.require_accessible()

    rank_by_keyboard(anna, served)
    page.get_by_role("link", name="See what came of it").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as a DPO file").click()
    exported = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert exported and all(row["preferred_output"] != row["non_preferred_output"] for row in exported)
    anna.require_accessible()
    results = page.url
    for method in ("dpo", "reward"):
        page.goto(results)
        page.get_by_label("What comes of it").select_option(method)
        page.get_by_role("button", name="Make the job").click()
        page.wait_for_url("**/studio/jobs/ftjob-*")
        expect(page.get_by_text(f"{method} from")).to_be_visible()
        expect(page.locator("#state .status")).to_have_text("succeeded")
        expect(page.get_by_text("Pairs told right", exact=True)).to_be_visible()
        # what judges answers nothing
        expect(page.get_by_role("link", name="Try it beside its base")).to_have_count(int(method == "dpo"))

    anna.go("/studio/compare")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("row", name="objective.type")).to_be_visible()
    anna.require_accessible()
    require_no_place(page, tiny_model_folder)
    assert anna.said == []


def require_no_place(page: Page, folder: Path) -> None:
    """Nothing on a page says where things lie on this machine."""
    text = page.content()
    assert str(folder) not in text and str(folder.parents[1]) not in text


def rank_by_keyboard(anna: Person, served: Studio) -> None:
    """Ten pairs with keys alone, one of them taken back; a second rater agrees on some."""
    page = anna.go("/studio/rankings")
    page.get_by_label("Pairs").fill("10")
    page.get_by_label("Tokens at most").fill("12")
    page.keyboard.press("Enter")
    page.wait_for_url("**/studio/rankings/rank_*")
    for done, key in enumerate("120s121212"):
        expect(page.get_by_text(f"{done} of 10 rated by you")).to_be_visible()
        expect(page.get_by_role("button", name="A is better")).to_be_visible()
        if done == 0:
            assert "ft:" not in page.inner_text("main")  # whose answers these are
            anna.require_accessible()
        page.keyboard.press(key)
    expect(page.get_by_text("10 of 10 rated by you")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("9 of 10 rated by you")).to_be_visible()
    page.keyboard.press("2")
    expect(page.get_by_text("You have rated all pairs")).to_be_visible()


def upload(page: Page, folder: Path, name: str, contents: bytes, purpose: str = "Rows to train on") -> None:
    """A file, over the page of files."""
    (folder / name).write_bytes(contents)
    page.get_by_role("navigation", name="Studio").get_by_role("link", name="Data").click()
    page.get_by_label("File", exact=True).set_input_files(folder / name)
    page.get_by_label("What it holds").select_option(purpose)
    page.get_by_role("button", name="Upload and look at it").click()


def test_rows_are_searched_mended_and_left_out_with_an_undo(served: Studio, browser: Browser, tmp_path: Path) -> None:
    ben = Person(browser, served.url, served.key("rows", "ben"))
    page = ben.page
    hostile = json.dumps({"messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "No."}]})
    upload(page, tmp_path, "mine.jsonl", chats(60) + hostile.encode() + b"\n")
    page.get_by_role("link", name="Read, search and mend").click()
    page.get_by_label("Search in the rows").fill("onerror")
    page.keyboard.press("Enter")
    expect(page.locator("table.data tbody tr")).to_have_count(1)
    ben.require_accessible()
    page.get_by_role("button", name="Leave line 61 out").click()
    expect(page.get_by_text("1 left out")).to_be_visible()
    page.get_by_role("button", name="Undo the last change").click()
    expect(page.get_by_role("button", name="Leave line 61 out")).to_be_visible()
    page.get_by_role("link", name="Fix line 61").click()
    assert page.get_by_label("user").input_value() == HOSTILE.replace("\u202e", "⟨U+202E⟩")
    page.get_by_label("assistant").fill("Certainly not.")
    page.get_by_role("button", name="Keep these texts").click()
    page.get_by_role("button", name="Make a new file").click()
    page.wait_for_url("**/studio/files/file-*")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    last = json.loads(download.value.path().read_text().splitlines()[-1])
    assert [message["content"] for message in last["messages"]] == [HOSTILE, "Certainly not."]
    assert page.evaluate("window.hit") is None
    assert ben.said == []


def test_a_thousand_jobs_at_any_width_and_in_the_dark(served: Studio, browser: Browser) -> None:
    key = served.key("many", "cleo")
    project = served.service.tenants.project("many")
    add_jobs(served.service, project, 1000)
    (paused,) = add_jobs(served.service, project, 1, "paused")
    add_steps(served.service, paused, 400, 1000)
    pages = ["/studio/jobs", f"/studio/jobs/{paused}", "/studio/files", "/studio/playground", "/studio/rankings"]
    pages += ["/studio/compare"]
    paints = []
    for context in ({}, {"color_scheme": "dark"}, {"viewport": PHONE}, {"viewport": PHONE, "color_scheme": "dark"}):
        cleo = Person(browser, served.url, key, **context)
        for path in pages:
            cleo.go(path)
            paints.append(cleo.first_paint())
            cleo.require_accessible()
        assert cleo.said == []
    print(f"\nfirst contents after {statistics.median(paints):.0f} ms (median), {max(paints):.0f} ms at most")
    assert max(paints) < 1000
    page = cleo.go("/studio/jobs")
    took = page.evaluate(
        """async () => { const began = performance.now(); const input = document.getElementById('search');
        input.value = 'try-777'; input.dispatchEvent(new Event('input', {bubbles: true}));
        while (!document.getElementById('found').innerText.includes('1 job')
               || document.getElementById('found').innerText.includes('jobs')) await new Promise(requestAnimationFrame);
        return performance.now() - began; }"""
    )
    print(f"1,001 jobs searched, typing pause included, in {took:.0f} ms")
    assert took < 1000


def test_all_of_it_is_reached_by_keyboard(served: Studio, browser: Browser, tmp_path: Path) -> None:
    dora = Person(browser, served.url, served.key("keys", "dora"))
    page = dora.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "New job from a file"
    page.keyboard.press("Enter")
    page.wait_for_url("**/studio/files")
    (tmp_path / "few.jsonl").write_bytes(rows(20))
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "few.jsonl")  # the system's own dialog, else
    press_until(page, "Upload and look at it")
    page.wait_for_url("**/job")
    press_until(page, "Start the job")
    page.wait_for_url("**/studio/jobs/ftjob-*")
    press_until(page, "Cancel")
    expect(page.locator("#state .status")).to_have_text("cancelled")
    press_until(page, "Sign out")
    page.wait_for_url("**/studio/sign-in")
    dora.go("/studio/jobs")
    assert page.url.endswith("/studio/sign-in")


def press_until(page: Page, name: str) -> None:
    """Tab to a button, with its outline in sight, and press it."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == name:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"{name} is not reached by Tab")


def test_passages_stand_beside_the_model_alone(served: Studio, browser: Browser, tmp_path: Path) -> None:
    emil = Person(browser, served.url, served.key("notes", "emil"))
    page = emil.page
    upload(page, tmp_path, "lighthouse.txt", NOTES, "Text to find passages in")
    page.wait_for_url("**/studio/files")
    emil.go("/studio/playground")
    page.get_by_label("Question").fill("How high is the lighthouse?")
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("With passages from").select_option("lighthouse.txt")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("All answers are there.")).to_be_visible()
    assert [" with passages" in heading for heading in page.locator("#answers h3").all_inner_texts()] == [False, True]
    expect(page.locator("#answers .told").last).to_contain_text("[1] lighthouse")
    assert emil.said == []
