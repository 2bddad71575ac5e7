"""An attack is one class and one line of the registry: everything else finds it by itself."""

import re

import pytest

from auditing import audits
from benchmark.small import NONE, experiment, spec_of
from laws import looped
from oneway.attacks import ATTACKS, Attack, InversionAttack, Retrained, Workload, inversion_attacks
from oneway.auditing import AuditSettings
from oneway.auditing.plan import AuditPlan, Costs, estimate_seconds, make_plan
from oneway.benchmark import count_stages
from oneway.contracts import Reconstructor
from oneway.errors import UnknownNameError
from oneway.evaluation import ReleaseSpec
from oneway.evaluation.settings import AttackerSpec
from oneway.report.audit import attackers_table
from oneway.report.page.audit import audit_page
from oneway.report.page.render import render


class Doubled(InversionAttack):
    """Train a decoder twice on released scores; answer with the mean of both."""

    name = "doubled"
    knows = "released scores, read by two decoders"
    left_out = "early"
    improves_on = "retrained"

    def model_selections(self, workload):  # noqa: ARG002
        return 2

    def extra_queries(self, workload):
        return workload.test

    def run(self, knowledge, train):
        first, second = (
            train(knowledge.released, knowledge.images, knowledge.held_out) for _ in range(2)
        )
        return {
            "mean of two": Reconstructor(lambda rows: (first(rows[0]) + second(rows[0])) / 2),
        }


class Membership(Attack):
    name = "membership"
    threat = "membership"
    knows = "scores of rows that may have been trained on"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(ATTACKS, "doubled", Doubled())


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "doubled", Doubled())
        audits.quickly(patch)
        stages = []
        audited = audits.subject_of(release=ReleaseSpec("rounded", "rounding", {"decimals": 1}))
        report = lambda stage, share: stages.append((stage, share))  # noqa: E731
        outcome = audits.audit(audited, tmp_path_factory.mktemp("store"), report=report)
    return outcome, stages


def plan(attacks):
    return AuditPlan(
        attacks=attacks,
        input_transforms=("standardized",),
        widths=(16,),
        repeats=(10,),
        most_epochs=6,
        controls=(),
        seeds=1,
        auxiliary=2000,
    )


COSTS = Costs(
    {("standardized", 16): 1e-3},
    asking=1e-4,
    single=1e-3,
    solving=1e-10,
    auxiliary=2000,
    test=500,
    entries=64,
)


@pytest.mark.usefixtures("registered")
def test_it_is_planned_timed_and_left_out_as_it_declares():
    without, whole = plan(("label-only", "retrained")), plan(("label-only", "retrained", "doubled"))
    selection = estimate_seconds(plan(("retrained", "static")), COSTS) - estimate_seconds(
        plan(("static",)), COSTS
    )
    more = estimate_seconds(whole, COSTS) - estimate_seconds(without, COSTS)
    assert more == pytest.approx(2 * selection + COSTS.test * COSTS.asking)
    between = (estimate_seconds(without, COSTS) + estimate_seconds(whole, COSTS)) / 120
    short = make_plan(whole, COSTS, minutes=between)
    assert "doubled" not in short.attacks
    assert short.left_out == ("the doubled attacker",)
    assert make_plan(whole, COSTS, minutes=None).left_out == ()


def test_an_audit_runs_grades_and_reports_it(outcome):
    found, stages = outcome
    record = found.record
    assert "doubled" in record.plan.attacks
    assert record.reconstructors["doubled"] == "mean of two"
    assert 0 < record.errors["doubled"] < record.baselines.prior
    # It takes part in the attack on clean scores, too.
    assert {stage for stage, _ in stages if "clean: doubled" in stage}
    assert record.baselines.clean <= record.errors["doubled"] * 2
    assert "doubled" in set(found.queries["attack"])


@pytest.mark.usefixtures("registered")
def test_tables_and_pages_name_it_and_say_what_it_knows(outcome):
    record, pictures = outcome[0].record, outcome[0].pictures
    [row] = [row for row in attackers_table(record).cells() if row[0].startswith("doubled")]
    assert Doubled.knows in row
    page = re.sub(r"\s+", " ", render(audit_page(audits.whole(record), pictures)))
    assert f"doubled: {Doubled.knows}" in page


@pytest.mark.usefixtures("registered")
def test_an_experiment_counts_its_stages_and_grades_it(tmp_path):
    names = ("label-only", "static", "retrained")
    stages = {}
    release = ReleaseSpec("none", "none")
    spec = spec_of(release, names=(*names, "doubled"))
    assert count_stages(spec) == count_stages(spec_of(release, names=names)) + 2
    [outcome] = experiment(tmp_path, spec, report=stages.__setitem__).run()
    assert len(stages) == count_stages(spec)
    assert outcome.record.errors["doubled"] > 0


def test_a_name_that_is_not_registered_is_refused():
    with pytest.raises(UnknownNameError, match="'doubled'"):
        AttackerSpec(names=("doubled",))


def test_an_attack_of_another_threat_takes_no_part_in_inversion(monkeypatch):
    monkeypatch.setitem(ATTACKS, "membership", Membership())
    assert "membership" not in inversion_attacks()
    assert "membership" not in AttackerSpec().names
    with pytest.raises(UnknownNameError, match="'membership'"):
        spec_of(NONE, names=("label-only", "static", "membership"))


@looped("name", list(ATTACKS))
def test_an_attack_declares_all_that_others_ask(name):
    attack = ATTACKS[name]
    assert attack.name == name
    assert re.fullmatch(r"[a-z][^.\n]{10,}", attack.knows)
    workload = Workload(100, 50, (2, 3))
    assert attack.extra_queries(workload) >= 0
    if name in inversion_attacks():
        assert attack.threat == "inversion"
        assert attack.left_out in (None, "early", "late")
        assert attack.improves_on in (None, *inversion_attacks())
        assert attack.model_selections(workload) >= 0
    else:
        assert attack.threat == "identification"
    assert attack.applies(attack.requires)
    for field in attack.requires:
        assert not attack.applies(attack.requires - {field})


def test_the_baselines_are_never_left_out():
    assert {name for name, attack in inversion_attacks().items() if attack.left_out is None} >= {
        "label-only",
        "static",
        Retrained.name,
    }
    assert AuditSettings().seeds == 3
