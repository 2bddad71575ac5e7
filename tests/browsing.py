"""A real browser for tests: Debian's Chromium, driven by Playwright, and axe for accessibility."""

import os
import shutil
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # a container's root may not have one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COLORS = "color-contrast"
"""The one rule of axe that another color scheme may break."""


def chromium_path() -> str:
    """Return where Chromium is, or skip; where ``ONEWAY_BROWSER`` is ``required``, fail instead."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        told = f"needs a browser: {' or '.join(NAMES)}. On Debian: apt-get install chromium"
        if os.environ.get("ONEWAY_BROWSER") == "required":
            pytest.fail(told)
        pytest.skip(told)
    return found


def axe_violations(page: Any, *rules: str) -> list[str]:
    """Return what axe finds wrong with a page for people who cannot see it as it is meant.

    Args:
        page: Of Playwright, loaded, in the colors that are to be looked at.
        rules: Names of the only rules to hold it against, such as that of colors; all by default.

    Returns:
        One line per element: the rule that it breaks, how bad that is, and where it is.
    """
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:160]}"
        for one in found
        for node in one["nodes"]
    ]


def overflow(page: Any) -> int:
    """Return by how many pixels a page is wider than its window."""
    wider: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return wider
