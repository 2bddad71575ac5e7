"""Somebody else's endpoint, asked over HTTP: what comes back is guarded, or an error."""

import numpy as np
import pytest
import torch

pytest.importorskip("httpx")

from endpoints import OpenInferenceServer, Reply, running, served_confidences, served_logits
from oneway.adapters import Guard, GuardedEndpoint
from oneway.defenses import build_defense
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, TargetFailedError
from surrogates import random_images, small_inverter

IMAGES = random_images(1, 9, (1, 4, 4))


@pytest.fixture
def server():
    with running(OpenInferenceServer()) as endpoint:
        yield endpoint


def connect(server, defense, **options):
    address = f"{server.address}/v2/models/digits"
    return GuardedEndpoint(address, defense, output_name="probabilities", **options)


def test_answers_are_guarded_and_of_the_kind_of_the_queries(server):
    guarded = connect(server, Rounding(decimals=1), decimals=1)
    clean = torch.from_numpy(served_confidences(IMAGES.numpy()).astype(np.float32))
    released = guarded(IMAGES)
    assert released.dtype == torch.float32
    assert torch.equal(released, Guard(Rounding(decimals=1), "confidences", decimals=1)(clean))
    assert (released - clean).abs().max() > 0.01
    assert torch.equal(released.argmax(-1), clean.argmax(-1))
    array = guarded(IMAGES.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, released.numpy())


def test_a_third_party_defends_by_adversarial_noise_on_log_probabilities(server):
    surrogate = small_inverter(classes=3, image_shape=(1, 4, 4))
    guarded = connect(server, build_defense("adversarial-noise", {"step_size": 1.0}, surrogate))
    clean = served_confidences(IMAGES.numpy())
    released = guarded(IMAGES.numpy())
    assert np.abs(released - clean).max() > 0.01
    np.testing.assert_array_equal(released.argmax(1), clean.argmax(1))


def test_batches_do_not_matter(server):
    together = connect(server, Rounding(decimals=2))(IMAGES)
    asked = len(server.posts)
    assert torch.equal(connect(server, Rounding(decimals=2), batch_size=2)(IMAGES), together)
    assert len(server.posts) - asked == 5


def test_an_endpoint_that_gives_logits_is_said_to(server):
    server.answer.model = served_logits
    released = connect(server, Rounding(decimals=1), outputs="logits")(IMAGES)
    clean = torch.from_numpy(served_logits(IMAGES.numpy()).astype(np.float32))
    assert torch.equal(released, Guard(Rounding(decimals=1), "logits")(clean))


def test_an_endpoint_that_fails_is_an_error(server):
    guarded = connect(server, Rounding(decimals=1), attempts=1)
    server.faults.append(Reply(500, b"no"))
    with pytest.raises(TargetFailedError):
        guarded(IMAGES)
    with pytest.raises(InvalidOptionError, match="never guessed"):
        connect(server, Rounding(decimals=1), outputs="scores")
