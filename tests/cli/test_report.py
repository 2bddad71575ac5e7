"""`oneway report` draws again what other commands drew, from the files that they left."""

import json
import shutil

import numpy as np
import pytest
import torch

from auditing.audits import ROWS, TESTS, TINY, blobs, quickly
from cli.test_audit import arguments, ran
from cli.test_reproduce import TINY as EXPERIMENT
from oneway.auditing import AuditRecord, AuditSettings
from oneway.evaluation import read_records
from oneway.interface import AuditResult
from report.page.reading import assert_stands_alone

FACTORY = """
from auditing.audits import Scores


def network():
    return Scores()
"""


@pytest.fixture(scope="module")
def audited(oneway, tmp_path_factory):
    """The folder of an audit that a command ran."""
    folder = tmp_path_factory.mktemp("reported")
    (folder / "reported_models.py").write_text(FACTORY, encoding="utf-8")
    for name, rows, seed in (("own", ROWS, 0), ("queries", TESTS, 1)):
        images, labels = blobs(rows, seed)
        np.savez(folder / f"{name}.npz", images=images.numpy(), labels=labels.numpy())
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        patch.syspath_prepend(folder)
        patch.setattr(AuditSettings, "for_rows", classmethod(lambda *_, **__: TINY))
        options = {"out": folder / "out", "cache": folder / "cache", "seeds": None}
        result = oneway(*arguments(folder, "reported_models:network", **options), "--no-controls")
        ran(result, 1)
        assert f"report: {folder / 'out' / 'report.html'}" in result.stdout
        yield folder


@pytest.fixture
def copied(audited, tmp_path):
    shutil.copytree(audited / "out", tmp_path / "out")
    return tmp_path / "out"


def wrote(result, path):
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"wrote {path}" in result.stdout
    return assert_stands_alone(path.read_text(encoding="utf-8"))


def test_an_audit_is_drawn_again_to_the_letter(oneway, copied):
    page = copied / "report.html"
    first = page.read_bytes()
    for source in (copied, copied / "audit.json"):
        page.unlink()
        wrote(oneway("report", source), page)
        assert page.read_bytes() == first


def test_the_page_names_the_command_without_what_was_not_given(audited):
    record = json.loads((audited / "out" / "audit.json").read_text(encoding="utf-8"))
    assert record["command"] == " ".join(
        [
            *("oneway audit reported_models:network --attacker-data", f"{audited}/own.npz"),
            *("--queries", f"{audited}/queries.npz", "--outputs logits --no-controls --out"),
            *(f"{audited}/out", "--cache", f"{audited}/cache"),
        ]
    )


def test_images_are_left_out_if_asked_and_if_they_are_gone(oneway, copied, tmp_path):
    images = wrote(oneway("report", copied), copied / "report.html").every("img")
    assert len(images) > 20
    bare = tmp_path / "bare.html"
    assert wrote(oneway("report", copied, "--no-images", "--out", bare), bare).every("img") == []
    (copied / "pictures.npz").unlink()
    again = tmp_path / "again.html"
    wrote(oneway("report", copied, "--out", again), again)
    assert again.read_bytes() == bare.read_bytes()


def test_an_audit_without_images_writes_none_and_removes_those_of_another(oneway, audited, copied):
    options = {"out": copied, "cache": audited / "cache", "seeds": None}
    flags = ("--no-controls", "--no-images")
    result = oneway(*arguments(audited, "reported_models:network", **options), *flags)
    ran(result, 1)
    assert sorted(path.name for path in copied.iterdir()) == [
        "audit.json",
        "queries.parquet",
        "report.html",
    ]
    assert b"<img" not in (copied / "report.html").read_bytes()


def test_pictures_of_another_audit_are_refused(oneway, copied):
    with np.load(copied / "pictures.npz") as stored:
        fewer = {name: images[:-1] for name, images in stored.items()}
    np.savez(copied / "pictures.npz", **fewer)
    refused(oneway("report", copied), "pictures.npz must hold 11 images by", "--no-images")
    assert oneway("report", copied, "--no-images").exit_code == 0


@pytest.fixture(scope="module")
def reproduced(oneway, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced")
    (folder / "tiny.toml").write_text(EXPERIMENT, encoding="utf-8")
    paths = ("--out", folder / "out", "--cache", folder / "cache")
    result = oneway("reproduce", folder / "tiny.toml", "--seed", 0, "--seed", 1, *paths)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def test_records_are_drawn_again_with_the_images_that_the_cache_holds(oneway, reproduced, tmp_path):
    first = (reproduced / "out" / "tiny.html").read_bytes()
    page, cache = tmp_path / "page.html", ("--cache", reproduced / "cache")
    found = wrote(oneway("report", reproduced / "out", *cache, "--out", page), page)
    assert page.read_bytes() == first
    assert len(found.every("img")) >= 40
    files = sorted((reproduced / "out").glob("*.jsonl"))
    wrote(oneway("report", *files, *cache, "--out", page), page)
    assert page.read_bytes() == first
    without = wrote(oneway("report", *files, *cache, "--no-images", "--out", page), page)
    assert without.every("img") == []
    elsewhere = ("--cache", tmp_path / "empty")
    assert wrote(oneway("report", *files, *elsewhere, "--out", page), page).every("img") == []


@pytest.fixture(scope="module")
def certified(oneway, tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (500, 1, 8, 8), np.uint8)
    logits = generator.normal(0, 2, (500, 10)).astype(np.float32)
    np.savez(folder / "scores.npz", images=images, logits=logits)
    guard = folder / "guard.safetensors"
    result = oneway("codebook", folder / "scores.npz", "--out", guard, "--min-members", 4)
    assert result.exit_code == 0, result.output
    assert f"wrote {folder / 'guard.html'}" in result.stdout
    return folder


def without_command(path):
    page = assert_stands_alone(path.read_text(encoding="utf-8"))
    parts = {one.attributes["id"]: one.text() for one in page.every("section", **{"class": "part"})}
    return {name: text for name, text in parts.items() if name != "how"}


def test_a_certificate_is_drawn_again_from_its_codebook_and_from_its_json(
    oneway, certified, tmp_path
):
    page = tmp_path / "page.html"
    wrote(oneway("report", certified / "guard.safetensors", "--out", page), page)
    assert without_command(page) == without_command(certified / "guard.html")
    found = tmp_path / "found.json"
    told = oneway(
        *("certify", certified / "guard.safetensors", certified / "scores.npz"),
        *("--json", "--page", tmp_path / "certify.html"),
    )
    found.write_text(told.stdout)
    wrote(oneway("report", found), tmp_path / "found.html")
    assert without_command(tmp_path / "found.html") == without_command(tmp_path / "certify.html")


def test_certify_names_its_page_after_what_it_certified_on(oneway, certified):
    result = oneway("certify", certified / "guard.safetensors", certified / "scores.npz")
    assert result.exit_code == 0, result.output
    assert (certified / "guard-scores.html").is_file()
    page = (certified / "guard-scores.html").read_text(encoding="utf-8")
    assert f"oneway certify {certified / 'guard.safetensors'}" in page


def refused(result, *parts):
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = [one for one in result.stderr.splitlines() if one.startswith("error: ")]
    for part in parts:
        assert part in line


def test_what_is_no_source_is_refused_in_one_line(oneway, copied, tmp_path):
    refused(oneway("report", tmp_path / "gone"), "no file or folder", "gone")
    (tmp_path / "empty").mkdir()
    refused(oneway("report", tmp_path / "empty"), "neither an audit.json nor records")
    (tmp_path / "other.json").write_text('{"a": 1}', encoding="utf-8")
    refused(oneway("report", tmp_path / "other.json"), "neither the record of an audit nor")
    (tmp_path / "old.json").write_text('{"inversion": null}', encoding="utf-8")
    refused(oneway("report", tmp_path / "old.json"), "with schema", "Make it again")
    (tmp_path / "nothing.json").write_text(AuditResult(AuditRecord(), 1).to_json(), "utf-8")
    refused(oneway("report", tmp_path / "nothing.json"), "the results of a threat, but holds none")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    refused(oneway("report", tmp_path / "list.json"), "must hold a JSON object")
    (tmp_path / "cut.json").write_text('{"a"', encoding="utf-8")
    refused(oneway("report", tmp_path / "cut.json"), "not JSON")
    (tmp_path / "part.json").write_text('{"bits_measured": 1}', encoding="utf-8")
    refused(oneway("report", tmp_path / "part.json"), "is no certificate")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    refused(oneway("report", tmp_path / "other.jsonl"), "line 1 of", "must be a record")
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    refused(oneway("report", tmp_path / "none.jsonl"), "holds no records")
    again = shutil.copy(copied / "audit.json", tmp_path / "again.json")
    refused(oneway("report", copied, again), "one audit or certificate makes a page")
    refused(oneway("report", copied, "--out", tmp_path / "a.pdf"), "--out must end in .html")
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    refused(oneway("report", tmp_path / "model.onnx"), "SOURCE must end in", "but is")
    torch.save({}, tmp_path / "model.safetensors")
    refused(oneway("report", tmp_path / "model.safetensors"), "model.safetensors")


def test_records_of_one_seed_are_not_to_be_quoted(oneway, reproduced, tmp_path):
    page = tmp_path / "page.html"
    file = reproduced / "out" / "tiny-seed0.jsonl"
    assert len(read_records(file)) == 2
    found = wrote(oneway("report", file, "--out", page), page)
    notices = [one.text() for one in found.every("p") if one.has("notice")]
    assert any("Only 1 seed was run: do not quote" in one for one in notices)
