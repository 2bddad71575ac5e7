"""`oneway`: the commands, and what is common to them."""

from typing import Annotated

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
    serve,
    train,
)
from oneway.cli.common import NamesAttackers

app = typer.Typer(
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

    Exit codes: 0 done; 1 done, and a promise or a required gap was missed, or a flag was raised; 2
    anything else that went wrong.
    """


app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(playground.playground)
app.add_typer(train.app, name="train")
app.command()(defend.defend)
app.command()(codebook.codebook)
app.command()(certify.certify)
app.command()(codebook.choose)
app.command()(export.export)
app.command(cls=NamesAttackers)(audit.audit)
app.command()(attack.attack)
app.command()(reproduce.reproduce)
app.command()(leaderboard.leaderboard)
app.command()(results.results)
app.command()(report.report)
app.command()(serve.serve)
