"""Extras and ranges are read from metadata as an installer would."""

import tomllib
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installation.sites import Site
from oneway.errors import MissingDataError
from oneway.installation import PURPOSES, find_conflicts, find_installed, read_extras

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
NUMBERS = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


class Told(Distribution):
    """A package whose metadata is a text."""

    def __init__(self, told):
        self.told = told

    def read_text(self, filename):
        return self.told if filename == "METADATA" else None

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def by_name(packages):
    return {one.name: one for one in packages}


def test_every_extra_of_this_project_has_its_purpose_in_words():
    """An extra that is new needs a line in PURPOSES, which doctor and docs/install.md show."""
    assert set(PURPOSES) == set(PROJECT["optional-dependencies"])


def test_the_installed_metadata_is_what_is_read():
    core, extras = read_extras(find_installed())
    assert {"numpy", "torch", "typer"} <= set(by_name(core))
    assert {"demo", "serve"} <= {one.name for one in extras}
    assert all(one.version is not None and one.in_range for one in core)


def test_core_and_extras_are_told_apart_and_other_platforms_left_out(site):
    site.install(
        "oneway",
        requires=(
            "alpha>=1",
            "beta; sys_platform == 'nowhere'",
            "gamma<2; extra == 'more'",
            "delta; extra == 'more' and python_version < '3'",
            "epsilon; extra == 'other'",
        ),
        extras=("more", "other"),
    )
    core, extras = read_extras(site.installed)
    assert [one.name for one in core] == ["alpha"]
    assert {one.name: [package.name for package in one.packages] for one in extras} == {
        "more": ["gamma"],
        "other": ["epsilon"],
    }
    assert extras[0].command == "pip install 'oneway[more]'"


def test_what_is_missing_present_and_out_of_range(site):
    requires = ("old>=2; extra == 'x'", "Good_One>=1; extra == 'x'", "gone; extra == 'x'")
    site.install("oneway", requires=requires, extras=("x",))
    site.install("old", "1.9").install("good-one", "1.0")
    _, (extra,) = read_extras(site.installed)
    found = by_name(extra.packages)
    assert (found["old"].version, found["old"].in_range) == ("1.9", False)
    assert (found["Good_One"].version, found["Good_One"].in_range) == ("1.0", True)
    assert [one.name for one in extra.missing] == ["gone"]
    assert found["gone"].in_range


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_range_holds_what_lies_between_its_ends(low, high, version):
    text = [".".join(map(str, one)) for one in (low, high, version)]
    own = Told(f"Name: oneway\nVersion: 1\nRequires-Dist: some>={text[0]},<{text[1]}\n")
    some = Told(f"Name: some\nVersion: {text[2]}\n")
    (package,), _ = read_extras({"oneway": own, "some": some})
    assert package.in_range == (low <= version < high)


def test_a_build_tag_and_a_release_candidate_are_the_version_that_they_are_of(site):
    site.install("oneway", requires=("torch==2.13.0", "numpy>=2"))
    site.install("torch", "2.13.0+cpu").install("numpy", "2.5.0rc1")
    core, _ = read_extras(site.installed)
    assert all(one.in_range for one in core)


def test_an_extra_of_another_package_is_looked_into(site):
    site.install("oneway", requires=("ray[serve]>=2; extra == 'ray'",), extras=("ray",))
    site.install("ray", "2.1", requires=("web; extra == 'serve'", "other"), extras=("serve",))
    _, (extra,) = read_extras(site.installed)
    assert [(one.name, one.through, one.version) for one in extra.packages] == [
        ("ray", None, "2.1"),
        ("web", "ray", None),
    ]


def test_an_extra_may_be_made_of_others_and_of_itself(site):
    requires = ("web; extra == 'serve'", "oneway[serve,page]; extra == 'page'", "js; extra=='page'")
    site.install("oneway", requires=requires, extras=("serve", "page"))
    _, (_, page) = read_extras(site.installed)
    assert sorted(one.name for one in page.packages) == ["js", "web"]
    assert all(one.through is None for one in page.packages)


def test_modules_are_those_of_its_name_or_all_that_it_brings(site):
    site.install("oneway", requires=("pillow", "under-score", "many", "bare"))
    site.install("pillow", modules={"PIL": ""}).install("under-score")
    site.install("many", modules={"many": "", "tests": ""}).install("bare", modules={})
    core, _ = read_extras(site.installed)
    assert {one.name: one.modules for one in core} == {
        "pillow": ("PIL",),
        "under-score": ("under_score",),
        "many": ("many",),
        "bare": (),
    }


def test_the_first_of_two_installations_counts_and_a_nameless_one_does_not(tmp_path):
    first, second = Site(tmp_path / "1"), Site(tmp_path / "2")
    first.install("oneway", "2")
    second.install("oneway", "1").install("other", "3")
    (second.folder / "broken-1.dist-info").mkdir()
    found = find_installed([str(first.folder), str(second.folder)])
    assert {name: one.version for name, one in found.items()} == {"oneway": "2", "other": "3"}


def test_a_folder_that_is_not_installed_is_said_to_be_none(site):
    with pytest.raises(MissingDataError, match=r"not installed.*pip install -e"):
        read_extras(site.installed)


def test_who_wants_another_torch_is_found(site):
    site.install("oneway", requires=("torch>=3",)).install("torch", "2.13.0")
    site.install("torchvision", "0.27", requires=("torch==2.12.0", "pillow"))
    site.install("fine", requires=("torch>=2", "nothing==9"))
    site.install("elsewhere", requires=("torch==1; sys_platform == 'nowhere'",))
    site.install("optional", requires=("torch==1; extra == 'old'",))
    (one,) = find_conflicts(["torch"], site.installed)
    assert (one.package.name, one.wants, one.found) == ("torchvision", "torch==2.12.0", "2.13.0")
    assert one.package.modules == ("torchvision",)


def test_a_package_that_finds_installations_in_its_own_way_changes_nothing(tmp_path):
    """MLflow and others bring it; its metadata refuses to say that a field is missing."""
    pytest.importorskip("importlib_metadata")
    site = Site(tmp_path).install("oneway", "2")
    (site.folder / "broken-1.dist-info").mkdir()
    assert site.installed["oneway"].metadata["Requires-Python"] is None
    assert list(site.installed) == ["oneway"]
