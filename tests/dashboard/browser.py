"""A real browser, for tests and for the script that takes the pictures: Debian's Chromium with Playwright.

Nothing of it is fetched: the browser is the one that is installed, and the accessibility rules (axe) come
with a Python package.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW_TO_GET_ONE = "no Chromium is installed: apt install chromium"


def find_chromium() -> str | None:
    """The browser that is installed, if one is."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def open_chromium(path: str) -> Iterator[Browser]:
    """A browser without a window."""
    # Its sandbox refuses to work for root, which is who runs in most containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page, and what the browser had to say about it."""

    def __init__(self, browser: Browser, origin: str, **context: Any) -> None:
        """`context` is Playwright's: `viewport`, `color_scheme`, …"""
        self.origin = origin
        self.complaints: list[str] = []
        self.urls: list[str] = []
        self._context = browser.new_context(locale="en-GB", **context)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.urls.append(request.url))

    def _note_console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def go(self, place: str = "") -> Page:
        """Open a page of the dashboard, such as `#/workers`."""
        self.page.goto(f"{self.origin}/{place}")
        return self.page

    def sign_in(self, key: str) -> Page:
        """Open the dashboard and sign in."""
        page = self.go()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Batches").wait_for()
        return page

    def faults(self) -> list[str]:
        """What axe finds that is serious, or worse."""
        axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(axe)
        found = self.page.evaluate("() => axe.run(document)")
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
            for rule in found["violations"]
            if rule["impact"] in {"serious", "critical"}
            for node in rule["nodes"]
        ]

    def close(self) -> None:
        """Close the page."""
        self._context.close()
