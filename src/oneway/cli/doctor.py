"""`oneway doctor`: what is installed, whether it works, and how to get what is missing."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway import __version__
from oneway.cli.common import CACHE, command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from oneway.installation import Diagnosis, Extra, Folder

STYLES = {"ready": "green", "missing": "dim", "incomplete": "yellow", "broken": "bold red"}


@command
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder for trained networks, to look at.")] = CACHE,
) -> None:
    """Say what is installed, whether it works, and how to get what is missing.

    Imports every package that oneway may use, in a process of its own, and holds its version
    against the range that oneway was tested with. Nothing is changed, and nothing of the
    environment's variables is printed.

    Exits 1 if the core does not work, or if something that is installed is broken. An extra that
    is not installed is none of this.

    For example:

        oneway doctor

        oneway doctor --json > state.json
    """
    from oneway.installation import diagnose

    found = diagnose(__version__, {"trained networks": cache})
    if json:
        typer.echo(json_module.dumps(found.as_json(), indent=2))
    else:
        from rich.console import Console

        _print(found, Console(highlight=False))
    raise typer.Exit(0 if found.works else 1)


def _print(found: "Diagnosis", console: "Console") -> None:
    from rich.markup import escape

    facts = found.as_json()
    console.print(
        f"[bold]oneway {facts['oneway']}[/]  Python {facts['python']}  "
        f"{escape(facts['platform'])}\n{escape(_device(found))}\n"
    )
    core = _table("Core: always needed", "package", "installed", "wanted", "state")
    for one in found.core:
        state = "broken" if one.version is None or found.faults_of(one) else "ready"
        style = STYLES[state]
        core.add_row(one.name, one.version or "-", one.wanted, f"[{style}]{state}[/]")
    console.print(core)
    console.print()

    extras = _table("Extras: add what you need", "extra", "state", "what for, and its packages")
    for extra in found.extras:
        state = found.state_of(extra)
        lines = [escape(extra.purpose.replace("`", ""))]
        lines += [f"[dim]{escape(line)}[/]" for line in _packages(extra)]
        if state in ("missing", "incomplete"):
            lines.append(f"[cyan]{escape(extra.command)}[/]")
        extras.add_row(extra.name, f"[{STYLES[state]}]{state}[/]", "\n".join(lines))
    console.print(extras)
    console.print()

    for folder in found.folders:
        console.print(escape(_folder(folder)), soft_wrap=True)
    console.print(f"browser: {escape(found.browser or 'none found')}\n", soft_wrap=True)

    for finding in sorted(found.findings, key=lambda one: not one.broken):
        style, word = ("bold red", "broken") if finding.broken else ("yellow", "note")
        console.print(f"[{style}]{word}:[/] {escape(f'{finding.what} {finding.remedy}')}")
    console.print(
        "[green]Everything that is installed works.[/]"
        if found.works
        else "[bold red]Something that is installed does not work.[/]"
    )


def _table(title: str, *headings: str) -> "Table":
    from rich.table import Table

    return Table(
        *headings, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False
    )


def _device(found: "Diagnosis") -> str:
    if not found.torch:
        return "torch does not work: see below"
    threads = found.torch["threads"]
    where = ", ".join(found.torch["gpus"]) or f"the CPU, {threads} thread{'s'[: threads != 1]}"
    return f"torch {found.torch['version']} computes on {where}"


def _packages(extra: "Extra") -> list[str]:
    """Name an extra's packages; those that others bring only where they are missing."""
    own = [one for one in extra.packages if one.through is None]
    there = [f"{one.name} {one.version}" for one in own if one.version is not None]
    missing = [one.name + (f" (for {one.through})" if one.through else "") for one in extra.missing]
    lines = [", ".join(there)] if there else []
    return [*lines, f"missing: {', '.join(missing)}"] if missing else lines


def _folder(folder: "Folder") -> str:
    size = (
        "not there yet"
        if folder.size is None
        else f"{folder.size / 1e6:.1f} MB in {folder.files} files"
    )
    return f"{folder.purpose}: {folder.path} ({size}{'' if folder.writable else ', not writable'})"
