"""Outputs that are inputs are refused before any work, by any command and kind of link."""

import os
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import numpy as np
import pytest
import typer

from oneway.cli.main import app
from oneway.cli.paths import Reads, Shares, Writes, refuse_overwriting
from oneway.errors import InvalidOptionError


def _command(
    model: Annotated[str, typer.Argument(), Reads()] = "package:factory",
    images: Annotated[Path | None, typer.Option()] = None,
    records: Annotated[Path | None, typer.Argument(), Reads("*.jsonl")] = None,
    inverter: Annotated[list[Path] | None, typer.Option()] = None,
    data_root: Annotated[Path | None, typer.Option(), Shares()] = None,
    data_path: Annotated[str | None, typer.Option(), Reads(below="data_root")] = None,
    page: Annotated[Path | None, typer.Option(), Writes()] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="File."), Writes()] = None,
    out: Annotated[Path | None, typer.Option(), Writes(("made.npz", "*.jsonl"))] = None,
) -> None:
    """A command with a path of every kind."""


def check(**given):
    refuse_overwriting(_command, given)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder, which is the current one, with a file and links to it."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "made.npz").write_text("content")
    (tmp_path / "deep" / "seed0.jsonl").write_text("content")
    (tmp_path / "soft").symlink_to(tmp_path / "file")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "also").symlink_to(tmp_path / "deep")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["file", "./file", "deep/../file", "soft", "hard", "also/../file"])
def test_an_output_that_is_an_input_is_refused_by_any_of_its_names(there, name):
    for path in (Path(name), there / name):
        for given, flag in (
            ({"images": path}, "--images"),
            ({"model": str(path)}, "MODEL"),
            ({"inverter": [there / "other", path]}, "--inverter"),
            ({"data_path": name, "data_root": there}, "--data-path"),
            ({"data_path": str(there / name)}, "--data-path"),
        ):
            with pytest.raises(InvalidOptionError, match=f"--json would overwrite .*{flag} reads"):
                check(json_out=Path("file"), **given)
    check(json_out=Path("other"), images=Path(name), model=name)
    check(json_out=Path("other"), model="https://example.org/" + "deep" * 99)


def test_an_input_in_the_folder_of_the_output_is_refused_if_it_has_a_written_name(there):
    for folder in ("deep", "also"):
        for name in ("made.npz", "seed0.jsonl"):
            with pytest.raises(InvalidOptionError, match=f"--out would overwrite .*{name}"):
                check(out=Path(folder), images=there / "deep" / name)
        check(out=Path(folder), images=there / "deep" / "other.npz")
    check(out=there, images=there / "deep" / "made.npz")


def test_an_output_among_the_files_of_an_input_folder_is_refused(there):
    for path in (there / "deep" / "new.npz", Path("also/made.npz")):
        with pytest.raises(InvalidOptionError, match=r"--page would overwrite .*--images reads"):
            check(page=path, images=there / "deep")
    with pytest.raises(InvalidOptionError, match="--out would overwrite"):
        check(out=Path("also"), images=there / "deep")
    with pytest.raises(InvalidOptionError, match=r"--page would overwrite .*RECORDS reads"):
        check(page=there / "deep" / "seed0.jsonl", records=Path("deep"))
    check(page=there / "deep" / "page.html", records=Path("deep"))
    check(page=there / "deep" / "page.html", data_root=Path("deep"))


def test_two_outputs_of_one_name_are_refused(there):
    with pytest.raises(InvalidOptionError, match="--page and --json would both write"):
        check(page=Path("new"), json_out=there / "deep" / ".." / "new")


@pytest.mark.usefixtures("there")
def test_an_output_that_cannot_be_made_is_refused(monkeypatch):
    for given, text in (
        ({"page": Path("deep")}, "--page must be a file"),
        ({"page": Path(os.devnull)}, "--page must be a file"),
        ({"out": Path("file")}, "--out must be a folder"),
        ({"page": Path("file/page.html")}, "--page must lie in a folder, but .*file is none"),
        ({"out": Path("file/deep/er")}, "--out must lie in a folder"),
        ({"data_root": Path("file")}, "--data-root must be a folder"),
    ):
        with pytest.raises(InvalidOptionError, match=text):
            check(**given)
    check(page=Path("new/er/page.html"), out=Path("new/folder"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    for given in ({"page": Path("new/page.html")}, {"out": Path("deep")}):
        with pytest.raises(InvalidOptionError, match="nothing can be written to"):
            check(**given)


def commands():
    """Yield every command's function by its name."""
    groups = [("", app), *((group.name, group.typer_instance) for group in app.registered_groups)]
    for group, commands_of in groups:
        for info in commands_of.registered_commands:
            yield f"{group} {info.callback.__name__}".strip(), info.callback


OUTPUTS = {"out", "figure", "page", "splits"}
INPUTS = {"classes", "model", "guarded", "source", "what", "data_path"}
"""Parameters that are text, and may name a file."""


def test_every_path_of_every_command_says_whether_it_is_written():
    seen = set()
    for name, function in commands():
        for parameter, hint in get_type_hints(function, include_extras=True).items():
            marks = {type(mark) for mark in getattr(hint, "__metadata__", ())}
            if parameter in OUTPUTS:
                assert Writes in marks, (name, parameter)
            elif parameter in ("cache", "data_root") and name != "doctor":
                assert Shares in marks, (name, parameter)
            elif parameter in INPUTS and name != "serve":  # which writes nothing
                assert Reads in marks or Path in get_args(get_args(hint)[0]), (name, parameter)
            else:
                assert Writes not in marks, (name, parameter)
            seen.add(parameter)
    assert seen > OUTPUTS | INPUTS


def test_a_command_that_would_overwrite_its_input_leaves_it_as_it_is(oneway, tmp_path):
    scores, images = tmp_path / "same.npy", tmp_path / "images"
    np.save(scores, np.full((4, 3), 1 / 3))
    images.mkdir()
    before = scores.read_bytes()
    for words in (
        ("defend", scores, "--outputs", "confidences", "--defense", "rounding", "--out", scores),
        ("train", "inverter", scores, "--out", scores),
        ("codebook", scores, "--out", scores),
        ("certify", tmp_path / "guard", scores, "--page", scores),
        ("export", scores, "--out", scores),
        ("attack", scores, tmp_path / "test.npz", "--out", scores),
        ("attack", tmp_path / "aux.npz", scores, "--figure", scores),
        ("report", scores, "--out", scores),
        ("audit", scores, "--attacker-data", images, "--queries", images, "--out", images),
    ):
        result = oneway(*words)
        assert (result.exit_code, "would overwrite" in result.stderr) == (2, True), words
        assert scores.read_bytes() == before
    assert list(images.iterdir()) == []
