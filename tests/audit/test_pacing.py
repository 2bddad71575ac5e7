"""How long decoders are trained, and what is measured before an audit is planned."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.audits import Scores, subject_of
from laws import looped
from oneway.audit import CONTROLS, AuditSettings, pacing
from oneway.audit.audit_target import ask
from oneway.audit.pacing import GAIN, find_plateau, measure_costs
from oneway.defenses.identity import Identity
from oneway.evaluation.defenders import FittedDefense
from oneway.targets import TorchTarget

FEWER, MORE = 1 - 0.5 * GAIN, 1 - 2 * GAIN
"""What is left of an error at twice the epochs: no gain, and a gain."""


def searched(first, most, factors, late=()):
    """Search with errors that fall by these factors at each doubling, score by score.

    Args:
        first: Epochs to begin with.
        most: The most epochs.
        factors: By score, what is left of its error after each doubling.
        late: What is answered when asked for the time; no to the rest.

    Returns:
        What was found, and the epochs that decoders were trained.
    """
    trained, clock = [], itertools.chain(late, itertools.repeat(False))

    def held_out_error(name, epochs):
        trained.append(epochs)
        doublings = (epochs // first).bit_length() - 1
        error = 0.1
        for factor in factors[name][:doublings]:
            error *= factor
        return error

    found = find_plateau(first, most, factors, held_out_error, lambda: next(clock))
    return found, trained


@looped(("most", "reached"), [(3, 3), (5, 3), (6, 6), (11, 6), (12, 12)])
def test_decoders_that_go_on_gaining_are_trained_no_longer_than_the_most_epochs(most, reached):
    found, trained = searched(3, most, {"clean": [MORE] * 9})
    assert found == (reached, False)
    assert max(trained, default=0) <= most


FACTORS = st.lists(st.sampled_from([FEWER, MORE, 1.0, 1.2, 0.3]), min_size=5, max_size=5)


@given(st.integers(1, 50), st.integers(0, 4), FACTORS, FACTORS)
def test_the_search_ends_where_twice_the_epochs_gain_on_no_score(first, doublings, clean, released):
    most = first * 2**doublings
    (epochs, plateau), trained = searched(first, most, {"clean": clean, "released": released})
    gains = [min(pair) <= MORE for pair in zip(clean, released, strict=True)]
    ends = next((place for place, gained in enumerate(gains) if not gained), len(gains))
    assert epochs == first * 2 ** min(ends, doublings)
    assert plateau is (ends < doublings)
    assert max(trained, default=first) <= most


def test_a_search_that_is_late_keeps_the_epochs_that_gained_and_shows_no_plateau():
    for turns in range(3):
        late = [False] * turns + [True]
        found, _ = searched(2, 64, {"clean": [MORE] * 9}, late)
        assert found == (2 * 2 ** (turns + 1), False)
    # Who is late where nothing is gained any more has found the plateau even so.
    assert searched(2, 64, {"clean": [FEWER] * 9}, [True])[0] == (2, True)


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
    # Controls name input transforms of their own.
    more = measure_costs(
        audited, AuditSettings(input_transforms=("faithful",), widths=(2,)), answers, fitted, 0
    )
    controls = {control.input_transform for control in CONTROLS.values()}
    assert more.training.keys() == {(name, 2) for name in controls | {"faithful"}}
