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
AXE = """
async colorsAlone => {
  // Texts of the same color, size and weight on the same backgrounds have the same contrast.
  const seen = new Set(), texts = [];
  for (const element of document.body.querySelectorAll("*")) {
    const isText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!(isText || element.matches("input, select, textarea")) || !element.checkVisibility())
      continue;
    const own = getComputedStyle(element);
    const looks = [own.color, own.fill, own.fontSize, own.fontWeight, own.textShadow];
    for (let above = element; above; above = above.parentElement) {
      const style = getComputedStyle(above);
      looks.push(style.backgroundColor, style.backgroundImage, style.opacity, style.position);
    }
    if (!seen.has(looks.join())) texts.push(element);
    seen.add(looks.join());
  }
  const kinds = {resultTypes: ["violations"]}, rule = "color-contrast";
  const found = await axe.run(texts, {...kinds, runOnly: [rule]});
  if (colorsAlone) return found.violations;
  const others = await axe.run({...kinds, rules: {[rule]: {enabled: false}}});
  return [...found.violations, ...others.violations];
}
"""
"""Runs axe: contrast, which takes most of its time, on one text of each look; all else on all."""


def chromium_path() -> str:
    """Return where Chromium is, or skip; where ``ONEWAY_BROWSER`` is ``required``, fail instead."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        told = f"needs a browser: {' or '.join(NAMES)}. On Debian: apt-get install chromium"
        if os.environ.get("ONEWAY_BROWSER") == "required":
            pytest.fail(told)
        pytest.skip(told)
    return found


def axe_violations(page: Any, *, colors_alone: bool = False) -> list[str]:
    """Return what axe finds wrong with a page for people who cannot see it as it is meant.

    Args:
        page: Of Playwright, loaded, in the colors that are to be looked at.
        colors_alone: Whether to look at contrasts alone, which another color scheme may break.

    Returns:
        One line per element: the rule that it breaks, how bad that is, and where it is.
    """
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:160]}"
        for one in page.evaluate(AXE, colors_alone)
        for node in one["nodes"]
    ]


def overflow(page: Any) -> int:
    """Return by how many pixels a page is wider than its window."""
    wider: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return wider
