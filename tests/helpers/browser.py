"""Finds the browser that tests open."""

import os
import shutil

import pytest

REQUIRED = "CAUREID_REQUIRE_BROWSER"  # set where a missing browser is an error
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser():
    """Path of a browser; without any the test is skipped, or fails where one is required."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = f"no browser is installed (looked for {', '.join(BROWSERS)})"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{message}, and {REQUIRED} is set")
        pytest.skip(message)
    return found
