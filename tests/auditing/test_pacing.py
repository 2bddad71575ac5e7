"""What is measured before an audit is planned."""

import pytest
import torch

from auditing.audits import Scores, subject_of
from oneway.auditing import CONTROLS, AuditSettings, pacing
from oneway.auditing.audit_target import ask
from oneway.auditing.pacing import measure_costs
from oneway.defenses.identity import Identity
from oneway.evaluation.defenders import FittedDefense
from oneway.targets import TorchTarget


@pytest.fixture
def answered(monkeypatch):
    """An audit whose model counts the queries that it is asked, and no time to lose."""
    monkeypatch.setattr(pacing, "TIMED_SECONDS", 0)
    asked = []

    class Counted(Scores):
        def forward(self, images):
            asked.append(len(images))
            return super().forward(images)

    audited = subject_of(TorchTarget(Counted()))
    fitted = FittedDefense(Identity(), lambda _: Identity(), 0.0, {})
    answers = ask(audited, Identity())
    asked.clear()
    return audited, answers, fitted, asked


def test_every_decoder_that_may_be_trained_has_a_measured_price(answered):
    audited, answers, fitted, asked = answered
    settings = AuditSettings(input_transforms=("faithful",), widths=(2, 4), controls=False)
    state = torch.get_rng_state()
    costs = measure_costs(audited, settings, answers, fitted, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert costs.training.keys() == {("faithful", 2), ("faithful", 4)}
    assert all(price > 0 for price in costs.training.values())
    assert (costs.auxiliary, costs.test) == (len(audited.auxiliary), len(audited.test))
    # One batch of queries and a single query are timed.
    assert asked == [64, 1]
    assert costs.asking > 0
    assert costs.single > 0
    assert costs.solving > 0
    assert costs.entries == audited.test[0].numel()
    # Controls name input transforms of their own.
    more = measure_costs(
        audited, AuditSettings(input_transforms=("faithful",), widths=(2,)), answers, fitted, 0
    )
    controls = {control.input_transform for control in CONTROLS.values()} - {None}
    assert more.training.keys() == {(name, 2) for name in controls | {"faithful"}}
