"""What goes with a release: one version everywhere, a changelog and a citation in their forms."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import jsonschema
import pytest
import yaml

import oneway
from built import ROOT
from laws import looped

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SEMANTIC = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?"
PAGES = ["CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md"]


def releases(text: str) -> list[str]:
    """Return the titles of a changelog's releases; refuse one that breaks Keep a Changelog's form.

    https://keepachangelog.com/en/1.1.0/: Unreleased first, then versions with dates, newest first;
    below them only the six kinds of change, each with entries.
    """
    assert text.startswith("# Changelog\n")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[0] == "Unreleased"
    dated = [re.fullmatch(rf"({SEMANTIC}) - (\d{{4}}-\d{{2}}-\d{{2}})", one) for one in titles[1:]]
    assert all(dated), titles
    versions = [tuple(map(int, one[1].split("-")[0].split("."))) for one in dated if one]
    assert versions == sorted(versions, reverse=True)
    assert len(set(versions)) == len(versions)
    for part in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
        assert len(set(kinds)) == len(kinds)
        for body in part.split("\n### ")[1:]:
            lines = body.split("\n", 1)[1].strip().splitlines()
            assert lines
            assert all(line.startswith(("- ", "  ")) for line in lines), lines
    return titles


def test_the_changelog_has_its_form_and_an_unreleased_part():
    assert releases(CHANGELOG)


@looped(
    "broken",
    [
        "# Changelog\n\n## 0.1.0 - 2026-01-01\n\n### Added\n\n- one\n",
        "# Changelog\n\n## Unreleased\n\n### News\n\n- one\n",
        "# Changelog\n\n## Unreleased\n\n### Added\n\none\n",
        "# Changelog\n\n## Unreleased\n\n## 0.1.0\n\n### Added\n\n- one\n",
        "# Changelog\n\n## Unreleased\n\n## 0.1.0 - 2026-01-01\n\n## 0.2.0 - 2026-02-01\n",
    ],
)
def test_a_changelog_without_its_form_is_refused(broken):
    with pytest.raises(AssertionError):
        releases(broken)


def test_the_version_is_one():
    assert re.fullmatch(SEMANTIC, oneway.__version__)
    assert CITATION["version"] == oneway.__version__
    released = [title.split(" - ")[0] for title in releases(CHANGELOG)[1:]]
    # Between releases the code has the next version, and its changes stand under Unreleased.
    number = tuple(map(int, oneway.__version__.split("-")[0].split(".")))
    assert all(tuple(map(int, one.split("-")[0].split("."))) <= number for one in released)
    assert ("date-released" in CITATION) == (oneway.__version__ in released)


def test_the_citation_says_what_the_project_does():
    assert CITATION["license"] == PROJECT["license"] == "Apache-2.0"
    assert CITATION["title"] == PROJECT["name"]
    assert CITATION["abstract"].rstrip(".") == PROJECT["description"]
    titles = [one["title"] for one in CITATION["references"]]
    assert "Defending Against Model Inversion Attack by Adversarial Examples" in titles


def test_the_citation_is_valid_by_its_published_schema(tmp_path):
    """The schema that cffconvert carries, which itself is too old to be installed beside us."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path]
    done = subprocess.run(  # noqa: S603  our own interpreter
        [*map(str, pip), "cffconvert==2.0.0"], capture_output=True, text=True, check=False
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip("the package index cannot be reached, which has the schema")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        schema = json.loads(file.read("cffconvert/schemas/1.2.0/schema.json"))
    validator = jsonschema.Draft7Validator(schema)
    assert list(validator.iter_errors(CITATION)) == []
    assert list(validator.iter_errors(CITATION | {"authors": []}))


def test_no_address_is_given_that_is_not_there():
    """There is no public one yet; a release that has one adds it here and there."""
    assert "urls" not in PROJECT
    assert not {"url", "repository", "repository-code"} & CITATION.keys()


@looped("page", PAGES)
def test_links_and_their_anchors_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, link


def test_every_make_target_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"test", "check", "format"} <= named <= set(targets)
    for folder in re.findall(r"`((?:src|tests)/[\w/.]+)`", text):
        assert (ROOT / folder).exists(), folder
