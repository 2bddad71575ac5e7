"""What training an inverter promises: which weights are kept, when it stops, who decides."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.inversion import (
    DecoderSpec,
    Inverter,
    TrainingSettings,
    held_out_rows,
    mean_error,
    mix_decoders,
    train_each,
    train_inverter,
)
from oneway.inversion.input_transforms import INPUT_TRANSFORMS
from oneway.inversion.training import MovingAverage

CLASSES, ROWS = 3, 41
PATIENT = 1000


def decoder(seed=0):
    """A small stack with a BatchNorm, whose statistics are part of what is kept."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(CLASSES, 24),
        nn.BatchNorm1d(24),
        nn.Tanh(),
        nn.Linear(24, 16),
        nn.Sigmoid(),
        nn.Unflatten(1, (1, 4, 4)),
    )


def observed(noise=0.1, rows=ROWS):
    """Images that follow from their confidences, up to noise; a quarter is held out."""
    generator = torch.Generator().manual_seed(7)
    confidences = (2 * torch.randn(rows, CLASSES, generator=generator)).softmax(-1)
    pattern = torch.rand(CLASSES, 16, generator=generator)
    clean = confidences @ pattern
    images = (1 - noise) * clean + noise * torch.rand(rows, 16, generator=generator)
    return confidences, images.reshape(-1, 1, 4, 4), torch.arange(rows) % 4 == 0


def train(network, tensors, seed=3, incumbent=(), on_epoch=None, **settings):
    return train_inverter(
        network,
        *tensors,
        settings=TrainingSettings(**{"patience": PATIENT, "batch_size": 8} | settings),
        generator=torch.Generator().manual_seed(seed),
        incumbent=incumbent,
        on_epoch=on_epoch,
    )


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@looped("averaging", [0, 0.9])
def test_the_weights_kept_are_those_of_the_best_epoch(averaging):
    confidences, images, held_out = observed(noise=1.0)  # nothing to learn, so that it overfits
    network = decoder()
    errors = train(
        network,
        (confidences, images, held_out),
        epochs=15,
        learning_rate=0.05,
        averaging=averaging,
    )
    assert min(errors) < errors[-1]  # else the last epoch would do as well
    assert mean_error(network, confidences[held_out], images[held_out]) == min(errors)


def test_training_leaves_the_network_in_eval_mode():
    network = decoder().train()
    train(network, observed(), epochs=1)
    assert not any(module.training for module in network.modules())


def test_training_reconstructs_better_than_the_mean_image():
    confidences, images, held_out = observed(noise=0.02, rows=200)
    errors = train(decoder(), (confidences, images, held_out), epochs=30, learning_rate=0.02)
    mean = images[~held_out].mean(0)
    assert min(errors) < 0.25 * float((images[held_out] - mean).square().mean())


@pytest.fixture(scope="module")
def long_run():
    return train(decoder(), observed(noise=0.8), epochs=40, learning_rate=0.02)


@looped("patience", [1, 2, 3, 5])
def test_training_stops_after_so_many_epochs_without_a_gain_of_a_thousandth(long_run, patience):
    best, waited, expected = math.inf, 0, []
    for error in long_run:
        expected.append(error)
        waited = 0 if error < 0.999 * best else waited + 1
        best = error if waited == 0 else best
        if waited == patience:
            break
    assert len(expected) < len(long_run)  # else patience was not put to the test
    errors = train(decoder(), observed(noise=0.8), epochs=40, learning_rate=0.02, patience=patience)
    assert errors == expected


def test_a_decoder_that_trails_the_leader_is_given_up_after_five_epochs_of_grace(long_run):
    incumbent = [error / 1.06 for error in long_run]
    errors = train(
        decoder(),
        observed(noise=0.8),
        epochs=40,
        learning_rate=0.02,
        incumbent=[min(incumbent)] * 40,
    )
    assert errors == long_run[: len(errors)]
    assert len(errors) == 6


def test_a_decoder_within_five_percent_of_the_leader_goes_on(long_run):
    incumbent = [error / 1.04 for error in long_run]
    assert train(
        decoder(), observed(noise=0.8), epochs=40, learning_rate=0.02, incumbent=incumbent
    ) == (long_run)


def test_a_decoder_is_compared_with_the_leader_at_the_same_epoch(long_run):
    late = [*long_run[:20], *[0.0] * 20]  # a incumbent that pulls ahead at epoch 21
    errors = train(decoder(), observed(noise=0.8), epochs=40, learning_rate=0.02, incumbent=late)
    assert len(errors) == 21


def test_held_out_rows_never_touch_the_weights():
    confidences, images, held_out = observed()
    other_images, other_confidences = images.clone(), confidences.clone()
    other_images[held_out] = 1 - images[held_out]
    other_confidences[held_out] = confidences[held_out].roll(1, -1)
    weights, kept, errors = [], [], []
    for tensors in (
        (confidences, images, held_out),
        (other_confidences, other_images, held_out),
    ):
        torch.manual_seed(0)
        network = Inverter(
            CLASSES, (1, 4, 4), width=4, hidden_layers=1, input_transform="standardized"
        )
        seen = []
        errors.append(
            train(
                network,
                tensors,
                epochs=4,
                on_epoch=lambda _, n=network, s=seen: s.append(snapshot(n)),
            )
        )
        weights.append(seen)
        torch.manual_seed(0)
        once = Inverter(
            CLASSES, (1, 4, 4), width=4, hidden_layers=1, input_transform="standardized"
        )
        train(once, tensors, epochs=1)
        kept.append(snapshot(once))
    assert errors[0] != errors[1]
    assert all(same(one, other) for one, other in zip(*weights, strict=True))
    assert same(*kept)


def test_training_rows_do_touch_the_weights():
    confidences, images, held_out = observed()
    other = images.clone()
    other[1] = 1 - images[1]
    assert not held_out[1]
    kept = []
    for truths in (images, other):
        network = decoder()
        train(network, (confidences, truths, held_out), epochs=1)
        kept.append(snapshot(network))
    assert not same(*kept)


def test_seeds_decide_everything():
    runs = []
    for seed in (3, 3, 4):
        network = decoder()
        runs.append((train(network, observed(), seed=seed, epochs=3), snapshot(network)))
    (errors, weights), (errors_again, weights_again), (other, _) = runs
    assert errors == errors_again
    assert same(weights, weights_again)
    assert errors != other


def hand_written(network, tensors, epochs, learning_rate, batch_size, averaging, seed=3):
    """Adam on the mean square, and an average of weights: return the averages by epoch."""
    confidences, images, held_out = tensors
    inputs, truths = confidences[~held_out], images[~held_out]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=learning_rate, betas=(0.5, 0.999), amsgrad=True
    )
    average, by_epoch = None, []
    for _ in range(epochs):
        network.train()
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            if len(rows) > 1:
                optimizer.zero_grad()
                (network(inputs[rows]) - truths[rows]).square().mean().backward()
                optimizer.step()
                state = snapshot(network)
                average = average or state
                average = {
                    name: averaging * average[name] + (1 - averaging) * value
                    if value.is_floating_point()
                    else value
                    for name, value in state.items()
                }
        by_epoch.append(average)
    return by_epoch


@looped("averaging", [0, 0.5, 0.98])
@looped("batch_size", [8, 15])  # of 30 training rows; 15 leaves none over
def test_training_equals_a_hand_written_loop(averaging, batch_size):
    tensors = confidences, images, held_out = observed()
    network = decoder()
    errors = train(
        network, tensors, epochs=4, learning_rate=0.01, batch_size=batch_size, averaging=averaging
    )
    averages = hand_written(decoder(), tensors, 4, 0.01, batch_size, averaging)
    expected = []
    for state in averages:
        judged = decoder()
        judged.load_state_dict(state)
        judged.eval()
        with torch.no_grad():
            guesses = judged(confidences[held_out]).double()
        expected.append(float((guesses - images[held_out].double()).square().mean()))
    np.testing.assert_allclose(errors, expected, rtol=1e-5)
    kept, best = network.state_dict(), averages[expected.index(min(expected))]
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, best[name], rtol=1e-4, atol=1e-6)


def fitted(input_transform):
    """A decoder behind an input transform that is fitted, with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    network = Inverter(CLASSES, (1, 4, 4), width=2, input_transform=input_transform)
    network.fit_input_transform(observed()[0])
    return network


@looped("input_transform", INPUT_TRANSFORMS)
def test_a_input_transforms_statistics_are_kept_as_they_were_fitted(input_transform):
    """Of the rows that are trained on, and of no others."""
    confidences, images, held_out = observed()
    network = fitted(input_transform)
    train(network, (confidences, images, held_out), epochs=2, averaging=0.5)
    expected = fitted(input_transform).input_transform
    expected.fit(confidences[~held_out])
    assert same(snapshot(network.input_transform), snapshot(expected))


@looped("input_transform", [name for name in INPUT_TRANSFORMS if name != "faithful"])
def test_an_average_follows_weights_and_batch_statistics_and_no_statistics_of_a_input_transform(
    input_transform,
):
    network = fitted(input_transform)
    average = MovingAverage(network, 0.75)
    average.update()
    before = snapshot(network)
    assert same(snapshot(average.network), before)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(value + 4 if value.is_floating_point() else value)
    average.update()
    for name, value in average.network.state_dict().items():
        followed = not name.startswith("input_transform.") and value.is_floating_point()
        torch.testing.assert_close(value, before[name] + 1 if followed else before[name])
    assert any("running_var" in name for name in before)


def test_a_batch_of_one_row_which_has_no_variance_is_left_out():
    confidences, images, _ = observed()
    held_out = torch.arange(ROWS) >= 9
    network = decoder()
    assert len(train(network, (confidences, images, held_out), epochs=2, batch_size=8)) == 2
    assert int(network[1].num_batches_tracked) in (1, 2)


def test_each_epoch_is_reported_with_its_error_and_the_best_so_far():
    seen = []
    errors = train(decoder(), observed(noise=0.9), epochs=6, on_epoch=seen.append)
    assert [report.epoch for report in seen] == [1, 2, 3, 4, 5, 6]
    assert {report.epochs for report in seen} == {6}
    assert [report.held_out_error for report in seen] == errors
    assert [report.best_error for report in seen] == np.minimum.accumulate(errors).tolist()


class Diverging(nn.Module):
    """Gives NaN after the first step."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1e-4))

    def forward(self, confidences):
        return self.level.sqrt().expand(len(confidences), 1, 4, 4)


def test_a_decoder_that_diverges_loses_any_contest():
    tensors = observed()

    def fit(spec, incumbent):
        network = Diverging() if spec.width == 1 else decoder()
        tensors[1].clamp_(0, 1e-3)  # so that the level falls below 0
        return network, train(
            network, tensors, epochs=9, patience=2, learning_rate=0.5, incumbent=incumbent
        )

    trials = train_each([DecoderSpec("faithful", width) for width in (1, 2)], fit)
    assert trials[0].held_out_errors == [math.inf] * 2  # and does not use up its epochs
    with torch.no_grad():
        mixed = mix_decoders([trial.decoder for trial in trials], *tensors[:2])
    assert not any(isinstance(each, Diverging) for each in mixed.modules())


@given(st.integers(1, 1100), st.integers(0, 10**6))
def test_mean_error_weighs_every_pixel_alike_however_many_rows_there_are(rows, seed):
    generator = np.random.default_rng(seed)
    guesses = generator.random((rows, 4)).astype(np.float32)
    images = generator.random((rows, 4)).astype(np.float32)
    error = mean_error(nn.Identity(), torch.from_numpy(guesses), torch.from_numpy(images))
    expected = np.square(guesses.astype(np.float64) - images.astype(np.float64)).mean()
    assert error == pytest.approx(expected, rel=1e-5)


@looped("held", [0, ROWS - 1, ROWS])
def test_no_row_to_choose_by_or_fewer_than_two_to_train_on_is_refused(held):
    confidences, images, _ = observed()
    with pytest.raises(InvalidOptionError, match=f"{held} of {ROWS} are held out"):
        train(decoder(), (confidences, images, torch.arange(ROWS) < held))


def test_two_training_rows_are_enough():
    confidences, images, _ = observed()
    assert train(decoder(), (confidences, images, torch.arange(ROWS) >= 2), epochs=1)


@looped(
    ("held_out", "got"),
    [
        ((torch.arange(ROWS) % 4 == 0).long(), rf"int64 of shape \({ROWS},\)"),
        (torch.arange(ROWS - 1) % 4 == 0, rf"bool of shape \({ROWS - 1},\)"),
        (torch.arange(ROWS).reshape(1, -1) % 4 == 0, rf"bool of shape \(1, {ROWS}\)"),
    ],
    ids=["numbers", "too short", "another axis"],
)
def test_held_out_rows_that_are_no_mask_are_refused(held_out, got):
    confidences, images, _ = observed()
    with pytest.raises(InvalidTensorError, match=rf"bool of shape \({ROWS},\).*but got {got}"):
        train(decoder(), (confidences, images, held_out))


def test_logits_and_missing_images_are_refused_before_anything_is_trained():
    confidences, images, held_out = observed()
    network = decoder()
    before = snapshot(network)
    with pytest.raises(InvalidTensorError, match="must be probabilities"):
        train(network, (confidences.log(), images, held_out))
    with pytest.raises(InvalidTensorError, match=f"one per row of scores, {ROWS}, but got"):
        train(network, (confidences, images[:-1], held_out))
    assert same(before, copy.deepcopy(network.state_dict()))


@looped(
    ("option", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("patience", 0),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("batch_size", 1),
        ("averaging", 1),
        ("averaging", -0.1),
        ("averaging", math.nan),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(option, value):
    with pytest.raises(InvalidOptionError, match=f"^{option} must be"):
        TrainingSettings(**{option: value})


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(st.integers(3, 400), st.floats(0, 1), st.integers(0, 2**32))
def test_held_out_rows_are_the_share_but_leave_one_to_hold_and_two_to_train(count, share, seed):
    held_out = held_out_rows(count, share, seeded(seed))
    assert held_out.dtype == torch.bool
    assert held_out.shape == (count,)
    assert held_out.sum() == min(max(round(share * count), 1), count - 2)
    assert torch.equal(held_out, held_out_rows(count, share, seeded(seed)))


def test_held_out_rows_may_be_any_rows():
    chosen = torch.stack([held_out_rows(20, 0.25, seeded(seed)) for seed in range(60)]).float()
    assert chosen.mean(0).min() > 0.05
    assert chosen.mean(0).max() < 0.6


@looped("count", [0, 1, 2])
def test_too_few_rows_to_hold_one_out_are_refused(count):
    with pytest.raises(InvalidOptionError, match=f"3 images or more.*there are {count}"):
        held_out_rows(count, 0.5, seeded(0))


def test_without_a_mask_an_eighth_is_held_out_by_the_generator():
    confidences, images, _ = observed()
    mask = held_out_rows(ROWS, 1 / 8, seeded(3))
    order = seeded(3)
    held_out_rows(ROWS, 1 / 8, order)  # the generator gives the mask first, then the order
    given, drawn = decoder(), decoder()
    settings = TrainingSettings(epochs=2, batch_size=8)
    errors = train_inverter(given, confidences, images, mask, settings=settings, generator=order)
    assert errors == train_inverter(
        drawn, confidences, images, settings=settings, generator=seeded(3)
    )
    assert same(snapshot(given), snapshot(drawn))


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step that is taken."""
    taken = []
    step = torch.optim.Adam.step

    def spied(self, *args, **options):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", spied)
    return taken


def test_a_constant_step_stays_what_it_is(rates):
    train(decoder(), observed(), epochs=3, learning_rate=0.02)
    assert len(rates) == 3 * 4  # 30 training rows in batches of 8
    assert set(rates) == {0.02}


def test_one_cycle_rises_for_a_fifth_and_falls_to_nothing(rates):
    train(decoder(), observed(), epochs=20, learning_rate=0.02, schedule="one-cycle")
    assert len(rates) == 80
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.02, rel=1e-2)
    assert 0.15 < top / len(rates) < 0.25
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] < 0.1 * 0.02
    assert rates[-1] < 1e-3 * 0.02


@looped("epochs", [1, 2, 4, 5, 6])
def test_one_cycle_of_a_few_steps_runs(epochs):
    settings = {"epochs": epochs, "batch_size": ROWS, "schedule": "one-cycle"}
    assert len(train(decoder(), observed(), **settings)) == epochs


@looped("patience", [1, 3])
def test_one_cycle_runs_to_its_end_whatever_the_patience(patience):
    settings = {"epochs": 25, "learning_rate": 0.02, "patience": patience}
    assert len(train(decoder(), observed(noise=1.0), **settings)) < 25
    assert len(train(decoder(), observed(noise=1.0), schedule="one-cycle", **settings)) == 25


def test_one_cycle_that_trails_the_leader_is_given_up_even_so():
    errors = train(
        decoder(), observed(), epochs=9, schedule="one-cycle", incumbent=[0.0] * 9, grace=2
    )
    assert len(errors) == 3


def test_one_cycle_reaches_in_few_epochs_what_a_constant_step_does_not():
    settings = {"epochs": 8, "learning_rate": 0.02, "averaging": 0.5}
    tensors = observed(noise=0.02, rows=200)
    constant = train(decoder(), tensors, **settings)
    assert min(train(decoder(), tensors, schedule="one-cycle", **settings)) < min(constant)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"schedule 'onecycle'.*mean 'one-cycle'"):
        TrainingSettings(schedule="onecycle")
    with pytest.raises(InvalidOptionError, match="grace must be a whole number of at least 1"):
        TrainingSettings(grace=0)


@looped("grace", [1, 3, 7])
def test_a_decoder_may_trail_the_leader_for_as_long_as_grace_lasts(long_run, grace):
    incumbent = [error / 1.06 for error in long_run]
    errors = train(
        decoder(),
        observed(noise=0.8),
        epochs=40,
        learning_rate=0.02,
        incumbent=[min(incumbent)] * 40,
        grace=grace,
    )
    assert errors == long_run[: grace + 1]


class Perturbing:
    """Rolls the confidences, and keeps what it was given and in which mode."""

    def __init__(self):
        self.calls = []

    def __call__(self, inverter, confidences, images):
        modes = {module.training for module in inverter.modules()}
        self.calls.append((modes, confidences.clone(), images.clone()))
        return confidences.roll(1, -1)


def perturbed(network, tensors, perturb, epochs=3):
    settings = TrainingSettings(epochs=epochs, batch_size=8, averaging=0.5)
    return train_inverter(
        network, *tensors, settings=settings, generator=seeded(3), perturb=perturb
    )


def test_perturb_is_given_every_batch_and_the_held_out_rows_and_a_network_in_eval_mode():
    confidences, images, held_out = observed()
    perturb = Perturbing()
    perturbed(decoder(), (confidences, images, held_out), perturb)
    assert len(perturb.calls) == 3 * (4 + 1)
    assert all(modes == {False} for modes, _, _ in perturb.calls)
    rows = {tuple(row.tolist()): image for row, image in zip(confidences, images, strict=True)}
    for place, (_, shown, truths) in enumerate(perturb.calls):
        for row, truth in zip(shown, truths, strict=True):
            assert torch.equal(rows[tuple(row.tolist())], truth)
        if place % 5 == 4:
            assert torch.equal(shown, confidences[held_out])
    for epoch in range(3):
        batches = [shown for _, shown, _ in perturb.calls[5 * epoch : 5 * epoch + 4]]
        assert sorted(torch.cat(batches).tolist()) == sorted(confidences[~held_out].tolist())


def test_what_perturb_returns_is_what_is_trained_on_and_judged_by():
    confidences, images, held_out = observed()
    rolled = confidences.roll(1, -1)
    by_hand, made = decoder(), decoder()
    errors = perturbed(by_hand, (rolled, images, held_out), None)
    assert perturbed(made, (confidences, images, held_out), Perturbing()) == errors
    assert same(snapshot(by_hand), snapshot(made))
    assert perturbed(decoder(), (confidences, images, held_out), None) != errors


def test_perturb_may_follow_the_network_that_is_trained():
    """It is given the weights as they are: after each step, others."""
    seen = []

    def look(inverter, confidences, images):  # noqa: ARG001
        seen.append(torch.cat([value.flatten() for value in inverter.parameters()]))
        return confidences

    perturbed(decoder(), observed(), look, epochs=1)
    batches = seen[:4]
    assert not any(torch.equal(*pair) for pair in itertools.pairwise(batches))
