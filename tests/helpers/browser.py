"""A real browser without a window; tests that need one are skipped where there is none."""

import contextlib
import shutil

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_browser():
    """Chromium by playwright: ``with open_browser() as browser``.

    The package playwright is in the extra 'browser'; Chromium is the system's (Debian: chromium).
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, extra 'browser'")
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    if chromium is None:
        pytest.skip("needs Chromium, which the system has to bring: apt-get install chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
