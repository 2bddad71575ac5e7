"""The demo on a small experiment: what it prints, what it writes, and that it resumes."""

import dataclasses
import json

import pytest

import oneway.benchmark
from auditing.audits import search_little
from oneway.benchmark import bundled_spec
from oneway.benchmark.spec import DataSpec
from oneway.inversion import TrainingSettings
from oneway.targets import TargetTrainingSettings
from report.page.reading import assert_stands_alone


@pytest.fixture
def small_demo(monkeypatch):
    """Shrink the bundled experiment: the same releases and attackers, few images and epochs."""
    spec = bundled_spec("demo-digits")
    settings = TrainingSettings(epochs=1)
    small = dataclasses.replace(
        spec,
        data=DataSpec(name="digits", private=60, auxiliary=120, test=40, calibration=300),
        target=dataclasses.replace(spec.target, width=4, training=TargetTrainingSettings(epochs=1)),
        surrogate=dataclasses.replace(spec.surrogate, width=4, training=settings),
        attackers=dataclasses.replace(
            spec.attackers, widths=(4,), training=settings, most_epochs=1
        ),
    )
    monkeypatch.setattr(oneway.benchmark, "bundled_spec", lambda _: small)
    search_little(monkeypatch)
    return small


def test_demo_prints_the_table_and_writes_records_table_and_figure(
    oneway, small_demo, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    cache = tmp_path / "cache"
    options = ("--out", tmp_path / "out", "--cache", cache)
    result = oneway("demo", *options)
    assert result.exit_code == 0, result.output
    for words in (
        "closed gap G",
        "static error",
        "Baselines",
        "Only 1 seed was run",
        "read only the label",
    ):
        assert words in " ".join(result.stdout.split())
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["release"] for record in records] == [r.name for r in small_demo.releases]
    assert all(record["label_changes"] == 0 for record in records)
    for record in records:
        assert f"| {record['release']} |" in (tmp_path / "out" / "table.md").read_text()
    figure = (tmp_path / "out" / "reconstructions.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    page = assert_stands_alone((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert len(page.every("img")) >= 60
    assert "oneway demo --data digits" in page.text()
    again = tmp_path / "again.html"
    told = oneway("report", tmp_path / "out", "--cache", cache, "--out", again)
    assert told.exit_code == 0, told.output
    assert again.read_bytes() == (tmp_path / "out" / "report.html").read_bytes()

    # Again: every network comes from the cache, and every figure but the clock's is the same.
    # Without images, none are left. With --json, records are all that is printed.
    before = sorted((path, path.stat().st_mtime_ns) for path in cache.rglob("*.safetensors"))
    result = oneway("demo", *options, "--no-images", "--json")
    assert result.exit_code == 0, result.output
    after = sorted((path, path.stat().st_mtime_ns) for path in cache.rglob("*.safetensors"))
    assert after == before
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in lines]
    assert json.loads(result.stdout) == again
    for one, other in zip(records, again, strict=True):
        assert timeless(one) == timeless(other)
    assert "table.md" in result.stderr
    assert "reconstructions.png" not in result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"records.jsonl", "table.md", "report.html"}
    assert "<img" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def timeless(record):
    """Return a record without what the clock decides."""
    clocks = ("milliseconds", "training_seconds", "provenance")
    return {key: value for key, value in record.items() if not key.startswith(clocks)}
