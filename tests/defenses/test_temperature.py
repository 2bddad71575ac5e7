"""Temperature: a scale, which two of them undo."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses.temperature import Temperature
from rows import leads, random_rows, score_rows


@looped("temperature", [0.3, 1.0, 7.0])
def test_probabilities_are_those_of_divided_logits(temperature):
    logits = random_rows(1, 20, 6, torch.float64, 3)
    told = Temperature(temperature=temperature)(logits)
    torch.testing.assert_close(told.softmax(-1), (logits / temperature).softmax(-1))


def test_a_temperature_and_its_reciprocal_undo_each_other():
    logits = random_rows(1, 20, 6, torch.float64, 3)
    back = Temperature(temperature=0.25)(Temperature(temperature=4.0)(logits))
    torch.testing.assert_close(back.softmax(-1), logits.softmax(-1))


@given(score_rows(), st.sampled_from([1e-300, 1e-3, 1e3, 1e300]))
def test_label_leads_and_nothing_overflows_at_any_temperature(logits, temperature):
    told = Temperature(temperature=temperature)(logits)
    assert torch.isfinite(told).all()
    assert leads(told, logits.argmax(-1))


def test_at_a_low_temperature_the_label_has_it_all():
    logits = torch.tensor([[2.0, 3.0, 1.0], [-3.0, -1.0, -2.0]])
    told = Temperature(temperature=1e-300)(logits)
    assert (told.amax(-1) == 0).all()
    assert torch.equal(told.softmax(-1), torch.tensor([[0.0, 1, 0], [0, 1, 0]]))
