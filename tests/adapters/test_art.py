"""A guard as a postprocessor of the Adversarial Robustness Toolbox, behind its own classifier."""

import numpy as np
import pytest
import torch
from torch import nn

from oneway.adapters import Guard
from oneway.defenses import build_defense
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError
from optional import later

GuardPostprocessor = later("oneway.adapters.art:GuardPostprocessor")
QUERIES = np.random.default_rng(0).random((9, 1, 4, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return what builds ART's classifier with postprocessors; ART writes a file when imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ART_DATA_PATH", str(tmp_path_factory.mktemp("art")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        estimators = pytest.importorskip("art.estimators.classification")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def build(*defenses):
        return estimators.PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=(1, 4, 4),
            nb_classes=3,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            device_type="cpu",
            postprocessing_defences=list(defenses),
        )

    return build


def test_predictions_of_arts_classifier_are_the_guards(classifier):
    clean = classifier().predict(QUERIES)
    guarded = classifier(GuardPostprocessor(Rounding(decimals=1), outputs="logits", decimals=1))
    released = guarded.predict(QUERIES, batch_size=4)
    assert released.dtype == clean.dtype == np.float32
    expected = Guard(Rounding(decimals=1), "logits", decimals=1)(clean)
    np.testing.assert_array_equal(released, expected)
    top = released.max(1, keepdims=True) == released
    assert (top.sum(1) == 1).all()
    np.testing.assert_array_equal(top.argmax(1), clean.argmax(1))


def test_art_applies_it_where_it_says_so(classifier):
    clean = classifier().predict(QUERIES)
    silent = GuardPostprocessor(Rounding(decimals=1), outputs="logits", apply_predict=False)
    guarded = classifier(silent)
    np.testing.assert_array_equal(guarded.predict(QUERIES), clean)
    assert (silent.is_fitted, silent.apply_fit, silent.apply_predict) == (True, False, False)
    # Training goes on with a guard behind the network, and ART's gradients stay the network's.
    trained = classifier(GuardPostprocessor(Rounding(decimals=1), outputs="logits"))
    np.testing.assert_array_equal(
        trained.class_gradient(QUERIES, label=0), classifier().class_gradient(QUERIES, label=0)
    )
    trained.fit(QUERIES, np.eye(3)[np.arange(9) % 3], nb_epochs=1, batch_size=9)


def test_what_art_cannot_serve_is_refused(classifier):
    del classifier  # ART is imported
    noise = build_defense("adversarial-noise", {"step_size": 0.4}, nn.Linear(3, 16))
    with pytest.raises(InvalidOptionError, match="shows a postprocessor the scores alone"):
        GuardPostprocessor(noise, outputs="logits")
    guard = GuardPostprocessor(Rounding(), outputs="confidences")
    with pytest.raises(InvalidTensorError, match="but got list"):
        guard([[0.5, 0.5]])
    with pytest.raises(InvalidTensorError):
        guard(np.ones((2, 3), np.float32))
