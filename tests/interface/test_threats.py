"""One audit of three threats: one record, one page, one budget, checked before any work."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import oneway
from auditing.audits import CLASSES, TINY, blobs, quickly
from oneway.auditing import AuditRecord, AuditSettings, ModelAudit, StealingSettings
from oneway.auditing.membership import MembershipAudit, MembershipSettings
from oneway.auditing.stealing import CLEAN, LABEL, RELEASED, StealingAudit
from oneway.errors import InvalidOptionError, OverlappingSplitsError, UnknownNameError
from oneway.evaluation import Store
from oneway.evaluation.membership import ALWAYS
from oneway.interface import AuditSource, ThreatSettings, run_audit
from oneway.interface.threats import parse_threats
from oneway.report.threats import closed_gaps, headlines, overall
from report.page.reading import assert_stands_alone

THREATS = ("inversion", "membership", "stealing")
ROWS = 60


@pytest.fixture(scope="module")
def data():
    """Rows for each part; each part is of its own seed, so that no two share a row."""
    sizes = {"attacker_data": 300, "queries": 60, "members": ROWS, "non_members": ROWS}
    return {
        name: tuple(each.numpy() for each in blobs(rows, seed))
        for seed, (name, rows) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()


@pytest.fixture(scope="module")
def audit(data, model, tmp_path_factory):
    """Audit three threats with tiny attackers."""
    cache = tmp_path_factory.mktemp("cache")
    sizes = {
        "threats": THREATS,
        "seeds": 1,
        "controls": False,
        "membership": MembershipSettings(references=2, copies=0, train=lambda *_: model),
        "stealing": StealingSettings(budgets=(60,), steps=2),
    }
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        kept = {name: getattr(TINY, name) for name in ("widths", "input_transforms", "repeats")}

        def for_rows(_, **others):
            return AuditSettings(first_epochs=4, most_epochs=4, **kept, **others)

        patch.setattr(AuditSettings, "for_rows", for_rows)
        yield lambda **changes: oneway.audit(
            model, outputs="logits", **{"cache": cache, **sizes, **data, **changes}
        )


@pytest.fixture(scope="module")
def audit_source(data, model):
    rows = {name: data[name] for name in ("members", "non_members")}
    return AuditSource((model, {"outputs": "logits"}), data["attacker_data"], **rows)


@pytest.fixture(scope="module")
def guard(model):
    return oneway.fit_codebook(model, blobs(400, 9)[0], outputs="logits", min_members=40)


@pytest.fixture(scope="module")
def result(audit, guard):
    return audit(guard=guard)


def test_one_audit_has_one_record_and_one_page_with_three_verdicts(result, guard, tmp_path):
    record = result.record
    assert record.threats == THREATS
    assert record.certificate == guard.certificate
    assert set(record.seconds) == set(result.gaps) == set(THREATS)
    result.write(tmp_path)
    values = json.loads((tmp_path / "audit.json").read_text())
    assert AuditRecord.from_json(values, "here") == record
    page = assert_stands_alone((tmp_path / "report.html").read_text())
    [cards] = page.every("section", id="threats")
    shown = cards.text()
    for threat, judged in headlines(record).items():
        assert f"{threat.capitalize()}: {judged.sentence}" in str(result)
        assert threat.capitalize() in shown
        assert judged.stamp in shown
        assert page.every("section", id=threat)
    assert shown.count("labels alone (the floor)") == 3
    assert "Certificate of the guard" in page.every("body")[0].text()
    levels = [int(one.name[1]) for one in page.every() if one.name in ("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_an_audit_that_is_interrupted_goes_on_and_finds_the_same(
    audit, guard, result, tmp_path, monkeypatch
):
    asked = []

    def run(audited, case, *others):
        asked.append(case.release)
        if asked == [CLEAN, LABEL, RELEASED]:
            raise KeyboardInterrupt
        return steal(audited, case, *others)

    steal = StealingAudit._run
    monkeypatch.setattr(StealingAudit, "_run", run)
    sizes = {"threats": THREATS[1:], "guard": guard, "cache": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        audit(**sizes)
    record = audit(**sizes).record
    assert asked[3:] == [RELEASED]  # the other two are in the cache
    assert record.membership.attacks == result.record.membership.attacks
    assert record.stealing.budgets == result.record.stealing.budgets


def test_the_worst_threat_gives_the_page_its_verdict(result):
    tones = ("void", "bad", "mixed", "good")
    worst = min(headlines(result.record).values(), key=lambda each: tones.index(each.tone))
    assert overall(result.record).tone == worst.tone


def test_every_threat_must_keep_the_gap_that_is_asked_for(result):
    missed = [line.split(" must be")[0] for line in result.missed(1.5) if " must be" in line]
    expected = [
        {"inversion": "G", "membership": "G_mem", "stealing": "G_steal"}[threat]
        for threat, gap in closed_gaps(result.record).items()
        if threat == "inversion" or gap.failed or gap.claimed is not None
    ]
    assert "G_mem" in expected  # two reference models are too few for a claim
    assert missed == expected
    assert result.gap is None


def test_data_of_every_threat_is_checked_before_any_work(audit, data, monkeypatch):
    def never(*_, **__):
        pytest.fail("it began")

    for kind in (MembershipAudit, ModelAudit):
        monkeypatch.setattr(kind, "__init__", never)
    for changes, error, message in (
        ({"queries": None}, InvalidOptionError, "--queries must be given"),
        ({"queries": data["attacker_data"]}, OverlappingSplitsError, "share"),
        ({"non_members": data["members"]}, OverlappingSplitsError, "share 60"),
        ({"members": data["attacker_data"]}, OverlappingSplitsError, "share 300"),
        ({"members": data["members"][0]}, InvalidOptionError, "must have classes"),
        ({"stealing": StealingSettings(budgets=(301,))}, InvalidOptionError, "301 queries"),
        ({"public": np.zeros((60, 4, 4))}, InvalidOptionError, "public inputs must have"),
    ):
        with pytest.raises(error, match=message):
            audit(**changes)


def test_threats_may_be_one_text_with_commas(audit):
    assert parse_threats("stealing, inversion,stealing") == ("stealing", "inversion")
    assert parse_threats(THREATS) == THREATS
    with pytest.raises(InvalidOptionError, match="--members must be given"):
        audit(threats="membership", members=None, stealing=None)
    for wrong in ("", "inversion,", [None], ["membershp"]):
        with pytest.raises(UnknownNameError, match="unknown threat"):
            audit(threats=wrong)


def test_a_cluster_is_for_inversion_alone(audit_source):
    with pytest.raises(InvalidOptionError, match="--executor ray is for the threat 'inversion'"):
        run_audit(audit_source, ThreatSettings(("membership",)), executor="ray")


def test_time_is_shared_and_what_a_threat_leaves_goes_to_the_next(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("oneway.interface.threats.time.perf_counter", lambda: now[0])
    shares = ThreatSettings(THREATS, minutes=3).shares()
    assert next(shares) == ("membership", 60)
    now[0] += 20
    assert next(shares) == ("stealing", 80)
    now[0] += 130
    assert next(shares) == ("inversion", 30)
    now[0] += 90
    late = ThreatSettings(("membership", "inversion"), minutes=1).shares()
    next(late)
    now[0] += 90
    assert 0 < next(late)[1] < 1
    assert list(ThreatSettings(("stealing",)).shares()) == [("stealing", float("inf"))]


def test_a_membership_audit_that_is_late_keeps_cheap_attackers_on_all_releases(
    audit_source, tmp_path, monkeypatch
):
    rows = audit_source.open_members()
    settings = MembershipSettings(references=4, copies=0)
    audit = MembershipAudit(rows.target, rows.rows, settings, Store(tmp_path), seconds=0.0)
    monkeypatch.setattr(audit.deadline.__class__, "left", lambda _: -1.0)
    record = audit.run(rows.release)
    assert record.references == 0
    assert record.controls == ()
    assert {"4 of 4 reference models", "the controls"} <= set(record.left_out)
    assert "the attacker quantile-regression" in record.left_out
    by_release = {}
    for each in record.attacks:
        by_release.setdefault(each.release, set()).add(each.attack)
    assert by_release["clean"] == by_release["release"] <= set(ALWAYS)
