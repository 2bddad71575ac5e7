"""Links of the README and others lead somewhere; `tests/docs` runs its blocks."""

import re
from pathlib import Path

from laws import looped

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@looped("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_relative_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_no_placeholder_is_left():
    assert "@@" not in README
