"""docs/serving.md: its tables are the settings' and the records'; what it names exists."""

import json
import os
import re
from pathlib import Path

from typer.main import get_command

from laws import looped
from oneway.cli.main import app
from oneway.serving import ServingSettings
from registry_pages import put

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"


def settings_table() -> str:
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in ServingSettings.model_fields.items():
        default = "" if field.default is None else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def figures_table() -> str:
    """Return the table of the stored load test."""
    path = ROOT / "results" / "bench-serving.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bare = records[0]
    rows = [
        "| guard | queries a second | of unguarded | CPU ms a query | CPU, unguarded / guarded | "
        "p50, ms | p99, ms | label_changes | leaks | memory, MiB |",
        "| --- " * 10 + "|",
    ]
    for one in records:
        cells = [
            one["guard"],
            f"{one['queries_per_second']:.0f}",
            f"{one['of_unguarded']:.2f}",
            f"{one['cpu_ms_per_query']:.2f}",
            f"{bare['cpu_ms_per_query'] / one['cpu_ms_per_query']:.2f}",
            f"{one['p50_ms']:.0f}",
            f"{one['p99_ms']:.0f}",
            str(one["label_changes"]),
            str(one["leaks"]),
            f"{one['memory_first_mib']:.0f} to {one['memory_last_mib']:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_settings_and_figures_of_the_page_are_all_there_are():
    """With ONEWAY_WRITE_DOCS=1 they are written."""
    page = put(PAGE, "settings", f"{settings_table()}\n")
    page = put(page, "figures", f"{figures_table()}\n")
    if WRITE:
        (ROOT / "docs" / "serving.md").write_text(page, encoding="utf-8")
    else:
        assert page == PAGE, "run with ONEWAY_WRITE_DOCS=1"


def test_settings_and_options_that_the_page_names_exist():
    options = {name for option in get_command(app).commands["serve"].params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named - {"--cacert"} <= options
    assert options - named <= {
        "--help", "--model-option", "--probe", "--device", "model",
    }  # fmt: skip
    for name in re.findall(
        r"--setting (\w+)=|`((?:max|timeout|shutdown|upstream|batch)_\w+)", PAGE
    ):
        assert (name[0] or name[1]) in ServingSettings.model_fields


@looped("page", ["serving.md", "security.md"])
def test_links_lead_to_files(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
