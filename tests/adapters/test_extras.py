"""Without an optional package, the adapter that needs it says which extra to install."""

import importlib
import sys

import pytest

from oneway.adapters.ray import guard_dataset, guard_deployment
from oneway.benchmark import run_on_ray
from oneway.errors import MissingExtraError


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("oneway.adapters.scikit_learn", "sklearn", "sklearn"),
        ("oneway.adapters.mlflow", "mlflow", "mlflow"),
        ("oneway.adapters.art", "art", "art"),
    ],
)
def test_a_module_of_its_own_is_missed_when_it_is_imported(monkeypatch, module, package, extra):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"oneway\[{extra}\]"):
        importlib.import_module(module)


def test_ray_is_missed_when_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for use in (
        lambda: guard_deployment(lambda: None),
        lambda: guard_dataset(None, lambda: None, scores="logits"),
        lambda: next(run_on_ray([])),
    ):
        with pytest.raises(MissingExtraError, match=r"oneway\[ray\]"):
            use()
