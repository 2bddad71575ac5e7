"""`oneway`: the commands, and what is common to them."""

import io
import sys
from typing import Annotated, Any

import typer

from oneway import __version__
from oneway.cli import (
    attack,
    audit,
    certify,
    codebook,
    defend,
    demo,
    doctor,
    export,
    leaderboard,
    playground,
    report,
    reproduce,
    results,
    score,
    serve,
    train,
)
from oneway.cli.common import errors_as_exits
from oneway.cli.completion import NamesAttackers, ShowsExamples


class Application(typer.Typer):
    """The commands, on a terminal or pipe of any encoding."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; print a question mark for what the output's encoding does not have.

        Tables hold characters that ASCII or a Windows code page lacks, and a file's name may be
        no text at all: a report must not end in the middle because of them. Python itself sees to
        it for standard error.
        """
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        try:
            with errors_as_exits():  # help and usage are written outside of any command
                return super().__call__(*args, **kwargs)
        except typer.Exit as error:
            sys.exit(error.exit_code)


app = Application(
    name="oneway",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # locals hold queries
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oneway {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Let the label out, keep the input in.

    oneway changes a classifier's scores before release, so that they cannot be inverted into the
    input, keeps the predicted label, and measures what still leaks.

    Exit codes: 0 done; 1 done, but a promise or a required gap was missed, or an audit raised a
    flag that your own settings do not explain; 2 anything else that went wrong.
    """


app.command(cls=ShowsExamples)(demo.demo)
app.command(cls=ShowsExamples)(doctor.doctor)
app.command(cls=ShowsExamples)(playground.playground)
app.add_typer(train.app, name="train")
app.command(cls=ShowsExamples)(score.score)
app.command(cls=ShowsExamples)(defend.defend)
app.command(cls=ShowsExamples)(codebook.codebook)
app.command(cls=ShowsExamples)(certify.certify)
app.command(cls=ShowsExamples)(codebook.choose)
app.command(cls=ShowsExamples)(export.export)
app.command(cls=NamesAttackers)(audit.audit)
app.command(cls=ShowsExamples)(attack.attack)
app.command(cls=ShowsExamples)(reproduce.reproduce)
app.command(cls=ShowsExamples)(leaderboard.leaderboard)
app.command(cls=ShowsExamples)(results.results)
app.command(cls=ShowsExamples)(report.report)
app.command(cls=ShowsExamples)(serve.serve)
