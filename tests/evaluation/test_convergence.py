"""How long decoders are trained: on errors that fall by a known curve, and by real trainings."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from laws import looped
from oneway.contracts import AttackerKnowledge
from oneway.data import no_progress
from oneway.errors import InvalidOptionError
from oneway.evaluation import AttackerSpec, Convergence, Store, attackers
from oneway.evaluation.attackers import CleanErrors, label_only_error, prepare_attackers
from oneway.evaluation.convergence import (
    LEAST_GAIN,
    OutOfTimeError,
    least_converged,
    not_trained_out,
    search_epochs,
)
from oneway.inversion import TrainingSettings
from trainings import count_trainings


def searched(curve, first, most, **options):
    """Search on a curve of errors; return what was found, and the epochs of each training."""
    trained = []

    def held_out_error(epochs):
        trained.append(epochs)
        return curve(epochs)

    return search_epochs(first, most, held_out_error, **options), trained


FLOOR = st.floats(0.001, 0.5)


@given(FLOOR, st.floats(1e-4, 0.5), st.floats(1, 200), st.floats(1e-4, 1), st.integers(1, 40))
def test_the_search_ends_where_the_curve_gains_less_than_a_share_of_the_gap(
    floor, height, time, gap, first
):
    """The error falls exponentially, so that the doubling that gains nothing is known."""

    def curve(epochs):
        return floor + height * math.exp(-epochs / time)

    gains = [(curve(first * 2**k) - curve(first * 2 ** (k + 1))) / gap for k in range(20)]
    assume(all(abs(gain - LEAST_GAIN) > 1e-6 for gain in gains))
    ends = next((k for k, gain in enumerate(gains) if gain < LEAST_GAIN), None)
    assume(ends is not None)
    most = first * 2**20
    found, trained = searched(curve, first, most, gap=lambda _: gap)
    assert found.shown
    # The shorter of the two trainings that show it is long enough, and none is repeated.
    assert found.epochs == first * 2**ends == trained[-2]
    assert found.gain == pytest.approx(gains[ends], abs=1e-9)
    assert trained == [first * 2**k for k in range(ends + 2)]


def test_a_gain_that_is_small_beside_the_error_is_large_beside_a_small_gap():
    """A share of the error would stop at once, and leave a fifth of the gap to be gained."""

    def curve(epochs):
        return 0.05 + 0.0004 * math.exp(-epochs / 64)

    found, _ = searched(curve, 8, 512, gap=lambda _: 0.002)
    assert found == Convergence(256, pytest.approx(0.0, abs=1e-2), True)
    relative, _ = searched(curve, 8, 512)
    assert relative.epochs == 8


@looped(("gap", "epochs"), [(0.0, 8), (-0.01, 8), (-math.inf, 8), (math.inf, 8), (0.01, 32)])
def test_without_a_positive_gap_the_gain_is_a_share_of_the_error(gap, epochs):
    errors = {8: 0.1, 16: 0.0995, 32: 0.0993, 64: 0.09925}
    found, _ = searched(errors.__getitem__, 8, 64, gap=lambda _: gap)
    assert found.epochs == epochs
    assert found.shown


def test_the_gap_is_that_of_the_longer_training():
    """So that a decoder of clean scores counts with its own error."""
    seen = []

    def gap(error):
        seen.append(error)
        return 1.0

    searched({4: 0.3, 8: 0.2, 16: 0.199}.__getitem__, 4, 16, gap=gap)
    assert seen == [0.2, 0.199]


@given(st.integers(1, 30), st.integers(1, 500), st.integers(1, 5))
def test_no_training_is_longer_than_the_most_epochs_and_the_last_one_is_kept(first, most, turns):
    assume(most >= first)
    started = []

    def until_time_is_over(epochs):
        started.append(epochs)
        if len(started) > turns:
            raise OutOfTimeError
        return 1 / epochs

    for error in (lambda epochs: 1 / epochs, until_time_is_over):
        found, trained = searched(error, first, most)
        assert not found.shown
        finished = trained[:turns] if started else trained
        assert found.epochs == finished[-1] <= most
        assert (found.gain is None) == (len(finished) == 1)
        assert len(finished) < len(trained) or 2 * found.epochs > most


def test_without_time_for_the_shortest_training_there_is_no_search():
    def never(_):
        raise OutOfTimeError

    with pytest.raises(OutOfTimeError):
        searched(never, 1, 2)


@looped("errors", [(math.inf, math.inf), (0.1, math.inf), (math.inf, 0.1)])
def test_a_training_that_diverged_shows_nothing(errors):
    found, _ = searched(dict(zip((2, 4), errors, strict=True)).__getitem__, 2, 4)
    assert found == Convergence(4, None, shown=False)


def test_an_attacker_is_as_converged_as_its_worst_selection():
    good, better = Convergence(8, 0.009, shown=True), Convergence(16, -0.1, shown=True)
    bad, never = Convergence(32, 0.02, shown=False), Convergence(4, None, shown=False)
    assert least_converged([]) is None
    assert least_converged([better, good]) == good
    assert least_converged([good, bad, better]) == bad
    assert least_converged([bad, never]) == never


def test_the_flag_names_the_attackers_that_might_gain():
    good, bad = Convergence(8, 0.0, shown=True), Convergence(8, 0.5, shown=False)
    assert not_trained_out({"static": good}) == []
    [flag] = not_trained_out({"static": bad, "retrained": good, "averaging": bad})
    assert (flag.name, flag.detail.split(" might")[0]) == ("not-trained-out", "static, averaging")
    [flag] = not_trained_out({"static": bad}, "clean scores")
    assert flag.detail.startswith("static on clean scores might")


def test_most_epochs_below_the_first_are_refused():
    with pytest.raises(InvalidOptionError, match=r"most_epochs must be .* at least 24"):
        AttackerSpec(most_epochs=23)
    assert AttackerSpec().longest == 8 * 24


def test_grace_and_patience_keep_their_share_of_longer_trainings():
    spec = AttackerSpec(training=TrainingSettings(epochs=4, grace=2, patience=3))
    assert spec.training_for(4) == spec.training
    longer = dataclasses.replace(spec.training, epochs=16, grace=8, patience=12)
    assert spec.training_for(16) == longer


CLASSES = 3


@pytest.fixture(scope="module")
def data():
    """Stripes whose place is the class and whose brightness is in the scores alone."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % CLASSES
    brightness = 0.1 + 0.9 * torch.rand(90, generator=generator)
    images = 0.05 * torch.rand(90, 1, 8, 8, generator=generator)
    for image, label, level in zip(images, labels.tolist(), brightness, strict=True):
        image[:, :, 2 * label : 2 * label + 3] += 0.9 * level
    logits = torch.eye(CLASSES)[labels] * (1 + 4 * brightness.unsqueeze(-1))
    return images, logits.softmax(-1)


SPEC = AttackerSpec(
    names=("label-only", "kernel-ridge", "static", "retrained"),
    input_transforms=("standardized", "leading"),
    widths=(4,),
    training=TrainingSettings(
        epochs=2, batch_size=32, learning_rate=0.02, averaging=0.8, schedule="one-cycle"
    ),
    most_epochs=8,
)


def run_on(attacking, data, released=None, **options):
    images, clean = data
    released = clean if released is None else released
    knowledge = AttackerKnowledge(images, clean, released, attacking.held_out)
    return attacking.run("some", knowledge, released[:30], images[:30], **options)


def test_a_selection_trains_each_length_of_its_first_decoder_once_and_the_rest_at_one(
    data, tmp_path, monkeypatch
):
    """The longer training, which showed that it gains nothing, takes part in the mixture."""
    images, clean = data
    train, mix = attackers.train_inverter, attackers.mix_decoders
    trained, mixed = [], []

    def seen(network, *args, settings, **options):
        trained.append((network.input_transform.__class__.__name__, settings.epochs))
        return train(network, *args, settings=settings, **options)

    def mixing(decoders, *args):
        mixed.append(len(decoders))
        return mix(decoders, *args)

    monkeypatch.setattr(attackers, "train_inverter", seen)
    monkeypatch.setattr(attackers, "mix_decoders", mixing)
    # Of so wide a gap any gain is small; of so narrow a one each gain is large.
    for gap, shown, lengths in ((1e9, True, [2, 4]), (1e-9, False, [2, 4, 8])):
        attacking = prepare_attackers(SPEC, images, Store(tmp_path / str(gap)), 0, no_progress)
        trained.clear(), mixed.clear()
        _, found = attacking.train_decoder(
            "some", clean, images, attacking.held_out, gap=lambda _, gap=gap: gap
        )
        assert (found.shown, found.epochs) == (shown, lengths[0] if shown else lengths[-1])
        first, other = (name for name in dict.fromkeys(name for name, _ in trained))
        assert trained == [*((first, length) for length in lengths), (other, found.epochs)]
        assert mixed == [3 if shown else 2]


def test_what_was_trained_is_not_trained_again(data, tmp_path, monkeypatch):
    attacking = prepare_attackers(SPEC, data[0], Store(tmp_path), 0, no_progress)
    counts = count_trainings(monkeypatch)
    first = run_on(attacking, data)
    before = counts["inverter"]
    truth = data[0][attacking.held_out]
    errors = CleanErrors.of(first.values(), truth)
    assert errors.best <= errors.quick < math.inf
    # Clean scores that are released have the gap of clean scores, and the same decoders.
    again = run_on(attacking, data, clean_errors=errors)
    assert counts["inverter"] == before
    for name, result in first.items():
        assert torch.equal(result.errors, again[name].errors)
        assert result.convergence == again[name].convergence
    assert first["static"].convergence == first["retrained"].convergence
    assert first["kernel-ridge"].convergence is None


def test_when_time_is_over_only_attackers_without_decoders_are_left(data, tmp_path):
    """And the label-only attacker, who knows the mean images; the store keeps no cut training."""
    attacking = prepare_attackers(SPEC, data[0], Store(tmp_path), 0, no_progress, lambda: True)
    results = run_on(attacking, data)
    assert set(results) == {"label-only", "kernel-ridge"}
    assert results["label-only"].convergence is None
    assert not list(tmp_path.rglob("*.safetensors"))
    # Where time ends during the decoder's longer training, the shorter one is kept.
    steps = -(-int((~attacking.held_out).sum()) // SPEC.training.batch_size)
    clock = itertools.count()
    trainer = dataclasses.replace(
        attacking.trainer, is_late=lambda: next(clock) >= 2 * steps + steps // 2
    )
    alone = dataclasses.replace(SPEC, input_transforms=("standardized",))
    decoder, found = dataclasses.replace(attacking, spec=alone, trainer=trainer).train_decoder(
        "cut", data[1], data[0], attacking.held_out
    )
    assert found == Convergence(2, None, shown=False)
    assert decoder(data[1][:2]).shape == data[0][:2].shape


def test_who_averages_random_answers_needs_no_time_for_decoders(data, tmp_path):
    """Else a short audit would call noise protection that any client takes the mean of."""
    images, clean = data
    noise = torch.Generator().manual_seed(1)

    def noisy(asked, times):
        scores = clean[torch.cdist(asked.flatten(1), images.flatten(1)).argmin(-1)].log()
        drawn = torch.randn(times, *scores.shape, generator=noise)
        return (scores + 3 * drawn).softmax(-1)

    def out_of_time(*_):
        raise OutOfTimeError

    spec = dataclasses.replace(SPEC, names=("label-only", "kernel-ridge", "averaging"))
    attacking = prepare_attackers(spec, images, Store(tmp_path), 0, no_progress, lambda: True)
    once = noisy(images, 1)[0]
    knowledge = AttackerKnowledge(
        images, clean, once, attacking.held_out, query=noisy, random=True, repeats=(200,)
    )
    answered = {}
    results = attacking.run("some", knowledge, once[:30], images[:30], asked=answered)
    assert results["averaging"].convergence is None
    assert results["averaging"].error < 0.5 * results["kernel-ridge"].error
    late = dataclasses.replace(knowledge, query=out_of_time)
    again = attacking.run("some", late, once[:30], images[:30], asked=answered)
    assert torch.equal(again["averaging"].errors, results["averaging"].errors)
    assert set(attacking.run("some", late, once[:30], images[:30])) == {
        "label-only",
        "kernel-ridge",
    }


def test_the_gap_begins_at_the_mean_images_of_labels(data):
    images, clean = data
    held_out = torch.arange(len(images)) % 5 == 0
    labels = clean.argmax(-1)
    total = []
    for image, label in zip(images[held_out], labels[held_out], strict=True):
        mean = images[~held_out & (labels == label)].double().mean(0)
        total.append(float((image.double() - mean).square().mean()))
    expected = sum(total) / len(total)
    assert label_only_error(clean, images, held_out) == pytest.approx(expected, rel=1e-5)
