"""`oneway doctor`: show what is installed, whether it works, and how to get what is missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from oneway import __version__
from oneway.cli.common import CACHE, AsJson, command, print_json

COLORS = {"ready": "green", "incomplete": "yellow", "note": "yellow", "broken": "red"}


@command
def doctor(
    cache: Annotated[Path, typer.Option(help="Folder for trained networks to measure.")] = CACHE,
    every: Annotated[
        bool, typer.Option("--imports", help="Import every installed package that oneway may use.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, whether it works, and how to get what is missing.

    Imports oneway and torch in another process, releases a row of scores, and compares the version
    of every package with the range that oneway accepts. With --imports, imports each package, too,
    each in another process, which takes seconds of CPU for each. Changes nothing itself (ART writes
    a folder .art into the home directory when it is imported), and prints no environment variable.

    Exits 2 if the core does not work, or if an installed package is broken. A missing extra is no
    fault.

    For example:

        oneway doctor

        oneway doctor --imports --json > state.json
    """
    from oneway.cli.diagnosis import diagnose

    diagnosis = diagnose(__version__, cache, every=every)
    if as_json:
        print_json(diagnosis)
    else:
        for line in _lines(diagnosis):
            typer.echo(line)
    raise typer.Exit(0 if diagnosis["works"] else 2)


def _lines(diagnosis: dict[str, Any]) -> Iterator[str]:
    """Yield the diagnosis as lines of text."""
    yield f"oneway {diagnosis['oneway']}  Python {diagnosis['python']}  {diagnosis['platform']}"
    torch = diagnosis["torch"]
    if torch:
        threads = f"the CPU, {torch['threads']} thread{'s'[: torch['threads'] != 1]}"
        yield f"torch {torch['version']} computes on {', '.join(torch['gpus']) or threads}"
    else:
        yield "torch does not work: see below"
    yield "\nCore: always needed"
    yield f"{'package':<15} {'installed':<12} {'wanted':<8} state"
    for package in diagnosis["core"]:
        state = "ready" if package["version"] and not package["faults"] else "broken"
        version = package["version"] or "-"
        yield f"{package['name']:<15} {version:<12} {package['wanted']:<8} {_colored(state)}"
    yield "\nExtras: add what you need"
    for extra in diagnosis["extras"]:
        state, purpose = extra["state"], extra["purpose"].replace("`", "")
        yield f"{extra['name']:<11} {_colored(state)}{' ' * (11 - len(state))}{purpose}"
        yield from (f"{'':<23}{line}" for line in _packages(extra))
    yield ""
    for folder in diagnosis["folders"]:
        size = "not there yet"
        if folder["size"] is not None:
            size = f"{folder['size'] / 1e6:.1f} MB in {folder['files']} files"
        size += "" if folder["writable"] else ", not writable"
        yield f"{folder['purpose']}: {folder['path']} ({size})"
    yield f"browser: {diagnosis['browser'] or 'none found'}\n"
    for finding in sorted(diagnosis["findings"], key=lambda finding: not finding["broken"]):
        word = _colored("broken" if finding["broken"] else "note")
        yield f"{word}: {finding['what']} {finding['remedy']}"
    works = "Everything that was imported works."
    yield works if diagnosis["works"] else "Something that is installed does not work."


def _packages(extra: dict[str, Any]) -> Iterator[str]:
    """Yield an extra's packages, its missing packages, and the command that installs them."""
    packages = extra["packages"]
    direct = [each for each in packages if each["through"] is None and each["version"]]
    if direct:
        yield ", ".join(f"{each['name']} {each['version']}" for each in direct)
    missing = [
        each["name"] + (f" (for {each['through']})" if each["through"] else "")
        for each in packages
        if each["version"] is None
    ]
    if missing:
        yield f"missing: {', '.join(missing)}"
    if extra["state"] in ("missing", "incomplete"):
        yield extra["install"]


def _colored(word: str) -> str:
    return typer.style(word, fg=COLORS.get(word))
