"""Codebooks from a model and data, in Python and on the command line."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import oneway
from auditing.audits import search_little
from invoking import invoke
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    OverlappingSplitsError,
    UnknownNameError,
)
from oneway.evaluation.records import source_commit
from oneway.interface import read_scores
from oneway.report.page.certificate import certificate_page

MODEL = """
import torch

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 3)
        torch.nn.init.normal_(layer.weight)
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (600, 4, 4), np.uint8)


@pytest.fixture(autouse=True)
def quick_attacks(monkeypatch):
    """How strong attacks on clean scores are is tested elsewhere."""
    search_little(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "one_model.py").write_text(MODEL)
    (folder / "photos").mkdir()
    for at, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / "photos" / f"{at:03}.png")
    np.savez(folder / "photos.npz", images=PIXELS)
    return folder


@pytest.fixture
def model(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    from one_model import build

    return build()


def test_a_model_and_a_folder_give_the_codebook_of_their_scores(place, model, tmp_path):
    images = torch.from_numpy(PIXELS).float()[:, None] / 255
    with torch.no_grad():
        logits = model(images)
    options = {"min_members": 8, "seed": 3}
    guard = oneway.fit_codebook(model, images, outputs="logits", **options)
    assert guard.state.digest() == (
        oneway.fit_codebook(logits, images, outputs="logits", **options).state.digest()
    )
    for source, queries in (
        (("one_model:build", "--outputs", "logits"), place / "photos"),
        ((tmp_path / "scores.npz",), None),
    ):
        if queries is None:
            made = ("one_model:build", place / "photos.npz", "--outputs", "logits")
            result = invoke("score", *made, "--out", source[0])
            assert result.exit_code == 0, result.output
        given = () if queries is None else ("--queries", queries)
        result = invoke(
            "codebook",
            *source,
            *given,
            "--out",
            tmp_path / "g.safetensors",
            "--min-members",
            8,
            "--seed",
            3,
        )
        assert result.exit_code == 0, result.output
        loaded = oneway.load_guard(tmp_path / "g.safetensors")
        assert loaded.state.digest() == guard.state.digest()
        assert loaded.certificate == guard.certificate
    # The digests beside it say that these queries were fitted.
    certificate = oneway.certify(tmp_path / "g.safetensors", model, images, outputs="logits")
    assert certificate.held_out.answer == "no"
    assert oneway.certify(loaded, model, images, outputs="logits").held_out.answer == "not checked"
    assert oneway.certify(guard, model, images, outputs="logits").held_out.answer == "no"


def test_without_a_budget_the_cheapest_release_that_hides_nearly_all_is_chosen(model):
    found = oneway.choose(model, PIXELS, outputs="logits", min_members=[8])
    most = found.frontier[-1].certified
    enough = [each for each in found.frontier if each.certified >= 0.9 * most]
    assert found.candidate == min(enough, key=lambda each: each.l1_mean)
    assert len(repr(found)) < 1000  # what an interactive session prints
    within = oneway.choose(model, PIXELS, outputs="logits", min_members=8, max_l1=0.2)
    assert within.candidate.l1_mean <= 0.2
    for each in (found, within):
        tables = [one for one in each.candidates if one.defense == "codebook"]
        alike = [table for table in tables if table.l1_mean <= each.candidate.l1_mean]
        assert each.bounded == max(alike, key=lambda table: table.certified, default=None)
    assert within.candidate.certified == max(
        each.certified for each in within.candidates if each.l1_mean <= 0.2
    )
    with torch.no_grad():
        scores = model(torch.from_numpy(PIXELS).float()[:, None] / 255)
    assert torch.equal(within.guard(scores).argmax(-1), scores.argmax(-1))


def test_what_is_missing_or_unknown_is_said_before_any_work(model):
    scores = np.zeros((4, 3), np.float32)
    for call, error, words in (
        (lambda: read_scores(scores), InvalidOptionError, "does not say what it holds"),
        (lambda: read_scores(model, outputs="logits"), InvalidOptionError, "needs queries"),
        (lambda: read_scores(scores.tolist()), InvalidOptionError, "here a list, .* Scores are an"),
        (lambda: oneway.fit_codebook(scores, min_member=3), UnknownNameError, "min_members"),
        (lambda: read_scores("s.csv"), InvalidOptionError, r"model, here s\.csv, .*class as \.npy"),
        (lambda: read_scores(scores[:, 0], outputs="logits"), CorruptDataError, r"stack.*reshape"),
        (lambda: oneway.fit_codebook(scores, output="logits"), UnknownNameError, "'outputs'"),
        (lambda: oneway.certify("x", scores, levels=0.9), UnknownNameError, "mean 'level'"),
        (lambda: oneway.audit(model, attacker_data=scores, defense=1), UnknownNameError, "'guard'"),
        (lambda: oneway.audit(model, attacker_data=scores, minute=1), UnknownNameError, "minutes"),
        (lambda: read_scores(scores, PIXELS, outputs="logits"), InvalidOptionError, "600 queries"),
        (lambda: oneway.choose(scores, outputs="logits"), InvalidOptionError, "--queries"),
        (lambda: oneway.choose(scores, references=4), InvalidOptionError, "--references is for"),
        (
            lambda: oneway.choose(model, PIXELS, outputs="logits", min_members=[]),
            InvalidOptionError,
            "at least one number",
        ),
        (
            lambda: oneway.fit_codebook(model, PIXELS, outputs="logits", repeats=1),
            InvalidOptionError,
            "repeats must be a whole number of at least 2, but got 1",
        ),
        (lambda: read_scores(scores, outputs="logits", x=1), InvalidOptionError, "no options"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_scores_and_queries_may_be_tensors_of_any_type():
    scores = torch.randn(600, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    images = torch.from_numpy(PIXELS)[:, None].bfloat16() / 255
    wanted = read_scores(scores.float(), images.float(), outputs="logits")
    for given in (scores, scores.float().requires_grad_()):
        read = read_scores(given, images, outputs="logits")
        assert torch.equal(read.logits, wanted.logits)
        assert torch.equal(read.queries, wanted.queries)


def test_a_certificate_names_its_queries_and_scores_by_their_hash(model):
    images = torch.from_numpy(PIXELS).float()[:, None] / 255
    with torch.no_grad():
        logits = model(images)
    guard = oneway.fit_codebook(logits, images, outputs="logits", min_members=8)
    changed, moved = images.clone(), logits.clone()
    changed[7, 0, 3, 3] = 1 - changed[7, 0, 3, 3]
    moved[7, 0] += 1
    same, other_query, other_score = (
        oneway.certify(guard, scores, queries, outputs="logits")
        for scores, queries in ((logits, images), (logits, changed), (moved, images))
    )
    assert same.queries_hash == guard.certificate.queries_hash != other_query.queries_hash
    assert same.scores_hash == other_query.scores_hash != other_score.scores_hash
    assert other_score.queries_hash == same.queries_hash
    assert same.commit == source_commit()
    assert same.fault(guard.state) is None
    assert "queries_hash" in replace(same, queries_hash="0" * 63).fault(guard.state)
    assert same.queries_hash in str(certificate_page(same, "guard").sections[-1])


def test_rows_of_a_table_are_known_again_in_another_table(model, tmp_path):
    """Each table is encoded by its own range: only their values say that rows are the same."""
    values = np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32)
    values[0] *= 50  # in the first table alone, whose range it is
    options = {"outputs": "logits", "min_members": 5}
    guard = oneway.fit_codebook(model, values[:600], **options)
    guard.save(tmp_path / "guard.safetensors")
    for known in (guard, tmp_path / "guard.safetensors"):
        again = oneway.certify(known, model, values[200:600], outputs="logits")
        assert again.held_out.answer == "no"
    assert oneway.certify(guard, model, values[600:], outputs="logits").held_out.answer == "yes"
    frame = pandas.DataFrame(values[200:600], columns=[f"c{place}" for place in range(16)])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    result = invoke(
        *("score", "one_model:build", tmp_path / "rows.csv", "--outputs", "logits"),
        *("--out", tmp_path / "scores.npz"),
    )
    assert result.exit_code == 0, result.output
    assert oneway.certify(guard, tmp_path / "scores.npz").held_out.answer == "no"
    labelled = {"attacker_data": values[50:350], "members": values[600:700]}
    labelled |= {"non_members": values[700:900]}
    for name, rows in labelled.items():
        labelled[name] = rows, np.arange(len(rows)) % 3
    with pytest.raises(OverlappingSplitsError, match=r"queries and members .* share 200 records"):
        oneway.choose(model, values[700:], outputs="logits", goal="membership", **labelled)
    with pytest.raises(InvalidOptionError, match="but 50 of 700 queries are training inputs"):
        oneway.fit_codebook(model, values[200:], training=values[:250], **options)


def test_a_guard_is_pickled_without_its_digests_and_copied_with_them(model):
    images = torch.from_numpy(PIXELS).float()[:, None] / 255
    guard = oneway.fit_codebook(model, images, outputs="logits", min_members=8)
    guarded = oneway.protect(model, guard, outputs="logits")
    sent = pickle.loads(pickle.dumps(guarded))  # noqa: S301  our own bytes
    assert torch.equal(sent(images), guarded(images))
    assert sent.guard.defense.fitted is None
    assert copy.deepcopy(guard).fitted is guard.fitted is not None
    with pytest.raises(InvalidOptionError, match="would be overwritten by the digests"):
        guard.save("guard.fitted")


def test_groups_are_taken_as_texts_and_numbers(model):
    people = [f"person {at // 3}" for at in range(600)]
    fitted = [
        oneway.fit_codebook(model, PIXELS, outputs="logits", groups=groups, min_members=4)
        for groups in (people, np.array(people))
    ]
    assert fitted[0].state.digest() == fitted[1].state.digest()
    assert fitted[0].certificate.traffic.groups is not None


def test_a_module_stays_where_it_lies_unless_a_device_is_named(model, monkeypatch):
    moved = []
    place = type(model).to
    monkeypatch.setattr(
        type(model), "to", lambda self, *where: moved.append(where) or place(self, *where)
    )
    book = oneway.fit_codebook(model, PIXELS, outputs="logits")
    oneway.certify(book, model, PIXELS, outputs="logits")
    assert moved == []
    oneway.fit_codebook(model, PIXELS, outputs="logits", device=torch.device("cpu"))
    assert moved == [(torch.device("cpu"),)]
    with pytest.raises(InvalidOptionError, match="on the device meta"):
        oneway.fit_codebook(model.to("meta"), PIXELS, outputs="logits")
