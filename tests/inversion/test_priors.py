"""Generative priors: what they learn, GMI's layers, and trainings that go on where they were."""

import pytest
import torch

from benchmark_files import benchmark_module
from oneway.errors import InvalidOptionError
from oneway.evaluation import Store
from oneway.evaluation.attackers import PriorTrainer
from oneway.inversion import Autoencoder, AutoencoderSettings, train_autoencoder

priors = benchmark_module("adversarial_prior")
AdversarialPrior = priors.AdversarialPrior
AdversarialPriorSettings = priors.AdversarialPriorSettings
AdversarialPriorTraining = priors.AdversarialPriorTraining
train_adversarial_prior = priors.train_adversarial_prior

SMALL = AdversarialPriorSettings(width=2, batch_size=4, critic_steps=2)


def waves(rows, seed=0):
    """Return records of one frequency whose phase and height differ, and what tells the phase."""
    generator = torch.Generator().manual_seed(seed)
    phase, height = torch.rand(2, rows, 1, generator=generator)
    records = 0.5 + 0.4 * height * torch.sin(torch.arange(8.0) + 6 * phase)
    logits = torch.cat([8 * phase - 4, torch.zeros(rows, 1)], -1)
    return records, logits.softmax(-1)


def spread_across(records):
    """Return the share of variance that the two directions of a wave leave out."""
    angles = torch.arange(8.0)
    basis = torch.linalg.qr(torch.stack([angles.sin(), angles.cos()], -1)).Q
    centered = records - 0.5
    return float((centered - centered @ basis @ basis.T).square().mean() / centered.square().mean())


@pytest.fixture(scope="module")
def trained():
    """An autoencoder without a condition, and one with it."""
    records, confidences = waves(320)
    held_out = torch.arange(320) < 64
    settings = AutoencoderSettings(epochs=12, batch_size=16, learning_rate=0.01)
    made = []
    for condition in (None, confidences):
        torch.manual_seed(0)
        classes = 0 if condition is None else 2
        network = Autoencoder((8,), num_classes=classes, latents=4, width=2)
        bounds = train_autoencoder(
            network,
            records,
            condition,
            held_out,
            settings=settings,
            generator=torch.Generator().manual_seed(0),
        )
        assert len(bounds) == 12
        assert min(bounds) < bounds[0] - 0.2
        made.append(network)
    return made


@pytest.mark.parametrize("held", [0, 7, 8])
def test_rows_that_cannot_be_trained_on_or_select_an_epoch_are_refused(held):
    with pytest.raises(InvalidOptionError, match=f"{held} of 8 are held out"):
        train_autoencoder(
            Autoencoder((8,), latents=2, width=2),
            waves(8)[0],
            None,
            torch.arange(8) < held,
            settings=AutoencoderSettings(epochs=1),
            generator=torch.Generator(),
        )


@torch.no_grad()
def test_draws_of_a_prior_look_like_its_inputs(trained):
    records, _ = waves(400, seed=1)
    made = trained[0](trained[0].draw(400, torch.Generator().manual_seed(0)))
    assert made.shape == (400, 8)
    assert spread_across(records) < 1e-6
    assert spread_across(made) < 0.15 < 0.6 < spread_across(torch.rand(400, 8))
    assert 0.6 < made.std(0).mean() / records.std(0).mean() < 1.2


@torch.no_grad()
def test_a_condition_is_read(trained):
    records, confidences = waves(200, seed=2)
    errors = [
        float((trained[1](torch.zeros(200, 4), given) - records).square().mean())
        for given in (confidences, confidences.roll(1, 0))
    ]
    assert errors[0] < 0.5 * float(records.var(0).mean())
    assert errors[0] < 0.4 * errors[1]


def test_the_layers_are_those_of_the_publication():
    """Parameters by hand, at the published width of 64 and 100 latents."""
    network = AdversarialPrior((1, 32, 32))
    generator = 100 * 4096 + 2 * 4096 + 256 * 128 * 25 + 256 + 128 * 64 * 25 + 128 + 64 * 25 + 1
    critic = 64 * 25 + 64 + 128 * 64 * 25 + 128 + 256 + 256 * 128 * 25 + 256 + 512 + 256 * 16 + 1
    counts = [
        sum(each.numel() for each in part.parameters())
        for part in (network.generator, network.critic)
    ]
    assert counts == [generator, critic]
    for side in (32, 64):
        network = AdversarialPrior((1, side, side), width=2).eval()
        latents = network.draw(3, torch.Generator().manual_seed(0))
        assert network(latents).shape == (3, 1, side, side)
        assert network.plausibility(latents).shape == (3,)
    with pytest.raises(InvalidOptionError, match=r"\(C, 32, 32\).*\(1, 28, 28\).*Pad"):
        AdversarialPrior((1, 28, 28))


def test_the_critic_learns_to_tell_images_from_noise_with_slopes_of_one():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 1, 1).expand(-1, 1, 32, 32).contiguous()
    training = AdversarialPriorTraining(
        AdversarialPrior((1, 32, 32), width=4),
        AdversarialPriorSettings(width=4, critic_steps=20, learning_rate=2e-3, batch_size=16),
    )
    network = training.network
    training.advance(images, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = network(network.draw(64, torch.Generator().manual_seed(1)))
        assert network.critic(images).mean() > network.critic(made).mean()
    between = (0.5 * images + 0.5 * made).requires_grad_()
    (slopes,) = torch.autograd.grad(network.critic(between).sum(), between)
    assert 0.3 < slopes.flatten(1).norm(dim=-1).mean() < 2


def test_a_training_goes_on_from_its_state():
    """Networks and moments of the optimizers: two steps are a step, a new training, and a step."""
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    ends = []
    for parts in ((2,), (1, 1)):
        torch.manual_seed(0)
        network, draws = AdversarialPrior((1, 32, 32), width=2), torch.Generator().manual_seed(0)
        state = AdversarialPriorTraining(network, SMALL).state()
        for steps in parts:
            training = AdversarialPriorTraining(AdversarialPrior((1, 32, 32), width=2), SMALL)
            training.load(state)
            training.advance(images, steps, draws)
            state = training.state()
        ends.append(state)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(priors, "STAGE", 1)
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = train_adversarial_prior(images, SMALL, 3, Store(tmp_path / "whole"), 0)

    def interrupt(share):
        if share > 0.6:
            raise KeyboardInterrupt

    store = Store(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train_adversarial_prior(images, SMALL, 3, store, 0, interrupt)
    stored = {path.name for path in (store.root / "tensors").iterdir()}
    assert len(stored) == 1
    again = train_adversarial_prior(images, SMALL, 3, store, 0)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert stored < {path.name for path in (store.root / "tensors").iterdir()}


def test_a_stored_autoencoder_is_not_trained_again(tmp_path):
    records, confidences = waves(40)
    held_out = torch.arange(40) < 8
    settings, shares = AutoencoderSettings(epochs=2), []
    trainer = PriorTrainer(Store(tmp_path), 0, settings, report=shares.append)
    first = trainer.autoencoder(records, None, held_out)
    assert shares == [0.5, 1.0, 1.0]
    shares.clear()
    again = trainer.autoencoder(records, None, held_out)
    assert shares == [1.0]
    latents = first.draw(5, torch.Generator().manual_seed(0))
    assert torch.equal(again.draw(5, torch.Generator().manual_seed(0)), latents)
    assert torch.equal(first(latents), again(latents))
    other = trainer.autoencoder(records, confidences, held_out)
    assert other.condition is not None
    assert len(other.codes) == len(first.codes) == 32


def test_a_training_that_no_state_ends_is_refused(tmp_path):
    with pytest.raises(InvalidOptionError, match="multiple of 100"):
        train_adversarial_prior(torch.rand(8, 1, 32, 32), SMALL, 150, Store(tmp_path), 0)
