"""Membership audits as a user runs them: Python, command, records, refusals."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import oneway
from invoking import invoke
from oneway.auditing import AuditRecord, MembershipSettings, StealingSettings
from oneway.auditing.membership import SAME, MembershipAudit, members_in_table
from oneway.auditing.references import Candidates, halves, own_architecture
from oneway.defenses import build_defense, candidate_releases
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.errors import InvalidOptionError, OverlappingSplitsError, UnknownNameError
from oneway.evaluation import ReleaseSpec, Store
from oneway.interface import AuditResult
from oneway.interface.codebooks import enough
from oneway.report.threats import closed_gaps, membership_verdict
from oneway.targets import TorchTarget
from report.page.reading import assert_stands_alone

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"
)

ROWS, CLASSES = 60, 3
CONFIDENCE = "true-label-confidence"


@pytest.fixture(scope="module")
def data():
    """Random images with random labels, so that a model can only learn them by heart."""
    generator = torch.Generator().manual_seed(0)
    images = (255 * torch.rand(3 * ROWS, 1, 5, 5, generator=generator)).byte()
    labels = torch.randint(CLASSES, (3 * ROWS,), generator=generator)
    parts = zip(images.split(ROWS), labels.split(ROWS), strict=True)
    return dict(zip(("members", "non_members", "attacker_data"), parts, strict=True))


def fitted(images, labels, classes):
    """Learn rows by heart: least squares on more random features than rows."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(25, 100), nn.ReLU(), nn.Linear(100, classes, bias=False)
    )
    with torch.no_grad():
        # Steep enough that hidden units bend within the rows, and features are independent.
        network[1].weight.mul_(10)
        network[1].bias.copy_(-network[1].weight.sum(-1) / 2)
        shown = network[:3](images).double()
        wanted = 3 * torch.eye(classes, dtype=torch.float64)[labels]
        network[3].weight.copy_((torch.linalg.pinv(shown) @ wanted).mT)
    return network.eval()


@pytest.fixture(scope="module")
def model(data):
    images, labels = data["members"]
    torch.manual_seed(0)
    return fitted(images.float() / 255, labels, CLASSES)


@pytest.fixture(scope="module")
def result(data, model, tmp_path_factory):
    return oneway.audit(
        model,
        threats=["membership"],
        outputs="logits",
        **{name: (images.numpy(), labels.numpy()) for name, (images, labels) in data.items()},
        guard=build_defense("rounding", {"decimals": 1}),
        membership=MembershipSettings(references=4, copies=0, train=fitted),
        cache=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def files(data, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("membership")
    for name, (images, labels) in data.items():
        np.savez(folder / f"{name}.npz", images=images.numpy(), labels=labels.numpy())
    torch.jit.trace(model, data["members"][0][:2].float()).save(folder / "model.pt")
    return folder


def audited(files, *options, threats="membership"):
    words = ["audit", str(files / "model.pt"), "--outputs", "logits", "--threats", threats]
    words += ["--attacker-data", str(files / "attacker_data.npz"), "--out", str(files / "out")]
    words += ["--cache", str(files / "cache"), *options]
    return invoke(*words)


def test_a_model_that_learned_by_heart_leaks_and_the_record_says_so(result):
    record = result.record.membership
    gap = record.gaps["area"]
    assert record.accuracy[0] > 0.9 > 0.6 > record.accuracy[1]
    assert gap.clean.low > 0.6
    assert not record.nothing_to_defend or gap.leak.low <= 0
    assert record.controls_failed == ()
    assert {each.name for each in record.controls} == {"planted signal", "random membership"}
    # Whoever sees scores sees the label.
    floor = max(a.area.estimate for a in record.attacks if a.release == "label only")
    assert gap.label.estimate == floor
    assert gap.released.estimate >= floor
    assert gap.clean.estimate >= floor
    assert "area under the ROC curve" in str(result) or "false alarms" in str(result)


def test_nothing_is_claimed_of_weak_attackers_or_where_a_control_failed(result):
    record = result.record.membership
    assert closed_gaps(result.record)["membership"].claimed is not None
    failed = dataclasses.replace(record.controls[0], passed=False)
    for changes in ({"references": 2}, {"controls": (failed,)}):
        part = dataclasses.replace(record, **changes)
        changed = AuditResult(dataclasses.replace(result.record, membership=part), 1)
        assert changed.gap is None
        assert changed.gaps == {"membership": None}
        assert "G_mem must be at least -5, but nothing can be claimed." in changed.missed(-5)


def test_intervals_of_few_non_members_are_said_to_miss_more_often(result):
    record = result.record.membership
    for non_members, warned in ((999, True), (1_000, False)):
        lines = membership_verdict(dataclasses.replace(record, non_members=non_members))
        assert any("miss more often than 5 %" in line for line in lines) == warned


def asked_again(data, model, folder, guard):
    """Attack a guard without reference models: that takes milliseconds."""
    parts = ((images.float() / 255, labels) for images, labels in data.values())
    attacks = ("label-gap", CONFIDENCE)
    settings = MembershipSettings(references=0, copies=0, controls=False, attacks=attacks)
    audit = MembershipAudit(TorchTarget(model), Candidates.of(*parts), settings, Store(folder))
    return audit.measured(ReleaseSpec("noise", "gaussian-noise"), guard, own_copies=False)


class OneByOne(GaussianNoise):
    """Noise of a defense that has one answer to a call."""

    draws = None


def test_random_answers_are_averaged_as_by_whoever_asks_again(data, model, tmp_path):
    # As much noise as clean scores lead by twice over.
    noise = {"standard_deviation": 6.0}
    found = {
        count: asked_again(data, model, tmp_path, kind(**noise, generator=torch.Generator()))
        for count, kind in ((10, OneByOne), (100, GaussianNoise))
    }
    clean = found[10].gaps()["area"].clean.estimate
    read = [
        next(float(each.measures.area[0]) for each in ladder if each.attack == CONFIDENCE)
        for ladder in (each.ladders["release"][SAME] for each in found.values())
    ]
    # By a single answer the area is .65.
    assert 0.75 < read[0] < read[1] < clean
    for count, each in found.items():
        assert each.notes[-1].endswith(f"read the mean of {count} answers to each query.")
        # Users get one answer, whatever an attacker makes of many.
        assert each.l1 > 0.9
    assert not asked_again(data, model, tmp_path, build_defense("none", {}, None)).notes


def test_a_record_is_read_back_as_it_was_written(result, tmp_path):
    result.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "report.html"]
    values = json.loads((tmp_path / "audit.json").read_text())
    assert AuditRecord.from_json(values, "here") == result.record
    page = assert_stands_alone((tmp_path / "report.html").read_text())
    assert "rounding" in page.every("h1")[0].text()


def test_the_command_finds_that_labels_alone_close_all_of_the_gap(files):
    pair = ["--members", f"{files}/members.npz", "--non-members", f"{files}/non_members.npz"]
    options = [*pair, "--no-controls", "--defense", "label-only", "--json", "--references"]
    assert audited(files, *options, "4", "--require-gap", "-5").exit_code == 0
    assert audited(files, *options, "2", "--require-gap", "-5").exit_code == 1
    done = audited(files, *options, "2")
    assert done.exit_code == 0, done.output
    record = json.loads((files / "out" / "audit.json").read_text())
    assert json.loads(done.stdout) == record
    assert "--threats membership" in record["command"]
    area = record["membership"]["gaps"]["area"]
    assert area["released"] == area["label"]
    assert area["closed"] is None or area["closed"]["estimate"] == 1


def test_data_of_each_threat_is_asked_for_and_checked(files):
    members, others = f"{files}/members.npz", f"{files}/non_members.npz"
    pair = ["--members", members, "--non-members", others]
    for options, threats, message in (
        (["--members", members], "membership", "--non-members must be given"),
        ([*pair, "--queries", others], "membership", "which is not audited"),
        ([], "inversion", "Pass --queries DATA"),
        (pair, "theft", "unknown threat"),
        (["--members", members, "--non-members", members], "membership", "share 60 images"),
        ([*pair, "--references", "3"], "membership", "must be an even number"),
    ):
        done = audited(files, *options, threats=threats)
        assert done.exit_code == 2, options
        assert message in " ".join(done.output.split()), done.output


def test_rows_that_cannot_be_compared_are_refused(data, model):
    given = {name: (images.numpy(), labels.numpy()) for name, (images, labels) in data.items()}
    images = given["members"][0]
    for change, kind, message in (
        ({"non_members": given["members"]}, OverlappingSplitsError, "share 60"),
        ({"members": images}, InvalidOptionError, "must have classes"),
        ({"members": (images[:9], given["members"][1][:9])}, InvalidOptionError, "at least 50"),
        ({"members": None}, InvalidOptionError, "--members must be given"),
        ({"public": images}, InvalidOptionError, "--public is for the threat 'stealing'"),
        ({"threats": []}, InvalidOptionError, "threats must name one of"),
        ({"stealing": StealingSettings()}, InvalidOptionError, "stealing= is for the threat"),
    ):
        with pytest.raises(kind, match=message):
            oneway.audit(model, outputs="logits", **{"threats": ["membership"], **given, **change})


def test_an_attack_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'offline-lira'"):
        MembershipSettings(attacks=("ofline-lira",))


def test_a_codebook_that_was_fitted_to_members_is_flagged():
    rows, logits = torch.rand(600, 1, 4, 4), torch.randn(600, 3)
    guard = oneway.fit_codebook(logits.numpy(), rows.numpy(), outputs="logits", min_members=5)
    [note] = members_in_table(guard, rows[:100])
    assert note.startswith("The codebook was fitted to")
    assert members_in_table(guard, torch.rand(100, 1, 4, 4)) == []


def test_each_candidate_is_in_one_half_of_every_pair():
    members = halves(7, 6, torch.Generator().manual_seed(0))
    assert torch.equal(members[::2], ~members[1::2])
    assert (members[::2].sum(-1) == 3).all()
    assert len({tuple(row.tolist()) for row in members}) == 6


def test_reference_models_have_the_models_own_architecture_where_it_can_be_drawn_anew():
    rows = torch.rand(8, 1, 4, 4)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)]
    model = nn.Sequential(*layers).requires_grad_(False)
    drawn = own_architecture(TorchTarget(model), rows)
    assert str(drawn) == str(model)
    assert not torch.equal(drawn[3].weight, model[3].weight)
    assert all(each.requires_grad for each in drawn.parameters())
    model[1].running_mean.fill_(5)
    assert own_architecture(TorchTarget(model), rows)[1].running_mean.abs().max() == 0

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(16, 2))

        def forward(self, images):
            return images.flatten(1) @ self.weight

    weighted = nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(16, 2)))
    asked = nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(16, 2)))
    with torch.no_grad():
        asked(rows)  # its weight is then outside a graph, and can be copied
    traced = torch.jit.trace(model.eval(), rows)
    softened = TorchTarget(nn.Sequential(model, nn.Softmax(-1)), outputs="confidences")
    modules = [TorchTarget(each) for each in (Bare(), weighted, asked, traced)]
    for other in (*modules, softened, lambda images: images):
        assert own_architecture(other, rows) is None


@pytest.fixture
def few_candidates(monkeypatch):
    """Two codebooks of each center, and no other release."""
    monkeypatch.setattr(candidate_releases, "RATE_WEIGHTS", (math.inf, 0.0))
    monkeypatch.setattr(candidate_releases, "RELEASE_GRID", ())


@pytest.fixture(scope="module")
def queries():
    return torch.rand(400, 1, 5, 5, generator=torch.Generator().manual_seed(1)).numpy()


class Sharp(nn.Module):
    """A model that is surer of images with a bright first pixel, as if it were trained on them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.register_buffer("weights", torch.randn(24, CLASSES, generator=generator))

    def forward(self, images):
        flat = images.flatten(1)
        return ((flat[:, 1:] - 0.5) @ self.weights) * (0.5 + 5.0 * (flat[:, :1] > 0.5))


@pytest.fixture(scope="module")
def right(data):
    """Members have the bright pixel; the model is right about all, so that labels reveal none."""
    rows = {}
    for name, (images, _) in data.items():
        shown = images.float() / 255
        shown[:, 0, 0, 0] = float(name == "members")
        rows[name] = (shown.numpy(), Sharp()(shown).argmax(-1).numpy())
    return rows


def test_a_choice_without_a_budget_takes_the_best_where_none_hides_anything():
    figures = {"defense": "rounding", "options": {}, "release": None, "certified": 0.0}
    figures |= {"l1_mean": 0.1, "alone": 1.0, "bits": 2.0, "cells": None}
    worse, best = (
        candidate_releases.ReleaseCandidate(**figures, hidden=hidden) for hidden in (-0.4, -0.2)
    )
    assert enough([worse, best]) == best.hidden


@pytest.mark.usefixtures("few_candidates")
def test_a_release_is_chosen_to_hide_members(right, queries, tmp_path, monkeypatch):
    model = Sharp()
    sizes = {"outputs": "logits", "references": 0, "min_members": [20], "cache": tmp_path}
    found = oneway.choose(model, queries, goal="membership", **sizes, **right)
    hidden = {each.l1_mean: each.hidden for each in found.candidates}
    enough = 0.9 * max(hidden.values())
    assert found.candidate.l1_mean == min(l1 for l1, each in hidden.items() if each >= enough)
    for each in found.candidates:
        assert each.hidden == min(each.members.closed, 1)
        assert each.members.bound is None or 0 <= each.members.bound <= 1
    # One vector a label tells nothing but the label.
    coarse = [each for each in found.candidates if each.options["rate_weight"] == math.inf]
    assert all(each.members.closed == pytest.approx(1) for each in coarse)

    def never(*_, **__):
        pytest.fail("it began")

    monkeypatch.setattr("oneway.interface.codebooks.measure_candidates", never)
    for changes, kind, message in (
        ({"members": None}, InvalidOptionError, "--members must be given for the goal"),
        ({"members": right["members"][0]}, InvalidOptionError, "must have classes"),
        ({"references": 3}, InvalidOptionError, "must be an even number"),
        ({"goal": "inversion"}, InvalidOptionError, "the goal is inversion"),
        ({"goal": "both"}, UnknownNameError, "unknown goal"),
    ):
        with pytest.raises(kind, match=message):
            oneway.choose(model, queries, **{"goal": "all", **sizes, **right, **changes})
    shared = np.concatenate([queries, right["members"][0]])
    with pytest.raises(OverlappingSplitsError, match="queries and members"):
        oneway.choose(model, shared, goal="all", **sizes, **right)
    with pytest.raises(InvalidOptionError, match="needs the model itself"):
        oneway.choose(np.zeros((400, 3)), queries, goal="all", **sizes, **right)


@pytest.mark.usefixtures("few_candidates")
def test_the_command_chooses_for_both_goals_and_says_what_favors_the_choice(
    right, queries, tmp_path
):
    torch.jit.trace(Sharp(), torch.rand(2, 1, 5, 5)).save(tmp_path / "model.pt")
    np.savez(tmp_path / "queries.npz", images=queries)
    for name, (images, labels) in right.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    words = ["choose", str(tmp_path / "model.pt"), "--outputs", "logits", "--goal", "all"]
    for name in ("queries", "members", "non_members", "attacker_data"):
        words += [f"--{name.replace('_', '-')}", str(tmp_path / f"{name}.npz")]
    sizes = ["--references", "0", "--min-members", "20", "--cache", str(tmp_path / "cache")]
    done = invoke(*words, *sizes)
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert "smaller of G_mem and the certified error" in printed
    assert "on the rows that chose it, which favors it" in printed
    assert "Make it: oneway codebook" in printed
