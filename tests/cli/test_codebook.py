"""Fit, certify, choose and export codebooks as a user does."""

import dataclasses
import inspect
import json
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from auditing.audits import search_little
from oneway.cli import codebook
from oneway.data import read_npz
from oneway.defenses.codebook import CodebookRelease, DecoyOptions
from oneway.errors import CorruptDataError
from oneway.interface.models import read_groups
from oneway.options import options_of
from oneway.releases import release

FEW = ("--min-members", 4)


@pytest.fixture(scope="module", autouse=True)
def quick_attacks():
    """How strong attacks on clean scores are is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        search_little(patch)
        yield


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores and images of 500 queries, more than the pipeline's few."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("scores") / "scores.npz"
    images = generator.integers(0, 256, (500, 1, 32, 32), np.uint8)
    np.savez(path, images=images, logits=generator.normal(0, 2, (500, 10)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def fitted(oneway, scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "guard.safetensors"
    result = oneway("codebook", scores, "--out", path, *FEW)
    assert result.exit_code == 0, result.output
    return path, result.output


def test_the_written_codebook_keeps_labels_and_tells_few_vectors(fitted, scores):
    path, told = fitted
    guard = CodebookRelease.load(path)
    logits = torch.from_numpy(read_npz(scores)["logits"])
    released = release(guard(logits))
    assert torch.equal(released.argmax(-1), logits.argmax(-1))
    assert len(released.unique(dim=0)) <= guard.state.sizes.cells
    assert f"wrote {path}: {guard.state.sizes.cells} vectors for 10 labels" in told
    assert guard.certificate is not None
    assert guard.certificate.held_out.answer == "yes"
    assert guard.certificate.queries == 100  # a fifth
    assert f"{guard.certificate.error.estimate:.4f}" in told
    # An error never stands without those of label and clean scores on the same queries.
    errors = guard.certificate.yardsticks
    assert f"best attack on clean scores {errors.clean.error:.4f}" in " ".join(told.split())
    assert f"given the label alone {errors.label.error:.4f}" in " ".join(told.split())
    # Images are noise here, and nothing hides or reveals them.
    assert errors.least_gap is None
    assert "does not exclude that the release reveals as much as clean" in " ".join(told.split())
    assert "A single query may be reconstructed better" in " ".join(told.split())


def test_a_budget_is_kept_on_what_was_fitted_and_the_impossible_one_is_refused(
    oneway, scores, tmp_path
):
    path = tmp_path / "guard.safetensors"
    options = ("--out", path, "--min-members", 8, "--held-out", 0)
    source = scores
    assert oneway("codebook", source, *options, "--max-bits", 0.2).exit_code == 0
    guard = CodebookRelease.load(path)
    assert guard.certificate.bits_measured <= 0.2
    assert guard.certificate.held_out.answer == "no"
    result = oneway("codebook", source, *options, "--max-l1", 1e-9)
    assert result.exit_code == 2
    assert "no codebook of 8 members keeps within the budget" in result.stderr


def test_a_budget_that_other_queries_break_is_missed(oneway, scores, tmp_path):
    out = tmp_path / "guard.safetensors"
    arguments = ("codebook", scores, "--out", out, "--min-members", 2, "--held-out", 0.5)
    result = oneway(*arguments, "--max-l1", 0.35)
    assert result.exit_code == 1, result.output
    moved = CodebookRelease.load(out).certificate.distortion["l1_probabilities"]["mean"]
    assert moved > 0.35
    assert f"missed: l1_mean is {moved:.4g} on the queries that certify" in result.stderr
    result = oneway(*arguments, "--max-l1", 1.9, "--keep-top5", 0.5)
    assert result.exit_code == 0
    assert "missed" not in result.stderr
    result = oneway(*arguments, "--keep-top5", 0.72)
    kept = CodebookRelease.load(out).certificate.top5_kept
    assert kept < 0.72
    assert result.exit_code == 1
    assert f"missed: top5_kept is {kept:.4g} on the queries that certify" in result.stderr


def test_scores_without_queries_are_fitted_and_no_error_is_certified(oneway, scores, tmp_path):
    np.save(tmp_path / "scores.npy", read_npz(scores)["logits"])
    path = tmp_path / "guard.safetensors"
    path.with_suffix(".fitted").write_text("digests of an earlier fit, of another table")
    scores = (tmp_path / "scores.npy", "--outputs", "logits")
    result = oneway("codebook", *scores, "--out", path, *FEW)
    assert result.exit_code == 0, result.output
    assert "No error is certified" in result.output
    assert not path.with_suffix(".fitted").exists()
    result = oneway("certify", path, *scores, "--require-error", 0.01)
    assert result.exit_code == 2
    assert "Pass --queries" in result.stderr
    result = oneway("choose", *scores, "--max-l1", 1)
    assert result.exit_code == 2
    assert "Pass --queries" in result.stderr


def test_decoys_move_vectors_and_not_cells(oneway, scores, work, tmp_path):
    tables = {}
    surrogate = ("--inverter", work / "s.safetensors", "--decoy-l1", 0.3)
    for name, options in (("plain", ()), ("decoys", surrogate)):
        path = tmp_path / f"{name}.safetensors"
        assert (
            oneway("codebook", scores, "--out", path, "--min-members", 30, *options).exit_code == 0
        )
        tables[name] = CodebookRelease.load(path).state
    plain, moved = tables["plain"], tables["decoys"]
    assert torch.equal(plain.edges, moved.edges)
    assert torch.equal(plain.assignment, moved.assignment)
    assert not torch.allclose(plain.values, moved.values)


def test_certify_measures_other_queries(oneway, fitted, scores):
    result = oneway("certify", path := fitted[0], scores, "--json")
    assert result.exit_code == 0, result.output
    certificate = json.loads(result.stdout)
    assert certificate["queries"] == 500
    assert certificate["yardsticks"]["clean"]["error"] > 0
    assert certificate["table"] == CodebookRelease.load(path).certificate.table


def test_too_few_queries_for_a_certificate_are_refused_with_the_reason(
    oneway, work, fitted, tmp_path
):
    few = tmp_path / "few.npz"
    arrays = read_npz(work / "test.npz")
    np.savez(few, images=arrays["images"][:9], logits=arrays["logits"][:9])
    result = oneway("certify", fitted[0], few)
    assert result.exit_code == 2
    assert "an error needs at least 30 pairs" in result.stderr
    out = tmp_path / "guard.safetensors"
    result = oneway("codebook", work / "auxiliary.npz", "--out", out, *FEW)
    assert result.exit_code == 2
    assert "Pass more queries" in result.stderr
    assert not out.exists()


def test_copies_count_as_traffic_unless_they_are_dropped(oneway, scores, tmp_path):
    arrays = read_npz(scores)
    copies = tmp_path / "copies.npz"
    times = np.concatenate([np.arange(500), np.full(300, 7)])
    np.savez(copies, images=arrays["images"][times], logits=arrays["logits"][times])
    once, more = tmp_path / "once.safetensors", tmp_path / "more.safetensors"
    assert oneway("codebook", scores, "--out", once, "--drop-copies", *FEW).exit_code == 0
    result = oneway("codebook", copies, "--out", more, "--drop-copies", *FEW)
    assert result.exit_code == 0
    first, second = map(CodebookRelease.load, (once, more))
    assert first.state.digest() == second.state.digest()
    # Only what was read differs.
    hashes = ("queries_hash", "scores_hash")
    read = {name: getattr(second.certificate, name) for name in hashes}
    assert all(value != getattr(first.certificate, name) for name, value in read.items())
    assert dataclasses.replace(first.certificate, **read) == second.certificate
    assert "Copies of queries were dropped" in result.output
    result = oneway("codebook", copies, "--out", more, *FEW)
    told, without = (CodebookRelease.load(path).certificate for path in (more, once))
    assert told.queries == 160
    assert told.error.estimate < 0.75 * without.error.estimate
    words = " ".join(result.output.split())
    assert f"the most frequent makes up {100 * told.traffic.commonest:.1f} %" in words
    assert told.traffic.commonest > 0.3


def test_certify_notices_what_was_fitted_by_the_digests_beside_the_codebook(
    oneway, scores, tmp_path
):
    guard, fresh = tmp_path / "guard.safetensors", tmp_path / "fresh.npz"
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_text("k" * 32)
    other.write_text("o" * 32)
    assert oneway("codebook", scores, "--out", guard, *FEW, "--key-file", key).exit_code == 0
    arrays = read_npz(scores)
    np.savez(fresh, images=arrays["images"][:, :, ::-1], logits=arrays["logits"])
    for file, answer in ((scores, "Not held out"), (fresh, "Held out: the codebook was fitted w")):
        result = oneway("certify", guard, file, "--key-file", key, "--require-error", 0.001)
        assert answer in result.output
        assert result.exit_code == (answer == "Not held out")
    assert "missed --require-error" not in result.output
    for options, message in (((), "made with a key"), (("--key-file", other), "another key")):
        result = oneway("certify", guard, fresh, *options)
        assert result.exit_code == 2
        assert message in result.stderr
    digests = guard.with_suffix(".fitted")
    assert digests.stat().st_size < 20_000
    digests.unlink()
    result = oneway("certify", guard, scores, "--write")
    assert "Not checked whether these queries are held out" in result.output
    assert CodebookRelease.load(guard).certificate.held_out.answer == "not checked"
    assert oneway("codebook", scores, "--out", guard, "--min-members", 9).exit_code == 0
    moved = tmp_path / "other.safetensors"
    assert oneway("codebook", scores, "--out", moved, *FEW).exit_code == 0
    moved.with_suffix(".fitted").replace(digests)
    result = oneway("certify", guard, scores)
    assert result.exit_code == 2
    assert "is about another codebook" in " ".join(result.stderr.split())


def test_people_are_counted_split_whole_and_noticed_on_both_sides(oneway, scores, tmp_path):
    guard, people = tmp_path / "guard.safetensors", tmp_path / "people.csv"
    names = [f"person {number % 100}" for number in range(500)]
    people.write_text("groups\n" + "\n".join(names) + "\n")
    result = oneway("codebook", scores, "--out", guard, *FEW, "--groups", people)
    assert result.exit_code == 0, result.output
    told = CodebookRelease.load(guard).certificate
    assert (told.queries, told.traffic.groups) == (100, 20)
    assert told.groups_least >= 4
    assert f"at least {told.groups_least} different groups" in result.output
    texts = tmp_path / "people.npy"
    np.save(texts, np.array(names))
    result = oneway("certify", guard, scores, "--groups", texts)
    assert result.exit_code == 2
    assert "80 of the 100 groups of these queries were fitted" in result.stderr
    np.save(texts, np.arange(500) % 3)
    result = oneway("certify", guard, scores, "--groups", texts, "--require-group-share", 0.1)
    assert result.exit_code == 1
    assert "missed --require-group-share: expected at most 0.1" in result.stderr
    for values in (np.arange(499), np.zeros(500), np.zeros((500, 1), np.int64)):
        np.save(texts, values)
        result = oneway("certify", guard, scores, "--groups", texts)
        assert result.exit_code == 2
        assert "must be 500 whole numbers or texts" in result.stderr


def test_a_query_without_a_group_is_named_by_its_row(tmp_path):
    path = tmp_path / "people.csv"
    for values in (["4", "5", "", "7"], ["ann", "bob", "", "eve"]):
        path.write_text("number,groups\n" + "".join(f"1,{value}\n" for value in values))
        with pytest.raises(CorruptDataError, match="missing in 1 rows, row 2 first"):
            read_groups(path, 4)
    texts = tmp_path / "people.npy"
    np.save(texts, np.array(["ann", "", "eve"]))
    with pytest.raises(CorruptDataError, match="missing in 1 rows, row 1 first"):
        read_groups(texts, 3)


def test_groups_written_as_texts_are_those_written_as_numbers(tmp_path):
    numbers, texts = tmp_path / "numbers.npy", tmp_path / "texts.npy"
    np.save(numbers, np.array([0, 7, -3, 10**17]))
    np.save(texts, np.array(["0", "7", "-3", "100000000000000000"]))
    assert torch.equal(read_groups(numbers, 4), read_groups(texts, 4))
    np.save(texts, np.array(["7", "07", "+7", "9" * 30]))
    assert len(read_groups(texts, 4).unique()) == 4


def test_queries_that_the_model_was_trained_on_are_refused(oneway, scores, tmp_path):
    training, out = tmp_path / "training.npz", tmp_path / "guard.safetensors"
    images = read_npz(scores)["images"]
    np.savez(training, images=np.concatenate([images[3:5], 255 - images[:5]]))
    result = oneway("codebook", scores, "--out", out, *FEW, "--training", training)
    assert result.exit_code == 2
    assert "2 of 500 queries are training inputs. Leave them out" in " ".join(result.stderr.split())
    assert not out.exists()


def test_certify_writes_into_the_file_only_if_asked(oneway, fitted, scores, tmp_path, monkeypatch):
    path = tmp_path / "guard.safetensors"
    path.write_bytes(fitted[0].read_bytes())
    before = path.read_bytes()
    assert oneway("certify", path, scores).exit_code == 0
    assert path.read_bytes() == before
    path.with_name("guard-scores.html").unlink()
    days = [datetime.now(UTC).date().isoformat()]

    def closed(*_, **__):
        raise BrokenPipeError

    # Files are whole also if nobody reads to the end what is printed.
    monkeypatch.setattr("rich.console.Console.print", closed)
    oneway("certify", path, scores, "--write")
    certificate = CodebookRelease.load(path).certificate
    assert certificate.queries == 500
    assert certificate.certified_on in [*days, datetime.now(UTC).date().isoformat()]
    assert path.with_name("guard-scores.html").is_file()


def test_a_refined_codebook_reveals_no_more_beside_the_old_one(oneway, fitted, scores, tmp_path):
    old, new = fitted[0], tmp_path / "new.safetensors"
    result = oneway("codebook", scores, "--out", new, "--refine", old, "--min-members", 3)
    assert result.exit_code == 0, result.output
    guard = CodebookRelease.load(new)
    assert f"Guard version: {guard.state.version}." in result.output
    with_old = ("certify", new, scores, "--with", old)
    result = oneway(*with_old, "--json", "--require-cells", guard.state.sizes.cells)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["held_out"]["answer"] == "no"
    assert told["identification"]["cells"] == guard.state.sizes.cells
    assert told["bits_measured"] == told["together"]["alone"][0]["bits_measured"]
    page = (tmp_path / "new-guard-scores.html").read_text()
    together = f"together they reveal what {guard.state.version} reveals alone"
    assert together in " ".join(page.split())
    assert "Versions together" in page
    assert guard.state.version in page
    for options in (("--write",), ("--require-members", 3)):
        refused = oneway(*with_old, *options)
        assert refused.exit_code == 2
        assert "not written into one of them" in " ".join(refused.stderr.split())


def test_choose_shows_the_family_and_a_command_that_works(oneway, scores, tmp_path):
    result = oneway("choose", scores, "--max-l1", 2, "--min-members", 3, "--max-cells", 30)
    assert result.exit_code == 0, result.output
    assert "codebook" in result.output
    assert "label alone: 0." in result.output
    assert "--max-cells 30" in " ".join(result.output.split())
    words = result.output.split("Make it: oneway ")[1].split()
    out = tmp_path / "guard.safetensors"
    again = [str(out) if word == "guard.safetensors" else word for word in words]
    assert oneway(*again).exit_code == 0
    # The figure that it printed is this certificate's.
    told = CodebookRelease.load(out).certificate
    assert f"on {told.queries} queries that neither fitted nor chose it" in result.output
    assert f"error {told.error.estimate:.4f} (lower bound" in " ".join(result.output.split())


def test_export_writes_a_graph_that_answers_the_same(oneway, fitted, work, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    out = tmp_path / "guard.onnx"
    assert oneway("export", fitted[0], "--out", out).exit_code == 0
    logits = read_npz(work / "test.npz")["logits"]
    session = onnxruntime.InferenceSession(str(out))
    (told,) = session.run(None, {"logits": logits})
    guard = CodebookRelease.load(fitted[0])
    assert np.array_equal(told, guard.probabilities(torch.from_numpy(logits)).numpy())


def test_wrong_usage_is_told_in_one_line_and_nothing_is_written(
    oneway, fitted, work, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    scores, guard = work / "auxiliary.npz", fitted[0]
    model = ("--out", "g.onnx", "--output-name", "y", "--model")
    for arguments, message in (
        (("codebook", scores, "--out", "guard.npz"), "--out must end in .safetensors"),
        (("codebook", scores, "--out", "g.safetensors", "--center", "mode"), "'mode' is not one"),
        (("certify", work / "s.safetensors", scores), "not a codebook"),
        (("certify", "absent.safetensors", scores), "no codebook file absent.safetensors"),
        (("export", guard, "--out", "guard.bin"), "--out must end in .onnx"),
        (("export", guard, "--out", "g.onnx", "--output-name", "logits"), "go together"),
        (("export", guard, *model, "absent.onnx"), "no model file absent.onnx"),
        (("export", guard, *model, scores), "is not an ONNX model"),
    ):
        result = oneway(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr, arguments
        assert list(tmp_path.iterdir()) == [], arguments


def test_defaults_are_those_that_codebooks_declare():
    """Help must not import torch, so that the command repeats them: nobody may change one alone."""
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(codebook.codebook).parameters.items()
    }
    declared = {name: option.default for name, option in options_of(DecoyOptions).items()}
    shared = given.keys() & declared.keys()
    assert shared == declared.keys() - {
        "l1_budget",  # --max-l1, beside other limits
        *("max_boxes", "decoy_steps", "surrogate_width", "surrogate_epochs"),  # of experiments
    }
    assert {name: given[name] for name in shared} == {name: declared[name] for name in shared}


def test_a_codebook_of_other_classes_is_refused(oneway, fitted, tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros((20, 7), np.float32))
    result = oneway("certify", fitted[0], tmp_path / "scores.npy", "--outputs", "logits")
    assert result.exit_code == 2
    assert "over the 10 classes" in result.stderr


def test_cells_and_the_worst_case_are_limited_certified_and_required(oneway, scores, tmp_path):
    path, table = tmp_path / "guard.safetensors", tmp_path / "values.csv"
    table.write_text("age,sensitive\n" + "".join(f"{at},ward {at % 3}\n" for at in range(500)))
    limits = ("--max-cells", 14, "--max-l1-worst", 1.25, "--sensitive", table)
    result = oneway("codebook", scores, "--out", path, "--min-members", 12, *limits)
    assert result.exit_code == 0, result.output
    certificate = CodebookRelease.load(path).certificate
    cells = certificate.identification.cells
    assert cells == 14
    assert (certificate.worst_case.limit, certificate.sensitive.values) == (1.25, 3)
    words = " ".join(result.output.split())
    named = certificate.identification.curve[1].release
    assert "Of 20 equally likely candidates" in words
    assert f"names the right one in {100 * named:.1f} % of cases" in words
    assert f"{cells} cells name the right one in at most {cells}.0 % of cases among 100" in words
    assert f"at least {100 * certificate.worst_case.kept_least:.1f} % of queries to come" in words
    assert f"{100 * certificate.sensitive.release_most:.1f} % of queries to come" in words
    # The cap is that of the fit unless another is given; a share of cells can be required.
    result = oneway("certify", path, scores, "--json", "--require-cells", cells)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["worst_case"]["limit"] == 1.25
    result = oneway("certify", path, scores, "--max-l1-worst", 0.5, "--require-cells", cells - 1)
    assert result.exit_code == 1
    assert f"missed --require-cells: expected at most {cells - 1}, but got {cells}" in result.stderr
    assert "within an L1 distance of 0.5" in " ".join(result.output.split())


def test_sensitive_values_come_from_arrays_and_what_is_none_is_refused(
    oneway, fitted, scores, tmp_path
):
    path = tmp_path / "values.npy"
    arguments = ("certify", fitted[0], scores, "--json", "--sensitive")
    np.save(path, np.array(["a", "b"])[np.arange(500) % 2])
    told = json.loads(oneway(*arguments, path).stdout)["sensitive"]
    assert (told["values"], told["nothing"]) == (2, 0.5)
    for wrong in (np.arange(499), np.arange(500) / 7, np.zeros((500, 2), np.int64)):
        np.save(path, wrong)
        result = oneway(*arguments, path)
        assert result.exit_code == 2
        assert "must be 500 whole numbers or truth values or texts" in " ".join(
            result.stderr.split()
        )
    np.savez(tmp_path / "other.npz", diagnosis=np.arange(500))
    result = oneway(*arguments, tmp_path / "other.npz")
    assert "must hold an array named sensitive" in " ".join(result.stderr.split())


MODELS = """
import torch

def model():
    layer = torch.nn.Linear(1024, 10, bias=False)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(layer.weight, 0, 0.2, generator=generator)
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""


def test_several_answers_are_certified_from_a_file_or_by_asking_the_model(
    oneway, scores, tmp_path, monkeypatch
):
    (tmp_path / "asked_about_copies.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import asked_about_copies

    model, stored = asked_about_copies.model(), read_npz(scores)["images"]
    images = torch.from_numpy(stored).float().div(255)
    own, copies = tmp_path / "own.npz", tmp_path / "copies.npz"
    guard = tmp_path / "guard.safetensors"
    with torch.no_grad():
        changed = torch.stack([model(images), model(images * 0.9)], 1)
    np.savez(own, images=stored, logits=changed[:, 0].numpy())
    np.savez(copies, logits=changed.numpy())
    asked = "asked_about_copies:model", "--queries", own, "--outputs", "logits", "--repeats", 4
    result = oneway("codebook", *asked, "--out", guard, *FEW, "--variant-weight", 0.01)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "4 answers (to a query and to changed copies of it) name" in text
    found = CodebookRelease.load(guard).certificate.composition
    assert [row.answers for row in found.rows] == [1, 4]
    assert found.rows[-1].error is not None
    result = oneway("certify", guard, own, "--variants", copies, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["composition"]["rows"]
    assert [row["answers"] for row in rows] == [1, 3]
    # The first copy is the query itself; the other one is paler.
    assert rows[0]["release"] <= rows[1]["release"]
    for wrong, words in (
        ((*asked, "--variants", copies), "not both"),
        ((own, "--variants", own), "m changed copies"),
        ((own, "--repeats", 4), "undefended model itself"),
    ):
        result = oneway("certify", guard, *wrong)
        assert result.exit_code != 0
        assert words in " ".join(result.output.split()), result.output
