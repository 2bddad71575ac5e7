"""HAMP's half at test time: the order is the query's, the numbers are a random input's."""

import pytest
import torch
from torch import nn

from oneway.contracts import TrainingData
from oneway.defenses.hamp import Hamp
from oneway.errors import InvalidOptionError
from rows import random_rows
from surrogates import random_images


class Brightness(nn.Module):
    """A target whose logits are the first pixels, scaled."""

    def forward(self, images):
        return 6 * images.flatten(1)[:, :4]


def trained(target=None, inputs=300):
    material = TrainingData(target, None, None, random_images(1, 3), torch.zeros(3, 4))
    generator = torch.Generator().manual_seed(0)
    return Hamp.train(material, generator=generator, inputs=inputs)


def test_answers_are_the_classifiers_scores_of_random_inputs_in_the_querys_order():
    target = Brightness()
    state, facts = trained(target)
    logits = random_rows(2, 50, 4, torch.float64, 3)
    guard = Hamp(state, generator=torch.Generator().manual_seed(1))
    draws = guard.draws(logits, None, 40).softmax(-1)
    assert torch.equal(draws.argsort(-1), logits.argsort(-1).expand(draws.shape))
    numbers = draws.sort(-1, descending=True).values
    generator = torch.Generator().manual_seed(0)
    asked = target(torch.rand(300, *random_images(1, 1).shape[1:], generator=generator))
    known = asked.double().softmax(-1).sort(-1, descending=True).values
    assert torch.cdist(numbers.flatten(0, 1), known, p=1).amin(-1).max() < 1e-6
    # Whatever the query, the numbers have one distribution.
    assert (numbers[..., 0].mean(0) - known[:, 0].mean()).abs().max() < 6 * numbers[..., 0].std(
        0
    ).max() / 40**0.5
    assert facts["mean_confidence"] == pytest.approx(float(known[:, 0].mean()))


def test_the_classifier_must_be_at_hand():
    with pytest.raises(InvalidOptionError, match="only answers are at hand"):
        trained()
