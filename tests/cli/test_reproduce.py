"""`oneway reproduce` and `oneway results` as a user runs them, on a small experiment file."""

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from oneway.benchmark import FigureRow, FigureSpec, bundled_spec, figure_spec, load_spec, summarise
from oneway.benchmark.entries import ENTRY
from oneway.evaluation import read_records
from oneway.report.audit import HIDDEN
from oneway.report.experiments import summary_table
from planted_records import release_record

ROOT = Path(__file__).parents[2]
TINY = """
name = "tiny"

[data]
name = "digits"
private = 60
auxiliary = 60
test = 40

[target]
width = 2
blocks = 2
[target.training]
epochs = 1

[surrogate]
width = 2
[surrogate.training]
epochs = 1

[attackers]
names = ["label-only", "static"]
input_transforms = ["standardized"]
widths = [2]
[attackers.training]
epochs = 1

[[releases]]
name = "none"
defense = "none"

[[releases]]
name = "noise"
defense = "adversarial-noise"
options = { step_size = 0.4, steps = 2 }

[presets.small.data]
test = 30
"""


def refused(result, *parts):
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.fixture(scope="module")
def tiny(oneway, tmp_path_factory):
    """Two seeds of a small experiment, and the page of their records."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    options = ("--out", folder / "out", "--cache", folder / "cache")
    arguments = ("reproduce", folder / "tiny.toml", "--seed", 0, "--seed", 1, *options)
    first = oneway(*arguments)
    assert first.exit_code == 0, (first.output, first.exception)
    page = oneway("results", folder / "out", "--out", folder / "pages")
    assert page.exit_code == 0, (page.output, page.exception)
    return SimpleNamespace(
        folder=folder, options=options, arguments=arguments, first=first, page=page
    )


def records_in(folder):
    return [record for path in sorted(folder.glob("*.jsonl")) for record in read_records(path)]


def test_each_seed_has_a_file_with_one_record_per_release(tiny):
    names = sorted(path.name for path in (tiny.folder / "out").iterdir())
    assert names == ["tiny-seed0.jsonl", "tiny-seed1.jsonl", "tiny.html"]
    found = [(record.seed, record.release) for record in records_in(tiny.folder / "out")]
    assert found == [(seed, name) for seed in (0, 1) for name in ("none", "noise")]
    assert len(list((tiny.folder / "cache" / "galleries").glob("*.npz"))) == 4


def test_the_table_shows_means_and_intervals_over_the_seeds(tiny):
    lines = [" ".join(line.split()) for line in tiny.first.stdout.splitlines()]
    for cells in summary_table(summarise(records_in(tiny.folder / "out"))).cells():
        assert " ".join(cells) in lines
    assert "Only 2 seeds were run: do not quote" in tiny.first.stdout
    assert "theirs, as printed" not in tiny.first.stdout  # nobody printed this experiment


def test_a_rerun_comes_from_the_cache_and_prints_the_same(oneway, tiny):
    files = [path for path in sorted(tiny.folder.rglob("*")) if path.is_file()]
    assert tiny.folder / "out" / "tiny.html" in files

    def state(path):
        # A page is made again; all else is left as it is.
        return path.read_bytes() if path.suffix == ".html" else path.stat().st_mtime_ns

    before = [(path, state(path)) for path in files]
    again = oneway(*tiny.arguments)
    assert again.exit_code == 0
    assert again.stdout == tiny.first.stdout
    told = json.loads(oneway(*tiny.arguments, "--json").stdout)
    assert told == [record.to_json() for record in records_in(tiny.folder / "out")]
    after = [path for path in sorted(tiny.folder.rglob("*")) if path.is_file()]
    assert [(path, state(path)) for path in after] == before


def test_a_preset_has_files_of_its_own(oneway, tiny):
    options = ("--out", tiny.folder / "preset", "--cache", tiny.folder / "cache")
    result = oneway(
        "reproduce", tiny.folder / "tiny.toml", "--preset", "small", "--seed", 0, *options
    )
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tiny.folder / "preset").iterdir()}
    assert names == {"tiny-small-seed0.jsonl", "tiny-small.html"}
    path = tiny.folder / "preset" / "tiny-small-seed0.jsonl"
    assert {record.queries for record in read_records(path)} == {30}
    assert "Only 1 seed was run: do not quote" in result.stdout


NUMBER = re.compile(r"-?\d+\.\d+")


def test_every_number_of_the_page_is_in_the_records(tiny):
    page = (tiny.folder / "pages" / "results.md").read_text(encoding="utf-8")
    summaries = summarise(records_in(tiny.folder / "out"))
    rows = [line for line in page.splitlines() if line.startswith("| no")]
    assert len(rows) == 4  # two tables of two releases
    for cells in summary_table(summaries).cells():
        assert f"| {' | '.join(cells)} |" in rows
    known = set()
    for summary in summaries:
        # Machines and versions are numbers of the environment.
        known |= set(NUMBER.findall(json.dumps([vars(one) for one in summary.environments])))
        for name, value in summary.values.items():
            for number in (value.mean, value.half_width):
                for scale in (1, 100):
                    known |= {f"{scale * number:.{digits}f}" for digits in range(1, 5)}
                known.add(f"{number:.3g}")
            ratio = summary.values[name].mean / summary.values["baseline clean"].mean
            known |= {f"{ratio:.1f}", f"{ratio:.2f}"}
    # "95 %" has no point in it; 0.9 is what the headline calls hidden.
    assert set(NUMBER.findall(page)) <= known | {f"{HIDDEN:g}"}
    assert "## tiny\n" in page
    assert "- Command: oneway reproduce tiny.toml\n" in page
    assert "- Seeds: 0, 1\n" in page
    assert f"Wrote {tiny.folder / 'pages' / 'results.md'}\n" in tiny.page.stdout
    assert "2 releases, 0 of them not measured by today's attackers" in tiny.page.stdout


def test_the_same_records_make_the_same_page(oneway, tiny):
    before = (tiny.folder / "pages" / "results.md").read_bytes()
    assert oneway("results", tiny.folder / "out", "--out", tiny.folder / "pages").exit_code == 0
    assert (tiny.folder / "pages" / "results.md").read_bytes() == before


@pytest.fixture
def no_training(monkeypatch):
    """Let any training or loading of a data set fail the test."""

    def fail(*_, **__):
        raise AssertionError("trained, though there was something to refuse")

    monkeypatch.setattr("oneway.benchmark.runner.train_target", fail)
    monkeypatch.setattr("oneway.evaluation.attackers.train_inverter", fail)


@pytest.mark.usefixtures("no_training")
class TestRefusedBeforeAnyTraining:
    def test_a_mistake_in_the_file(self, oneway, tmp_path):
        options = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
        for old, new, hint in (
            ("steps = 2", "steps = 2, budget = -1.0", "budget must be positive"),
            ("steps = 2", "stepz = 2", "Did you mean 'steps'?"),
            ("private = 60", "privat = 60", "Did you mean 'private'?"),
            ('"adversarial-noise"', '"adversarial-noize"', "Did you mean 'adversarial-noise'?"),
            ('"label-only", "static"', '"label-only", "statik"', "Did you mean 'static'?"),
            ('name = "digits"', 'name = "digit"', "Did you mean 'digits'?"),
            ("private = 60", "private = 6000", "distinct images"),
            ("epochs = 1", "epochs = 0", "epochs must be a whole number of at least 1"),
            ('name = "tiny"', 'name = "tiny', "is not TOML"),
        ):
            (tmp_path / "mine.toml").write_text(TINY.replace(old, new, 1), encoding="utf-8")
            refused(oneway("reproduce", tmp_path / "mine.toml", *options), hint)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml"], hint

    def test_a_mistake_in_the_command(self, oneway, tmp_path):
        options = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
        for arguments, hint in (
            (("tabel1",), "Did you mean 'table1'?"),
            (("table1", "--preset", "cpuu"), "Did you mean 'cpu'?"),
            (("absent.toml",), "there is no experiment file absent.toml"),
            (("table1", "--device", "tpu9"), "Use 'cpu'"),
            (("table1", "--seed", "-1"), "--seed"),
            (("demo-digits",), "unknown table or figure 'demo-digits'"),
            (("figure1", "--release", "MID, beta 0.02"), "unknown release of figure1"),
            (("figure1", "--executor", "ray"), "Leave --executor out"),
            (("figure1", "--no-images"), "Leave --no-images out"),
        ):
            refused(oneway("reproduce", *arguments, *options), hint)
            assert list(tmp_path.iterdir()) == [], hint

    def test_faces_that_are_not_there_are_named(self, oneway, tmp_path):
        root = tmp_path / "datasets"
        root.mkdir()
        for what in ("table1", "table2", "figure1", "figure2", "background"):
            result = oneway(
                *("reproduce", what, "--data", "faces", "--data-root", root),
                *("--out", tmp_path / "out", "--cache", tmp_path / "cache"),
            )
            refused(result, "glint_celebs24_grey64.npz", str(root))
            assert [path.name for path in tmp_path.iterdir()] == ["datasets"], what

    def test_an_unknown_row_is_refused_with_the_nearest(self, oneway, tiny):
        result = oneway("reproduce", tiny.folder / "tiny.toml", "--release", "noisy")
        refused(result, "Did you mean 'noise'")

    def test_a_folder_without_records_makes_no_page(self, oneway, tmp_path):
        (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
        result = oneway("results", tmp_path, "--out", tmp_path / "pages")
        refused(result, "holds no records", f"oneway reproduce table1 --out {tmp_path}")
        assert not (tmp_path / "pages").exists()

    def test_records_that_are_cut_off_are_named(self, oneway, tmp_path):
        (tmp_path / "tiny-seed0.jsonl").write_text('{"release"', encoding="utf-8")
        refused(oneway("results", tmp_path), "line 1 of", "tiny-seed0.jsonl is not JSON")


@pytest.fixture
def small_figure(monkeypatch, tiny):
    """Let figure1 be drawn from the small experiment."""
    spec = load_spec(tiny.folder / "tiny.toml")
    rows = (
        FigureRow("none", "static", "no defense"),
        FigureRow("noise", "static", "paper's"),
        FigureRow("noise", "averaging", "does not apply"),
    )
    monkeypatch.setattr("oneway.benchmark.bundled_spec", lambda *_: spec)
    figure = FigureSpec("Figure 1", "tiny", rows)
    monkeypatch.setattr("oneway.benchmark.figure_spec", lambda _: figure)


@pytest.mark.usefixtures("small_figure", "no_training")
def test_a_figure_is_drawn_from_the_tables_cells_and_leaves_them_as_they_are(
    oneway, tiny, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        "oneway.report.figure.draw_reconstructions", lambda *given: drawn.append(given)
    )
    before = [path.read_bytes() for path in sorted((tiny.folder / "out").glob("*.jsonl"))]
    result = oneway("reproduce", "figure1", *tiny.options)
    assert result.exit_code == 0, (result.output, result.exception)
    errors = {
        record.release: record.errors["static"]
        for record in read_records(tiny.folder / "out" / "tiny-seed0.jsonl")
    }
    (rows, png, title), (_, pdf, _) = drawn
    assert (png.name, pdf.name) == ("figure1-mnist.png", "figure1-mnist.pdf")
    assert title == "Figure 1, mnist, seed 0"
    assert list(rows) == [
        "truth",
        f"no defense\n{errors['none']:.4f}",
        f"paper's\n{errors['noise']:.4f}",
    ]
    assert all(images.shape == (10, 32, 32) for images in rows.values())
    alone = oneway("reproduce", "figure1", "--release", "noise", *tiny.options)
    assert alone.exit_code == 0, (alone.output, alone.exception)
    assert list(drawn[2][0]) == ["truth", f"paper's\n{errors['noise']:.4f}"]
    assert [p.read_bytes() for p in sorted((tiny.folder / "out").glob("*.jsonl"))] == before


@pytest.mark.usefixtures("small_figure")
def test_a_figure_alone_writes_its_files_and_the_records_it_needs(oneway, tiny, tmp_path):
    options = ("--out", tmp_path, "--cache", tiny.folder / "cache")
    result = oneway("reproduce", "figure1", "--seed", 0, "--seed", 1, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    names = {path.name for path in tmp_path.iterdir()}
    figures = {f"figure1-mnist-seed{n}{end}" for n in (0, 1) for end in (".png", ".pdf")}
    assert names == figures | {"tiny-seed0.jsonl", "tiny-seed1.jsonl", "figure1-mnist.html"}
    for name in figures:
        start = b"\x89PNG" if name.endswith("png") else b"%PDF"
        assert (tmp_path / name).read_bytes().startswith(start)
        assert name in result.stdout


@pytest.mark.usefixtures("no_tables")
def test_a_promise_that_was_broken_exits_1(oneway, tiny, monkeypatch):
    for label_changes, keeps, code in ((0, True, 0), (3, False, 0), (3, True, 1), (0, False, 0)):
        records = [release_record(label_changes=label_changes, keeps_label=keeps)]
        monkeypatch.setattr(
            "oneway.cli.common.run_seed", lambda *_, records=records, **__: (None, records)
        )
        done = oneway("reproduce", tiny.folder / "tiny.toml", "--seed", 0)
        assert done.exit_code == code, (label_changes, keeps)


@pytest.fixture
def no_tables(monkeypatch):
    """Leave the table and the page of a run out."""
    monkeypatch.setattr("oneway.cli.reproduce._print_tables", lambda *_: None)
    monkeypatch.setattr("oneway.cli.reproduce.page_of_records", lambda *_, **__: None)


COMMITTED = sorted((ROOT / "results").glob("*-seed*.jsonl"))


def test_committed_records_are_of_experiments_that_ship():
    @functools.cache
    def shipped(name, preset):
        return {release.name for release in bundled_spec(name, preset or None).releases}

    assert COMMITTED
    for path in COMMITTED:
        for record in read_records(path):
            name, preset = record.experiment, record.preset
            if not name.startswith(ENTRY):
                assert record.release in shipped(name, preset), path
            assert path.stem == "-".join(filter(None, (name, preset, f"seed{record.seed}")))


@pytest.mark.usefixtures("no_tables")
def test_figures_take_one_seed_and_tables_three_by_default(oneway, monkeypatch):
    seeds = []

    def note(spec, *_, **__):
        seeds.append(spec.seed)
        return None, []

    monkeypatch.setattr("oneway.cli.common.run_seed", note)
    monkeypatch.setattr("oneway.cli.reproduce.run_seed", note)
    monkeypatch.setattr("oneway.cli.reproduce._draw", lambda *_: [])
    for what, options, expected in (
        ("table1", (), [0, 1, 2]),
        ("figure1", (), [0]),
        ("table2", ("--seed", 4, "--seed", 3, "--seed", 4), [3, 4]),
        ("figure2", ("--seed", 5), [5]),
    ):
        seeds.clear()
        assert oneway("reproduce", what, *options).exit_code == 0
        assert seeds == expected
    assert figure_spec("figure1").experiment == "table1"


@pytest.mark.usefixtures("no_tables")
def test_a_file_says_its_seed_and_rows_may_be_run_alone(oneway, tiny, monkeypatch):
    asked = []

    def note(spec, *given, drawn=False):
        asked.append((spec.seed, given[-1], drawn))
        return None, []

    monkeypatch.setattr("oneway.cli.common.run_seed", note)
    text = (tiny.folder / "tiny.toml").read_text(encoding="utf-8")
    own = tiny.folder / "own.toml"
    own.write_text(f"seed = 7\n{text}", encoding="utf-8")
    assert oneway("reproduce", own, "--release", "noise").exit_code == 0
    assert asked == [(7, {"noise"}, False)]
