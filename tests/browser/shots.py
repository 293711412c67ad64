"""Pictures of the studio's pages for docs/studio.md, with a real model that is trained for a minute.

python -m tests.browser.shots [FOLDER]
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect
from tests.browser.chromium import PHONE, Person, chromium
from tests.studio import Studio, add_jobs, studio

from luthier.jobs.pages import Page as Part
from luthier.recipe import ModelSettings

FOLDER = Path(__file__).resolve().parents[2] / "docs/images/studio"
WIDTH, HEIGHT = 1200, 860
PATIENCE = 1_200_000
"""Milliseconds; machines are busy with other things, too."""
TOPICS = {
    "reset my password": "Open Settings, then Security, and choose Reset password; the link is good for one hour.",
    "get an invoice": "Every invoice is under Account, then Billing, as a PDF of each month.",
    "cancel my order": "An order can be cancelled for two hours: open Orders and choose Cancel.",
    "return a lamp": "Returns are free for 30 days: print the label under Orders and bring the lamp to any shop.",
    "change my address": "Write the new address under Account, then Addresses, before the parcel leaves us.",
    "track a parcel": "The number in the mail we sent you opens the way of your parcel under Orders.",
}
ASKED = (
    "How do I {}?",
    "I want to {}, please.",
    "Can you help me to {}?",
    "Where can I {}?",
    "Is it possible to {}?",
    "Hello, I have to {} today.",
    "My mother would like to {}.",
    "What must I do to {}?",
    "Tell me how to {}.",
    "I am on my phone and need to {}.",
    "Could somebody {} for me?",
    "A friend asks how to {}.",
)
SYSTEM = "You are the help desk of Lanterna, a shop for lamps."
HANDBOOK = """Lanterna ships on working days before four o'clock.

Lamps of the series Sirius have a guarantee of five years, all others of two.

The shop in Harbour Street 12 is open from ten to six, on Saturdays from ten to two.
"""


def rows() -> bytes:
    """The help desk's answers, with one row twice and one mail address."""
    made = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": asked.format(topic)},
                {"role": "assistant", "content": f"Good day! {answer} Yours, Lanterna."},
            ]
        }
        for asked in ASKED
        for topic, answer in TOPICS.items()
    ]
    made[9] = made[8]
    made[13]["messages"][1]["content"] += " Write to jane.roe@mail-works.net."
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def main(arguments: list[str]) -> int:
    """Train, and take all pictures."""
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as place,
        chromium() as browser,
        studio(Path(place) / "service", Path(ModelSettings().name)) as served,
    ):
        key = served.key("lanterna", "anna")
        someone = {"viewport": {"width": WIDTH, "height": HEIGHT}}
        take_all(Person(browser, served.url, key, **someone), served, Path(place), folder)
        for name, context in (("dark", {**someone, "color_scheme": "dark"}), ("phone", {"viewport": PHONE})):
            take_again(Person(browser, served.url, key, **context), served, folder, name)
    return 0


def take_all(anna: Person, served: Studio, place: Path, folder: Path) -> None:
    """Each page in turn, as somebody would come to it."""
    page = anna.page
    for name, contents, purpose in (
        ("handbook.txt", HANDBOOK.encode(), "Text to find passages in"),
        ("help-desk.jsonl", rows(), "Rows to train on"),
    ):
        (place / name).write_bytes(contents)
        anna.go("/studio/files")
        page.get_by_label("File", exact=True).set_input_files(place / name)
        page.get_by_label("What it holds").select_option(purpose)
        page.get_by_role("button", name="Upload and look at it").click()
        page.wait_for_load_state()
    expect(page.get_by_text("Memory at most")).to_be_visible(timeout=PATIENCE)
    take(page, folder / "new.png", 1560)
    page.get_by_label("Name").fill("help-desk")
    page.get_by_label("Epochs").fill("2")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_text(re.compile(r"Step (9|1\d|2\d) of"))).to_be_visible(timeout=PATIENCE)  # it may be quick
    take(page, folder / "job-running.png", 1100)
    expect(page.locator("#state .status")).to_have_text("succeeded", timeout=PATIENCE)
    page.reload()
    page.locator("iframe.report").scroll_into_view_if_needed()
    expect(page.frame_locator("iframe.report").get_by_role("heading", level=1)).to_be_visible()
    page.screenshot(path=folder / "report.png")
    page.get_by_role("link", name="Try it beside its base").click()
    page.get_by_label("System").fill(SYSTEM)
    page.get_by_label("Question").fill("How long is the guarantee of a Sirius lamp?")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("60")
    page.get_by_label("With passages from").select_option("handbook.txt")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("All answers are there.")).to_be_visible(timeout=PATIENCE)
    take(page, folder / "playground.png", 1300)
    rank(anna, folder)
    file = served.service.files.listed(served.service.tenants.project("lanterna"), Part(), "fine-tune")[0][-1]["id"]
    anna.go(f"/studio/files/{file}?search=lamp")
    page.get_by_role("button", name="Leave line 10 out").click()
    page.get_by_role("link", name="Fix line 4", exact=True).click()
    take(page, folder / "row.png", 720)
    page.get_by_label("user").fill("How do I send a lamp back?")
    page.get_by_role("button", name="Keep these texts").click()
    anna.go(f"/studio/files/{file}")
    take(page, folder / "rows.png", 1300)
    anna.go("/studio/files")
    take(page, folder / "files.png")
    project = served.service.tenants.project("lanterna")
    anna.go("/studio/compare")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare").click()
    take(page, folder / "compare.png", 1700)
    add_jobs(served.service, project, 1000)
    anna.go("/studio/jobs")
    take(page, folder / "jobs.png")


def rank(anna: Person, folder: Path) -> None:
    """Some pairs, and what came of them."""
    page = anna.go("/studio/rankings")
    page.get_by_label("Pairs").fill("6")
    page.get_by_label("Tokens at most").fill("40")
    take(page, folder / "rankings.png", 620)
    page.get_by_role("button", name="Let both answer").click()
    for done in range(6):
        expect(page.get_by_text(f"{done} of 6 rated by you")).to_be_visible()
        expect(page.get_by_role("button", name="A is better")).to_be_visible(timeout=PATIENCE)
        if done == 2:
            take(page, folder / "rank.png")
        good = page.get_by_label("Answer A").inner_text().startswith("Good day")
        page.keyboard.press("1" if good else "2")
    page.get_by_role("link", name="See what came of it").click()
    page.locator("details").first.click()
    take(page, folder / "results.png", 1000)
    page.get_by_role("button", name="Make the job").click()
    expect(page.locator("#state .status")).to_have_text("succeeded", timeout=PATIENCE)


def take_again(person: Person, served: Studio, folder: Path, name: str) -> None:
    """The pages that show the most, in the dark or on a phone."""
    project = served.service.tenants.project("lanterna")
    job = served.service.jobs.models(project)[-1]["job_id"]
    file = served.service.files.listed(project, Part(), "fine-tune")[0][-1]["id"]
    ranking = person.go("/studio/rankings").get_by_role("link", name="Results of").get_attribute("href")
    shown = {
        "jobs": "/studio/jobs",
        "job": f"/studio/jobs/{job}",
        "new": f"/studio/files/{file}/job",
        "results": str(ranking),
        "playground": "/studio/playground",
        "rows": f"/studio/files/{file}",
    }
    for page in ("job", "new", "results") if name == "dark" else ("jobs", "new", "playground", "rows"):
        person.go(shown[page])
        take(person.page, folder / f"{page}-{name}.png", 1300)


def take(page: Page, path: Path, height: int = HEIGHT) -> None:
    """The upper part of a page, as far as it goes."""
    page.evaluate("scrollTo(0, 0)")
    size = page.viewport_size
    assert size is not None
    whole = int(page.evaluate("document.documentElement.scrollHeight"))
    shown = min(height, max(whole, size["height"]))
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": size["width"], "height": shown})
    print(path.name, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
