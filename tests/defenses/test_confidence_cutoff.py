"""High-confidence cut-off: no label above the threshold, the others in proportion."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses.confidence_cutoff import HighConfidenceCutoff
from rows import leads, random_rows, score_rows

NARROW = (torch.float32, torch.float64)


@given(score_rows(NARROW), st.floats(0.5, 0.999))
@example(torch.tensor([[0, 0, 0, 0, 0, 1.4e14]]), 0.5)
def test_no_label_exceeds_the_threshold_and_every_label_leads(logits, threshold):
    told = HighConfidenceCutoff(threshold=threshold)(logits)
    assert leads(told, logits.argmax(-1))
    assert (told.double().softmax(-1).amax(-1) <= threshold + 1e-6).all()


@looped("threshold", [0.5, 0.8])
def test_what_is_cut_is_shared_in_proportion_and_low_rows_stay(threshold):
    logits = random_rows(1, 60, 5, torch.float64, 2)
    clean = logits.softmax(-1)
    top, index = clean.max(-1, keepdim=True)
    assert (top > threshold).any()
    assert (top <= threshold).any()
    cut = (clean * (1 - threshold) / (1 - top)).scatter(-1, index, threshold)
    expected = torch.where(top > threshold, cut, clean)
    told = HighConfidenceCutoff(threshold=threshold)(logits).softmax(-1)
    torch.testing.assert_close(told, expected)
