"""Exit codes: 1 means a missed promise and nothing else; 2 all that failed, with a message."""

import errno
import io
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from laws import looped
from oneway.cli.common import INTERRUPTED, NOBODY_READS, REFUSED, command
from oneway.cli.main import app
from oneway.errors import InvalidOptionError

SECRET = "a value of a query"


def run(raised, *, exit_code):
    """Run a command that raises; return what it printed on standard error."""
    app = typer.Typer()

    @app.command()
    @command
    def broken(times: Annotated[int, typer.Option()] = 1) -> None:
        if times:
            raise raised

    result = CliRunner().invoke(app)
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit | None)
    assert result.stdout == ""
    return result.stderr


@looped(
    "kind",
    [
        ValueError,
        KeyError,
        RuntimeError,
        RecursionError,
        AssertionError,
        UnicodeError,
        StopIteration,
    ],
)
def test_an_unexpected_error_is_named_with_its_place_and_never_quoted(kind):
    printed = run(kind(SECRET), exit_code=2)
    assert f"unexpected {kind.__name__} at " in printed
    assert f"{__file__}, line " in printed
    assert "common.py, line " in printed
    assert "oneway doctor --json" in printed
    assert SECRET not in printed
    assert "Traceback" not in printed


def test_developers_get_the_traceback_if_they_ask_for_it(monkeypatch):
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("ONEWAY_TRACEBACK", value)
        printed = run(ValueError(SECRET), exit_code=2)
        assert ("Traceback" in printed, SECRET in printed) == (shown, shown)


def test_a_failed_call_of_the_system_is_told_in_its_own_words():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "the system says: No space left on device (at " in run(full, exit_code=2)
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/some/file")
    assert "the system says: Permission denied: /some/file" in run(denied, exit_code=2)
    # What other packages raise under that name has a text of their own.
    assert SECRET not in run(OSError(SECRET), exit_code=2)


def test_memory_that_runs_out_is_told_with_the_remedy():
    printed = run(MemoryError(SECRET), exit_code=2)
    assert "memory ran out at " in printed
    assert "fewer or smaller queries" in printed
    assert SECRET not in printed


def test_refusals_interrupts_and_codes_of_commands_stay_what_they_are():
    assert run(InvalidOptionError("say it"), exit_code=2) == "error: say it\n"
    assert "interrupted" in run(KeyboardInterrupt(), exit_code=INTERRUPTED)
    for code in (0, 1, 3):
        assert run(typer.Exit(code), exit_code=code) == ""
    assert run(SystemExit(3), exit_code=3) == ""


def test_where_nobody_reads_on_a_command_ends_quietly():
    assert run(BrokenPipeError(errno.EPIPE, "Broken pipe"), exit_code=NOBODY_READS) == ""
    ended = SystemExit(1)  # as rich ends a process
    ended.__context__ = BrokenPipeError()
    assert run(ended, exit_code=NOBODY_READS) == ""


def test_a_wrong_usage_exits_with_2(oneway):
    for words, printed in (
        (["defned"], "No such command"),
        (["defend", "--nothing"], "No such option"),
        (["defend"], "Missing argument"),
        (["demo", "--data-root"], "requires an argument"),
    ):
        result = oneway(*words)
        assert (result.exit_code, printed in result.stderr) == (2, True), words
    script = [sys.executable, "-m", "oneway.cli", "defned"]
    ended = subprocess.run(script, capture_output=True, check=False)  # noqa: S603  our own script
    assert (ended.returncode, b"Usage: oneway " in ended.stderr) == (2, True)


CLOSED = """
import sys
import pytest
import typer
from rich.console import Console
from oneway.cli.common import command

@command
def talk(kind: str) -> None:
    for _ in range(10000):
        (typer.echo if kind == "typer" else Console().print)("words " * 20)

typer.run(talk)
"""


@looped("kind", ["typer", "rich"])
def test_a_command_into_head_ends_quietly(kind):
    with subprocess.Popen(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", CLOSED, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"words")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == NOBODY_READS


@looped(
    ("error", "exit_code"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), NOBODY_READS),
        (OSError(errno.ENOSPC, "No space left on device"), REFUSED),
    ],
)
def test_help_that_cannot_be_written_ends_as_a_command_does(error, exit_code, monkeypatch, capsys):
    class Unwritable(io.StringIO):
        def write(self, _):
            raise error

    monkeypatch.setattr(sys, "stdout", Unwritable())
    for words in (["audit", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            app(words)
        assert ended.value.code == exit_code
        assert ("No space left" in capsys.readouterr().err) == (exit_code == REFUSED)
