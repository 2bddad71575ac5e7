"""Names that shells complete. They are read from files: an import of torch would take seconds."""

import ast
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

PACKAGE = Path(__file__).parents[1]


def defense_names() -> list[str]:
    """Return the registered defenses, without test signals."""
    source = (PACKAGE / "defenses" / "registry.py").read_text(encoding="utf-8")
    registry = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "DEFENSES"
    )
    keys = registry.keys if isinstance(registry, ast.Dict) else []
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def release_names(context: typer.Context) -> list[str]:
    """Return the rows of the experiment that the command line names so far."""
    return _typed(row["name"] for spec in _specs(context) for row in spec.get("releases", ()))


def preset_names(context: typer.Context) -> list[str]:
    """Return the presets of the experiment that the command line names so far."""
    return _typed(name for spec in _specs(context) for name in spec.get("presets", ()))


def names(*known: str) -> Callable[[], list[str]]:
    """Return what completes names of an option that takes other values, too."""
    return lambda: list(known)


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
