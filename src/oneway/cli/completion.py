"""Names that shells complete and helps list, read from files: importing torch takes seconds."""

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

PACKAGE = Path(__file__).parents[1]


def defense_names() -> list[str]:
    """Return the registered defenses, without test signals."""
    keys = _registry("defenses", "DEFENSES")[1].keys
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def attackers() -> dict[str, str]:
    """Return what each registered attacker of an audit knows, by the attacker's name."""
    imported, table = _registry("attacks", "ATTACKS")
    kinds = [ast.unparse(call.func) for call in ast.walk(table) if isinstance(call, ast.Call)]
    known = [_declared(imported[kind], kind) for kind in kinds]
    return {each["name"]: each["knows"] for each in known if each.get("by_default", True)}


def release_names(context: typer.Context) -> list[str]:
    """Return the rows of the experiment that the command line names so far."""
    return _typed(row["name"] for spec in _specs(context) for row in spec.get("releases", ()))


def preset_names(context: typer.Context) -> list[str]:
    """Return the presets of the experiment that the command line names so far."""
    return _typed(name for spec in _specs(context) for name in spec.get("presets", ()))


def names(*known: str) -> Callable[[], list[str]]:
    """Return what completes names of an option that takes other values, too."""
    return lambda: list(known)


def _registry(package: str, table: str) -> tuple[dict[str, str], Any]:
    """Return the module of each name that a registry imports, and the registry's table."""
    lines = ast.parse((PACKAGE / package / "registry.py").read_text(encoding="utf-8")).body
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    modules = {name.name: str(line.module) for line in imports for name in line.names}
    return modules, next(
        line.value
        for line in lines
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == table
    )


def _declared(module: str, kind: str) -> dict[str, Any]:
    """Return the constants that a class declares, by name, with or without their types."""
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    lines = ast.parse(path.read_text(encoding="utf-8")).body
    [body] = [line.body for line in lines if isinstance(line, ast.ClassDef) and line.name == kind]
    return {
        next(node.id for node in ast.walk(line) if isinstance(node, ast.Name)): line.value.value
        for line in body
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant)
    }


def _specs(context: typer.Context) -> list[dict[str, Any]]:
    """Return the files of an experiment; none if they cannot be read."""
    named = str(context.params.get("what") or context.params.get("spec") or "leaderboard")
    own, folder = Path(named), PACKAGE / "benchmark" / "experiments"
    paths = [own] if own.suffix == ".toml" else sorted(folder.glob(f"{named}*.toml"))
    try:
        texts = [path.read_text(encoding="utf-8") for path in paths]
        return [tomllib.loads(text) for text in texts]
    except (OSError, ValueError):
        return []


def _typed(found: Iterable[str]) -> list[str]:
    """Return names once each, as they are typed: bash inserts them without quotes."""
    each = list(dict.fromkeys(found))
    in_bash = os.environ.get("_ONEWAY_COMPLETE", "").endswith("bash")
    return [re.sub(r"([^\w,.%+-])", r"\\\1", name) for name in each] if in_bash else each


EXAMPLES = "For example:"


class ShowsExamples(TyperCommand):
    """A command whose help ends with its examples as they stand in the code.

    Rich would break long lines and fill them with spaces, so that a copied backslash is followed by
    a space, and not by the end of its line.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the examples."""
        written = self.help or ""
        self.help, _, examples = written.partition(EXAMPLES)
        try:
            super().format_help(ctx, formatter)
        finally:
            self.help = written
        if examples:
            typer.echo(f" {EXAMPLES}\n\n{examples.strip(chr(10))}\n")


class NamesAttackers(ShowsExamples):
    """A command whose help lists every attacker of its audits, and what each knows."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the attackers of the registry."""
        known = "; ".join(f"{name}: {knows}" for name, knows in attackers().items())
        self.epilog = f"Attackers, and what each knows: {known}."
        super().format_help(ctx, formatter)
