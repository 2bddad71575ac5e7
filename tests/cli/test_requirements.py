"""What `oneway certify` is required to find, what `oneway choose` says to run, what looks wrong."""

import json
import shlex

import numpy as np
import pytest

from auditing.audits import search_little
from oneway.defenses.codebook import CodebookRelease


@pytest.fixture(scope="module", autouse=True)
def quick_attacks():
    """How strong attacks on clean scores are is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        search_little(patch)
        yield


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores and images of 400 queries, in a folder whose name a shell would take apart."""
    folder = tmp_path_factory.mktemp("scores") / "of a model"
    folder.mkdir()
    for name, seed in (("both", 0), ("fresh", 1)):
        generator = np.random.default_rng(seed)
        logits = generator.normal(0, 2, (400, 4)).astype(np.float32)
        # Images are as bright as scores are sure, so that a finer release tells more.
        sure = np.exp(logits).max(-1) / np.exp(logits).sum(-1)
        noise = generator.integers(0, 40, (400, 1, 4, 4))
        images = (200 * sure[:, None, None, None] + noise).astype(np.uint8)
        np.savez(folder / f"{name}.npz", images=images, logits=logits)
        if name == "both":
            np.save(folder / "logits.npy", logits)
            np.save(folder / "images.npy", images)
    return folder


@pytest.fixture(scope="module")
def guard(oneway, scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "guard.safetensors"
    result = oneway("codebook", scores / "both.npz", "--out", path, "--min-members", 20)
    assert result.exit_code == 0, result.output
    return path


def test_a_missed_requirement_says_what_was_wanted_and_got_and_writes_nothing(
    oneway, scores, guard
):
    source, before = scores / "fresh.npz", guard.read_bytes()
    told = json.loads(oneway("certify", guard, source, "--json").stdout)
    for flag, got, worse, words in (
        ("--require-error", told["error"]["low"], 1e-4, "at least"),
        ("--require-lower-bound", told["error"]["lower_bound"], 1e-4, "at least"),
        ("--require-members", told["members_least"], 1, "at least"),
        ("--require-bits", told["bits_most"], -0.5, "at most"),
    ):
        kept = oneway("certify", guard, source, flag, got)
        assert kept.exit_code == 0, kept.output
        assert "missed" not in kept.stderr
        missed = oneway("certify", guard, source, flag, got + worse, "--write")
        assert missed.exit_code == 1
        assert f"missed {flag}: expected {words} {got + worse:g}, but got {got:g}" in missed.stderr
        assert missed.stderr.count("missed") == 1
        assert f"not written: {guard} keeps" in missed.stderr
        assert guard.read_bytes() == before


def test_all_that_is_missed_is_told_and_what_is_kept_is_written(oneway, scores, guard, tmp_path):
    path = tmp_path / "guard.safetensors"
    path.write_bytes(guard.read_bytes())
    source = scores / "fresh.npz"
    result = oneway("certify", path, source, "--require-error", 0.9, "--require-members", 999)
    assert result.exit_code == 1
    assert result.stderr.count("missed --require") == 2
    assert "not written" not in result.stderr
    result = oneway("certify", path, source, "--require-members", 20, "--write")
    assert result.exit_code == 0
    assert CodebookRelease.load(path).certificate.queries == 400


def test_a_lower_bound_needs_the_queries(oneway, scores, guard):
    source = (scores / "logits.npy", "--outputs", "logits")
    result = oneway("certify", guard, *source, "--require-lower-bound", 0.01)
    assert result.exit_code == 2
    assert "--require-lower-bound needs the queries themselves. Pass --queries" in result.stderr


def test_what_choose_says_to_run_carries_all_that_it_was_given(oneway, scores, tmp_path):
    files = ("--outputs", "logits", "--queries", scores / "images.npy", "--seed", 3)
    source = scores / "logits.npy"
    for max_l1, command in ((2, "codebook"), (0.005, "defend")):
        result = oneway("choose", source, *files, "--max-l1", max_l1, "--min-members", 20)
        assert result.exit_code == 0, result.output
        *lines, way = result.stdout.splitlines()
        said = " ".join(" ".join(lines).split())
        warned = "has no table, so nothing bounds how many queries its answers identify"
        assert (warned in said) == (command == "defend")
        words = shlex.split(way.removeprefix("Make it: "))
        assert words[:2] == ["oneway", command]
        assert words[2] == str(source)
        assert words[words.index("--outputs") + 1] == "logits"
        assert "Certified on 80 queries that neither fitted nor chose it" in said
        assert ("no error (nearly every query has an answer of its own" in said) == (max_l1 < 1)
        if command == "codebook":
            assert words[words.index("--queries") + 1] == str(scores / "images.npy")
            assert words[words.index("--seed") + 1] == "3"
        out = words.index("--out") + 1
        words[out] = str(tmp_path / words[out])
        again = oneway(*words[1:])
        assert again.exit_code == 0, again.output
        assert (tmp_path / words[out]).is_file()


def test_confidences_that_are_declared_logits_are_refused_in_files(oneway, scores, tmp_path):
    logits = np.load(scores / "logits.npy").astype(np.float64)
    confidences = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    refused, path = "look like confidences", tmp_path / "scores.npy"
    images = scores / "images.npy"
    named, out = tmp_path / "scores.npz", tmp_path / "guard.safetensors"
    result = oneway("codebook", scores / "logits.npy", "--outputs", "logits", "--out", out)
    assert result.exit_code == 0, result.output
    np.savez(named, logits=confidences)
    for decimals in (4, 2):
        np.save(path, confidences.round(decimals))
        for command, *options in (
            ("codebook", path, "--outputs", "logits", "--out", tmp_path / "other.safetensors"),
            ("choose", path, "--outputs", "logits", "--queries", images, "--max-l1", 2),
            ("certify", out, path, "--outputs", "logits"),
            ("defend", path, "--outputs", "logits", "--defense", "label-only", "--out", "told.npy"),
        ):
            result = oneway(command, *options)
            assert result.exit_code == 2, (command, decimals, result.output)
            assert f"the logits in {path} are declared logits, but {refused}" in result.stderr
            assert "Say confidences" in result.stderr
    result = oneway("defend", named, "--defense", "label-only", "--out", tmp_path / "told.npy")
    assert result.exit_code == 2, result.output
    assert "Name the array confidences" in result.stderr
    np.save(path, confidences.round(4))
    result = oneway("codebook", path, "--outputs", "confidences", "--out", out)
    assert result.exit_code == 0, result.output
    # Rows that are none are enough: below 0 though it sums to 1, or summing to more.
    for moved in ((-0.1, 0.1), (0.0, 0.002)):
        other = confidences.copy()
        other[::2] = (0.05, 0.05, 0.1, 0.8)
        other[::2, :2] += moved
        np.save(path, other)
        result = oneway("codebook", path, "--outputs", "logits", "--out", out)
        assert result.exit_code == 0, result.output


def test_scores_of_other_types_are_read_or_refused_by_name(oneway, scores, tmp_path):
    logits, path, out = np.load(scores / "logits.npy"), tmp_path / "s.npy", tmp_path / "out.npy"
    command = ("defend", path, "--outputs", "logits", "--defense", "label-only", "--out", out)
    for kind in (">f4", ">f8", "f2"):
        np.save(path, logits.astype(kind))
        assert oneway(*command).exit_code == 0, kind
        assert (np.load(out).argmax(1) == logits.astype(kind).argmax(1)).all()
    for kind in ("i8", "u2", "c16", "U5"):
        np.save(path, logits.astype(kind))
        result = oneway(*command)
        assert result.exit_code == 2, (kind, result.output)
        assert f"float64 of shape (N, K), but are {np.dtype(kind)}" in result.stderr
