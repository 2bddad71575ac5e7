"""What docs/playground.md says of the command and of the page is so."""

import json
import re
from pathlib import Path

from invoking import all_commands
from oneway.benchmark import bundled_spec
from oneway.playground.app import HOSTS, MOST_BYTES
from oneway.playground.drawing import BOX, FIELD
from oneway.playground.session import CLEAR, UNSURE
from oneway.playground.settings import SLIDERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "playground.md").read_text(encoding="utf-8")
HTML = (ROOT / "src/oneway/playground/static/index.html").read_text(encoding="utf-8")


def test_options_that_are_named_exist_and_all_are_named():
    named = set(re.findall(r"`(--[a-z-]+)`", PAGE))
    told = all_commands().commands["playground"].params
    assert named == {"--cache", "--port", "--no-open"}
    assert named <= {name for one in told for name in (*one.opts, *one.secondary_opts)}


def test_figures_are_those_of_the_code():
    spec = bundled_spec("playground")
    for figure in (
        f"has {spec.data.auxiliary:,} other digits",
        f"over {spec.data.test:,} test digits",
        f"one of {CLEAR + UNSURE} test digits",
        f"box of {BOX} pixels and centered by its mass in {FIELD} pixels",
        f"smoothed labels ({spec.target.training.label_smoothing})",
        f"trained for {spec.attackers.training.epochs} epochs",
        f"JSON of up to {MOST_BYTES // 1024} KiB",
        " and ".join(HOSTS),
    ):
        assert figure in PAGE.replace("\n", " "), figure


def test_every_defense_has_its_choice_its_words_and_its_sliders():
    for defense, sliders in SLIDERS.items():
        assert f'name="defense" value="{defense}"' in HTML
        section = HTML.split(f'data-defense="{defense}"')[1].split('data-defense="')[0]
        assert re.findall(r'type="range" id="([a-z_]+)"', section) == list(sliders)


def test_the_page_loads_nothing_from_elsewhere():
    folder = ROOT / "src/oneway/playground/static"
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(?m)^\s*//.*$", "", text).replace("data:", ""), file.name
        assert "innerHTML" not in text
        assert not re.search(r"\sstyle=|\son[a-z]+=", text), file.name


def test_links_lead_to_files():
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", PAGE.replace("\n", " ")):
        assert (ROOT / "docs" / link).exists(), link


def test_latencies_are_those_of_the_records():
    lines = (ROOT / "results" / "bench-playground.jsonl").read_text(encoding="utf-8").splitlines()
    first, *records = map(json.loads, lines)
    assert (first["where"], first["changes"]) == ("first answer", 3)
    assert PAGE.count(f"{first['most_ms'] / 1000:.1f} s") == 2
    pages = [record for record in records if record["where"] == "page"]
    assert {(one["defense"], one["slider"]) for one in pages} == {
        (defense, slider) for defense, sliders in SLIDERS.items() for slider in sliders
    }
    for one in pages:
        row = f"| {one['defense']}: {one['slider']} | {one['p50_ms']:.0f} | {one['p99_ms']:.0f} |"
        assert row in PAGE
