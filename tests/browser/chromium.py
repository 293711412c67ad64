"""A real Chromium, and what is done on the studio's pages again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

PROGRAMS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
SECONDS = 120.0
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of this machine; playwright's own would have to be fetched."""
    found = [path for path in PROGRAMS if Path(path).exists()]
    assert found, f"no Chromium at {', '.join(PROGRAMS)}"
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        # its sandbox needs rights that a container seldom gives; the pages are our own
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Somebody at a browser of their own, signed in; every message of a page's console is kept."""

    def __init__(self, browser: Browser, url: str, key: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.context.set_default_timeout(SECONDS * 1000)
        self.page, self.url = self.context.new_page(), url
        self.said: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(f"{url}/")
        self.page.get_by_label("Key").fill(key)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/studio/jobs")

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.said.append(text)

    def go(self, path: str) -> Page:
        """To a page of the studio."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def require_accessible(self) -> None:
        """Let axe look at the page as it is; nothing serious is found, and nothing sticks out to the side."""
        found = Axe().run(self.page, options={"resultTypes": ["violations"]}).response
        serious = [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]
        assert not serious, f"{self.page.url}: {serious}"
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{self.page.url} is {wide} pixels wider than the window"

    def first_paint(self) -> float:
        """Milliseconds from the request to the first contents of the page."""
        return float(
            self.page.evaluate(
                """async () => { for (;;) { const [paint] = performance.getEntriesByName('first-contentful-paint');
                if (paint) return paint.startTime; await new Promise(requestAnimationFrame); } }"""
            )
        )
