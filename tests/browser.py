"""The system's Chromium, and what a page says and asks for while it is open."""

import os
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOCAL = ("file:", "data:", "blob:")
NARROW = 400  # pixels
WIDE = 1280


@contextmanager
def chromium():
    """Yield a browser; where none is installed, skip, but not in CI."""
    if PATH is None:
        assert "CI" not in os.environ, "no chromium is installed, and CI tests the pages in one"
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=PATH, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def tab(browser, address, said, width=WIDE):
    """A tab with a page, which adds its complaints, and the requests that leave the disk, to `said`."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda _: said.append("a script of a text has run"))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.on("request", lambda request: request.url.startswith(LOCAL) or said.append(request.url))
    page.goto(address)
    return page
