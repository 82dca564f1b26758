"""The system's Chromium, and what a page says and asks for while it is open."""

import os
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOCAL = ("file:", "data:", "blob:")


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


def note_requests_elsewhere(page, found):
    """Have each request of a page that leaves the disk added to a list."""
    page.on("request", lambda request: request.url.startswith(LOCAL) or found.append(request.url))
