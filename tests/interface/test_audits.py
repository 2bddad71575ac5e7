"""`oneway.audit` attacks what stands before clients, whatever form it has, and says what leaks."""

import functools
import json
import math

import numpy as np
import pytest
import torch

import oneway
from auditing.audits import TINY, Scores, blobs, quickly
from oneway.auditing import AuditSettings
from oneway.defenses.rounding import Rounding
from oneway.errors import GapTooSmallError, InvalidOptionError
from oneway.evaluation import ReleaseSpec
from oneway.interface import AuditSource


@pytest.fixture(scope="module")
def quick():
    """Audits of one small decoder."""
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        kept = {name: getattr(TINY, name) for name in ("widths", "input_transforms", "repeats")}
        small = functools.partial(AuditSettings, first_epochs=4, most_epochs=4, **kept)
        patch.setattr(AuditSettings, "for_rows", lambda _, **others: small(**others))
        yield


OWN, TEST = blobs(300, 0), blobs(100, 1)


class Own:
    """Somebody's own defense: it releases the label alone."""

    requires_input, keeps_label, deterministic = False, True, True

    def __call__(self, logits, images=None):  # noqa: ARG002
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)


@pytest.fixture(scope="module")
def audit(quick, tmp_path_factory):  # noqa: ARG001
    cache = tmp_path_factory.mktemp("cache")

    def run(guard, **options):
        return oneway.audit(
            Scores(),
            attacker_data=OWN[0],
            queries=(TEST[0].numpy(), TEST[1].numpy()),
            guard=guard,
            outputs="logits",
            seeds=1,
            controls=False,
            cache=cache,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def guard():
    return oneway.fit_codebook(Scores(), blobs(400, 2)[0], outputs="logits", min_members=40)


@pytest.fixture(scope="module")
def guarded(audit, guard):
    return audit(guard)


def test_the_guard_that_is_given_is_the_one_that_is_audited(audit, guard, guarded, tmp_path):
    record = guarded.record.inversion
    assert (record.defense, record.guard_version) == ("codebook", guard.state.version)
    released = guard.probabilities(Scores()(TEST[0]))
    l1 = float((released - Scores()(TEST[0]).softmax(-1)).abs().sum(-1).mean())
    assert record.utility["l1_mean"] == pytest.approx(l1, rel=1e-4)
    guard.save(tmp_path / "guard.safetensors")
    again = audit(str(tmp_path / "guard.safetensors"))
    assert again.record.inversion.errors == record.errors
    bare = audit(None)
    assert bare.record.inversion.defense == "none"
    assert bare.gap == pytest.approx(0, abs=1e-6)
    assert audit(Own()).record.inversion.adaptive_error > bare.record.inversion.adaptive_error


def test_a_result_says_what_leaks_in_every_form(guarded, tmp_path):
    record = guarded.record.inversion
    assert guarded.verdict == str(guarded)
    assert f"{guarded.gap:.2f}"[:3] in guarded.verdict or record.failed
    assert json.loads(guarded.to_json()) == guarded.record.to_json()
    assert set(guarded.per_query["query"]) == set(range(100))
    page = guarded.report(tmp_path / "page.html").read_text()
    assert guarded.verdict.split(" (")[0] in " ".join(page.split())
    assert "<iframe srcdoc=" in guarded._repr_html_()
    assert guarded.flags == record.flags
    if guarded.interval is not None:
        assert guarded.interval.low <= guarded.gap <= guarded.interval.high


def test_a_gap_that_is_missed_fails_a_test_suite_with_the_verdict(guarded):
    explained = {flag.name for flag in guarded.flags} <= {"too-few-seeds", "attack-failed"}
    if explained:
        guarded.assert_gap(-100)
    for kind in (GapTooSmallError, AssertionError):
        with pytest.raises(kind, match=r"G must be at least 1, but") as missed:
            guarded.assert_gap(1.0)
    assert str(missed.value).splitlines()[-1] == guarded.verdict == repr(guarded)[14:-1]
    for least in (math.nan, math.inf, 90, "0.9"):  # a percentage, missing, or of the environment
        with pytest.raises(InvalidOptionError, match="least must be a number of at most 1"):
            guarded.assert_gap(least)


def test_two_guards_at_once_are_refused():
    model = (Scores(), {"outputs": "logits"})
    rounding = ReleaseSpec("rounding", "rounding", {"decimals": 1})
    source = AuditSource(model, OWN[0], TEST[0], rounding, guard=Rounding(decimals=2))
    with pytest.raises(InvalidOptionError, match="one guard is audited, but several"):
        source.open()
    assert np.isfinite(TEST[0].numpy()).all()
