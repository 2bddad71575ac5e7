"""docs/hostile.md: its table is that of the tests which bear the mark ``hostile``.

They are read, and not imported: that would take seconds.
"""

import ast
import os
from pathlib import Path
from typing import Any

from registry_pages import put, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hostile.md"
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"


def marks(module: ast.Module) -> list[list[Any]]:
    """Return the arguments of each mark; ``len(FAULTS)`` counts a dictionary of the module."""
    known = {
        target.id: statement.value.keys
        for statement in module.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return [
        [
            eval(compile(ast.Expression(argument), "mark", "eval"), {}, known)  # noqa: S307
            for argument in decorator.args
        ]
        for test in module.body
        if isinstance(test, ast.FunctionDef)
        for decorator in test.decorator_list
        if ast.unparse(decorator).startswith("pytest.mark.hostile(")
        and isinstance(decorator, ast.Call)
    ]


def hostile_table() -> str:
    rows = []
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "@pytest.mark.hostile(" in text:
            link = f"[{path.stem.removeprefix('test_')}](../{path.relative_to(ROOT)})"
            rows += [
                (kind, str(tried), outcome, link) for kind, tried, outcome in marks(ast.parse(text))
            ]
    assert len({row[0] for row in rows}) == len(rows)
    total = sum(int(tried) for _, tried, *_ in rows)
    return table(("attack", "attempts", "outcome", "tests"), rows) + (
        f"\n{len(rows)} kinds, {total} attempts.\n"
    )


def test_the_table_of_attacks_is_that_of_the_tests():
    """With ONEWAY_WRITE_DOCS=1 it is written."""
    text = PAGE.read_text(encoding="utf-8")
    page = put(text, "attacks", hostile_table())
    if WRITE:
        PAGE.write_text(page, encoding="utf-8")
    else:
        assert page == text, "run with ONEWAY_WRITE_DOCS=1"
