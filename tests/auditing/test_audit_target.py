"""What is audited: refused before any query if it cannot be, and asked whether it is stable."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn

from auditing.audits import CLASSES, Scores, answers, black_box, blobs, subject_of
from laws import looped
from oneway.auditing import measures, understand
from oneway.auditing.audit_target import (
    LEAST_AUXILIARY,
    LEAST_TEST,
    SAME,
    AuditTarget,
    access,
    ask,
    has_gradient,
)
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.temperature import Temperature
from oneway.errors import InvalidOptionError, InvalidTensorError, OverlappingSplitsError
from oneway.evaluation.settings import ReleaseSpec
from oneway.metrics import label_changes
from oneway.releases import release
from oneway.targets import TorchTarget
from oneway.targets.estimator import estimator_target

TEST, LABELS = blobs(60, 1)
OWN = blobs(LEAST_AUXILIARY, 0)[0]


def never(images):  # noqa: ARG001
    pytest.fail("asked before the audited was refused")


def audited(**options):
    return AuditTarget(**{"target": never, "auxiliary": OWN, "test": TEST, **options})


LABEL_ONLY = ReleaseSpec("label", "label-only")


@looped(
    ("options", "error", "message"),
    [
        ({"auxiliary": OWN.long()}, InvalidTensorError, "must be floating"),
        ({"test": TEST[0, 0, 0]}, InvalidTensorError, "must have shape"),
        ({"auxiliary": OWN.flatten(1)}, InvalidTensorError, r"one shape.*\(64,\) and \(1, 8, 8\)"),
        ({"test": TEST[..., :6]}, InvalidTensorError, r"one shape.*8, 6\).*--channels"),
        ({"test": TEST * torch.nan}, InvalidTensorError, "must be finite"),
        ({"auxiliary": 255 * OWN}, InvalidTensorError, r"auxiliary queries must lie in \[0, 1\]"),
        ({"test": TEST - 0.5}, InvalidTensorError, r"test queries must lie in \[0, 1\]"),
        (
            {"auxiliary": OWN[1:]},
            InvalidOptionError,
            r"at least 200 auxiliary rows, but got 199\. With too",
        ),
        ({"test": TEST[:49]}, InvalidOptionError, "at least 50 test rows, but got 49"),
        ({"labels": LABELS[:-1]}, InvalidTensorError, r"one per row, \(60,\).*\(59,\)"),
        ({"labels": LABELS[:, None]}, InvalidTensorError, r"shape \(60, 1\)"),
        ({"labels": LABELS.float()}, InvalidTensorError, "must be int64.*float32"),
        (
            {"release": LABEL_ONLY, "guarded": never},
            InvalidOptionError,
            "either a defense or a guarded endpoint",
        ),
        ({"test": OWN[:60]}, OverlappingSplitsError, "share 60 images"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_any_query(options, error, message):
    with pytest.raises(error, match=message):
        audited(**options)


def test_clean_scores_of_an_estimator_with_a_threshold_are_those_of_an_open_api():
    """Labels are what ``predict`` says; an API without a guard answers with the probabilities."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    (rows, labels), (test, true) = (
        (images.flatten(1), labels) for images, labels in (blobs(200, 0), blobs(60, 1))
    )
    rows, test = (part + 0.4 * torch.rand(part.shape) for part in (rows, test))
    rows, test = rows / 1.4, test / 1.4
    model = selection.FixedThresholdClassifier(
        linear_model.LogisticRegression(C=0.01), threshold=0.05, pos_label=1
    ).fit(rows.numpy(), labels.numpy() == 0)
    target = estimator_target(model, batch_size=99, name="the model")
    audited = AuditTarget(target, rows, test, (true == 0).long())
    answered = ask(audited, Identity())
    raw, own = model.predict_proba(test.numpy()), torch.from_numpy(model.predict(test.numpy()))
    assert (raw.argmax(1) != own.numpy()).any()
    torch.testing.assert_close(answered.clean_test, torch.from_numpy(raw).float())
    assert torch.equal(answered.trace.clean_logits.argmax(-1), own.long())
    assert answered.label_changes == 0
    clean = torch.from_numpy(model.predict_proba(rows.numpy())).float()
    torch.testing.assert_close(answered.clean, clean)
    accuracy = float((own == (true == 0)).double().mean())
    assert understand(audited).accuracy == accuracy
    assert measures.utility(audited, answered, Identity())["clean"]["top_1"] == accuracy


def test_peak_memory_is_measured_where_the_system_tells_it(monkeypatch):
    def peak():
        cost = measures.utility(found, ask(found, Identity()), Identity())["cost"]
        return cost["peak_memory_mebibytes"]

    found = subject_of(black_box())
    if importlib.util.find_spec("resource"):
        assert peak() > 50
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak() is None


def test_tables_that_share_records_are_said_to_share_records():
    with pytest.raises(OverlappingSplitsError, match="share 60 records"):
        audited(auxiliary=OWN.flatten(1), test=OWN[:60].flatten(1))


def test_what_can_be_audited_is_not_refused():
    assert audited(labels=LABELS).release.defense == "none"
    assert audited(test=TEST[:LEAST_TEST]).labels is None
    assert audited(guarded=never).guarded is never
    assert audited(release=LABEL_ONLY).release is LABEL_ONLY


def asked(target, defense=None, **options):
    return ask(subject_of(target, **options), Identity() if defense is None else defense)


def flags_of(found):
    return {flag.name: flag.detail for flag in found.flags}


def test_a_stable_model_raises_no_flag():
    found = asked(black_box())
    assert flags_of(found) == {}
    assert found.random is False


def test_answers_are_those_of_the_model_and_its_defense():
    audited = subject_of()
    found = ask(audited, Temperature(temperature=3.0))
    own = release(Scores()(audited.auxiliary))
    assert torch.allclose(found.clean, own)
    assert torch.allclose(found.released, release(Scores()(audited.auxiliary) / 3), atol=1e-6)
    assert torch.allclose(found.trace.clean_logits, Scores()(audited.test))
    assert torch.allclose(found.trace.released, release(Scores()(audited.test) / 3), atol=1e-6)
    again = access(audited, Temperature(temperature=3.0), undeclared=found.undeclared)
    assert torch.equal(again.query(audited.test, 2)[1], found.trace.released)


def trembling(seed, size):
    """Answer with noise of that L1 size on top, other noise each time."""
    generator = np.random.default_rng(seed)

    def answer(images):
        moved = answers(images)
        moved[:, 0] += size * generator.random(len(moved))
        return moved / moved.sum(1, keepdims=True)

    return answer


def test_a_model_that_answers_otherwise_each_time_is_random():
    audited = subject_of(black_box(trembling(0, 0.02)))
    found = ask(audited, Identity())
    assert (found.random, found.undeclared) == (True, True)
    # Its defense says that it answers always the same: who believed it would be told one twice.
    several = access(audited, Identity(), undeclared=True).query(audited.test, 2)
    assert not torch.allclose(several[0], several[1], atol=1e-4)
    assert "averages" in flags_of(found)["unstable-answers"]
    assert len(found.flags) == 1  # a random answer differs with the batch, too: said once


def test_the_noise_of_rounding_is_not_random():
    found = asked(black_box(trembling(0, SAME / 10)))
    assert found.random is False
    assert found.flags == ()


def test_a_defense_that_says_so_is_random_even_if_no_probe_sees_it():
    slight = GaussianNoise(standard_deviation=1e-6, generator=torch.Generator().manual_seed(0))
    found = asked(None, slight)
    assert (found.random, found.undeclared) == (True, False)
    assert set(flags_of(found)) == {"unstable-answers"}


def test_who_asks_again_is_answered_anew():
    noise = GaussianNoise(standard_deviation=1.0, generator=torch.Generator().manual_seed(1))
    audited = subject_of()
    several = access(audited, noise, undeclared=False).query(audited.test, 3)
    assert several.shape == (3, len(audited.test), CLASSES)
    assert not torch.allclose(several[0], several[1], atol=1e-3)


def shifted_by_mean(images):
    """Answer with the batch's mean mixed in, as batch normalisation in training mode does."""
    own = answers(images)
    return 0.5 * own + 0.5 * own.mean(0)


def shifted_by_place(images):
    """Answer the first of a batch otherwise."""
    own = answers(images)
    own[0] = own[0][::-1]
    return own


def turned_when_alone(images):
    """Answer a single query otherwise, as a forgotten axis makes it."""
    own = answers(images)
    return own[:, ::-1].copy() if len(own) == 1 else own


@looped("answer", [shifted_by_mean, shifted_by_place, turned_when_alone])
def test_answers_that_depend_on_the_batch_are_flagged_but_are_not_random(answer):
    found = asked(black_box(answer))
    assert found.random is False
    assert "share a batch" in flags_of(found)["unstable-answers"]


def test_exact_ties_are_flagged_with_their_share():
    assert flags_of(asked(None, LabelOnly()))["ties-or-zeros"] == (
        "100 % of released vectors hold two entries that are exactly equal"
    )


class Extreme(nn.Module):
    """Logits so far apart that float32 has no number for the smallest probability."""

    def forward(self, images):
        scores = Scores()(images)
        far = torch.tensor([0.0, 0.0, -200.0])
        return torch.where(images.flatten(1).mean(-1, keepdim=True) > 0.2, scores + far, scores)


def test_an_exact_zero_of_a_part_of_the_rows_is_counted():
    audited = subject_of(TorchTarget(Extreme()))
    found = ask(audited, Identity())
    share = float((found.trace.released == 0).any(-1).double().mean())
    assert 0 < share < 1
    assert flags_of(found)["ties-or-zeros"] == (
        f"{100 * share:.0f} % of released vectors hold an exact zero"
    )


@looped("value", [CLASSES, -1])
def test_labels_of_another_model_are_refused_by_its_first_answers(value):
    labels = LABELS.clone()
    labels[4:6] = value
    audited = AuditTarget(black_box(), OWN, TEST, labels)
    with pytest.raises(InvalidTensorError, match=r"must lie in \[0, 3\).* 2 of 60 do not"):
        ask(audited, Identity())


def test_a_model_with_a_gradient_can_be_followed_through_its_defense():
    audited = subject_of()
    found = ask(audited, Temperature(temperature=2.0))
    images = audited.test[:3].clone().requires_grad_()
    followed = access(
        audited, Temperature(temperature=2.0), undeclared=False
    ).differentiable_logits(images)
    assert torch.allclose(release(followed), found.trace.released[:3], atol=1e-6)
    followed.sum().backward()
    assert images.grad.abs().sum() > 0
    assert has_gradient(audited)
    assert not has_gradient(subject_of(black_box()))
    assert (
        access(subject_of(black_box()), Identity(), undeclared=False).differentiable_logits is None
    )


class TestGuardedEndpoint:
    """Defended answers that come from elsewhere."""

    @pytest.fixture
    def found(self):
        audited = subject_of(guarded=black_box(self.guarded))
        return audited, ask(audited, LabelOnly())

    @staticmethod
    def guarded(images):
        return release(Scores()(torch.as_tensor(images).float()) / 4).numpy()

    def test_its_answers_are_what_was_released_and_the_models_are_the_clean_ones(self, found):
        audited, got = found
        told = torch.from_numpy(self.guarded(audited.auxiliary))
        assert torch.allclose(got.released, told, atol=1e-6)
        assert torch.allclose(got.clean, release(Scores()(audited.auxiliary)))
        assert torch.allclose(got.trace.clean_logits, Scores()(audited.test))
        told = torch.from_numpy(self.guarded(audited.test))
        assert torch.allclose(got.trace.released, told, atol=1e-6)

    def test_nobody_follows_it_and_who_asks_again_asks_it(self, found):
        audited, got = found
        again = access(audited, LabelOnly(), undeclared=got.undeclared)
        assert again.differentiable_logits is None
        assert not has_gradient(audited)
        assert got.flags == ()
        assert torch.allclose(again.query(audited.test, 2)[1], got.trace.released)

    def test_a_random_one_is_seen_to_be_so(self):
        audited = subject_of(guarded=black_box(trembling(3, 0.1)))
        got = ask(audited, Identity())
        assert (got.random, got.undeclared) == (True, False)
        several = access(audited, Identity(), undeclared=False).query(audited.test, 2)
        assert not torch.allclose(several[0], several[1], atol=1e-4)

    def test_its_zeros_and_ties_are_seen_as_clients_see_them(self):
        def rough(images):
            told = np.full((len(images), CLASSES), 0.5)
            told[np.arange(len(images)), np.arange(len(images)) % CLASSES] = 0
            return told

        audited = subject_of(guarded=black_box(rough))
        got = ask(audited, Identity())
        assert flags_of(got)["ties-or-zeros"] == (
            "100 % of released vectors hold an exact zero; "
            "100 % of released vectors hold two entries that are exactly equal"
        )
        assert label_changes(got.trace.clean_logits, got.trace.released) == len(audited.test)

    def test_one_of_fewer_classes_is_refused_by_its_first_answers(self):
        def fewer(images):
            return np.full((len(images), 2), 0.5)

        audited = subject_of(guarded=black_box(fewer))
        with pytest.raises(InvalidTensorError, match="model's 3 classes, but answers with 2"):
            ask(audited, Identity())


def test_a_subject_stays_as_it_was():
    audited = subject_of()
    before = dataclasses.replace(audited, test=audited.test.clone())
    ask(audited, Identity())
    assert torch.equal(audited.test, before.test)
