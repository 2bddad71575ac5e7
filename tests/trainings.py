"""What tests of experiments share."""

import functools
from collections import Counter

import pytest

from oneway.benchmark import runner
from oneway.defenses.trained import MutualInformation, Purification
from oneway.evaluation import attackers


def count_trainings(patch):
    """Count what is trained to the end, by what it is, until the patch is undone."""
    counts = Counter()

    def count(owner, name, label, wrap=lambda function: function):
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*args, **options):
            result = original(*args, **options)
            counts[label] += 1
            return result

        patch.setattr(owner, name, wrap(counted))

    count(attackers, "train_inverter", "inverter")
    count(runner, "train_target", "target")
    count(MutualInformation, "train", "MID", staticmethod)
    count(Purification, "train", "PPF", staticmethod)
    return counts


@pytest.fixture
def trainings(monkeypatch):
    """Count what is trained to the end."""
    return count_trainings(monkeypatch)
