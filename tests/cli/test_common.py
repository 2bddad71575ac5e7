"""The command that a page names can be typed again, and tells nobody's password."""

import shlex
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from laws import looped
from oneway.cli.common import command, command_line


@pytest.fixture
def run():
    """Run a command with one option of each kind; return what it says that it was."""
    app, told = typer.Typer(), []

    @app.callback()
    def root():
        pass

    @app.command()
    def audit(
        context: typer.Context,
        model: str,
        out: Path = Path("here"),
        option: Annotated[list[str] | None, typer.Option()] = None,
        controls: Annotated[bool, typer.Option()] = True,
        no_images: Annotated[bool, typer.Option("--no-images")] = False,
        minutes: float | None = None,
    ) -> None:
        told.append((command_line(context), model, out, option, controls, no_images, minutes))

    def invoke(*words):
        result = CliRunner().invoke(app, ["audit", *words])
        assert result.exit_code == 0, result.output
        return told[-1]

    return invoke


@looped(
    "words",
    [
        ["model.pt"],
        ["a b;c", "--option", "x=1", "--option", "y=two words", "--no-controls"],
        ["model.pt", "--controls", "--no-images", "--minutes", "2.5", "--out", "it's there"],
        ["--out", "here", "model.pt"],
    ],
)
def test_the_line_runs_the_same_again(run, words):
    line, *seen = run(*words)
    again = shlex.split(line)
    assert again[:2] == ["oneway", "audit"]
    assert len(again) == 2 + len(words)
    second, *seen_again = run(*again[2:])
    assert (second, seen_again) == (line, seen)


def test_who_asks_an_address_is_left_out(run):
    line, model, *_ = run("https://me:secret@models.example.org/v2/models/digits")
    assert "secret" in model
    assert line == "oneway audit https://models.example.org/v2/models/digits"


def test_what_is_given_twice_of_a_repeatable_option_counts_once():
    app, told = typer.Typer(), []

    @app.command()
    @command
    def choose(names: list[str], data: Annotated[list[str] | None, typer.Option()] = None) -> None:
        told.append((names, data))

    for words, wanted in (
        ("a b a --data digits --data digits", (["a", "b"], ["digits"])),
        ("a --data b --data a --data b", (["a"], ["b", "a"])),
        ("a", (["a"], None)),
    ):
        assert CliRunner().invoke(app, words.split()).exit_code == 0
        assert told.pop() == wanted
