"""Decoys: codewords that mislead within their budgets, and change nothing else."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from defenses.codebook.scored import PIXELS, scored
from oneway.defenses.codebook import FitSettings, fit_codebook, plant_decoys
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from rows import random_rows
from surrogates import random_images, small_inverter

CLASSES = 4


class Smooth(nn.Module):
    """A surrogate that reads probabilities, and whose images vary with them everywhere."""

    def __init__(self, seed, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(classes, 24), nn.Tanh(), nn.Linear(24, 16), nn.Sigmoid()
        ).double()
        with torch.no_grad():
            for parameter in self.parameters():
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(values)

    def forward(self, confidences):
        return self.layers(confidences).view(-1, *PIXELS)


@pytest.fixture(scope="module")
def training_data():
    logits, images = scored(1, 500)
    return fit_codebook(logits, FitSettings(min_members=10, rate_weight=0.005)), logits, images


SURROGATES = [Smooth(1), Smooth(2)]


def released_by(book):
    return book.expand(book.values, torch.arange(book.sizes.cells))


def mean_images(book, logits, images):
    """Each cell's mean query, by a loop; its label's, or everyone's, where nobody is in it."""
    cells, found = book(logits).tolist(), []
    for cell, label in enumerate(book.labels.tolist()):
        own = [row for row, other in enumerate(cells) if other == cell]
        own = own or [row for row, other in enumerate(cells) if book.labels[other] == label]
        found.append(images[own or list(range(len(cells)))].mean(0))
    return torch.stack(found)


def errors_of(book, targets, surrogates=SURROGATES):
    """Return each codeword's error, averaged over surrogates."""
    with torch.no_grad():
        told = [surrogate(released_by(book).to(targets.dtype)) for surrogate in surrogates]
    return torch.stack([(one - targets).square().flatten(1).mean(-1) for one in told]).mean(0)


def test_codewords_stay_within_their_budgets_and_their_label_leads():
    logits, images = scored(1, 500)
    for explicit in (4, 2):
        settings = FitSettings(min_members=10, rate_weight=0.005, explicit_classes=explicit)
        book = fit_codebook(logits, settings)
        for l1_budget, nats, step_size in (
            (0.02, None, 0.1),
            (0.3, None, 0.1),
            (0.3, 0.05, 0.1),
            (5.0, 0.5, 2.0),
            (5.0, None, 0.5),
        ):
            case = f"{explicit} explicit classes, L1 {l1_budget}, {nats} nats"
            options = {"l1_budget": l1_budget, "nats": nats, "steps": 20, "step_size": step_size}
            decoys = plant_decoys(book, logits, images, SURROGATES, **options)
            before, after = released_by(book), released_by(decoys)
            moved = (after - before).abs().sum(-1)
            assert (moved <= l1_budget + 1e-9).all(), case
            assert moved.median() > min(0.01, l1_budget / 4), case
            if nats is not None:
                apart = centered_move(before, after)
                assert (apart <= nats + 1e-9).all(), case
                assert apart.max() > 0.9 * nats or moved.max() > 0.9 * l1_budget, case
            index = book.labels.unsqueeze(-1)
            rivals = after.scatter(-1, index, -1).amax(-1, keepdim=True)
            assert (after.gather(-1, index) > rivals).all(), case
            assert (after.sum(-1) - 1).abs().max() < 1e-12, case
            assert decoys.fault() is None, case


def centered_move(before, after):
    """Return the mean absolute difference of centered logits per class, of each codeword."""
    logs = after.log() - before.log()
    return (logs - logs.mean(-1, keepdim=True)).abs().mean(-1)


def test_a_budget_in_nats_is_of_centered_logits_and_is_used_up(training_data):
    """A step that lowers most classes is as long as one that raises the rest: a softmax ignores
    what all logits have in common."""
    book, logits, images = training_data
    decoys = plant_decoys(
        book, logits, images, SURROGATES, l1_budget=2.0, nats=0.05, steps=1, step_size=2.0
    )
    moved = centered_move(released_by(book), released_by(decoys))
    used = moved[moved > 1e-9]  # others would be misled by no step of this length
    assert len(used) > len(moved) / 2
    torch.testing.assert_close(used, torch.full_like(used, 0.05), rtol=1e-6, atol=0)


def test_nothing_but_codewords_changes_and_not_those_of_the_table_itself(training_data):
    book, logits, images = training_data
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    weights = [parameter.clone() for one in SURROGATES for parameter in one.parameters()]
    given = logits.clone(), images.clone()
    decoys = plant_decoys(book, logits, images, SURROGATES, steps=5)
    for name, tensor in book.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(decoys.state_dict()[name], before[name]) == (name != "values")
    asked = scored(2, 300)[0]
    assert torch.equal(decoys(asked), book(asked))
    assert torch.equal(logits, given[0])
    assert torch.equal(images, given[1])
    after = [parameter for one in SURROGATES for parameter in one.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))
    assert all(parameter.grad is None for parameter in after)


def test_the_surrogates_err_more_and_more_so_with_more_budget(training_data):
    book, logits, images = training_data
    targets = mean_images(book, logits, images)
    clean = errors_of(book, targets)
    assert clean.isfinite().all()
    means = [float(clean.mean())]
    for budget in (0.005, 0.02, 0.08, 0.3):
        decoys = plant_decoys(book, logits, images, SURROGATES, l1_budget=budget, steps=40)
        errors = errors_of(decoys, targets)
        # Of every single codeword, and not on average alone.
        assert (errors >= clean - 1e-12).all()
        means.append(float(errors.mean()))
    assert all(one < other for one, other in itertools.pairwise(means))
    assert means[-1] > 1.03 * means[0]
    # Steps that are far too long mislead less, and never help.
    decoys = plant_decoys(book, logits, images, SURROGATES, l1_budget=1.0, steps=10, step_size=5.0)
    assert (errors_of(decoys, targets) >= clean - 1e-12).all()
    # Random moves of the same size mislead far less.
    strayed = []
    for seed in range(10):
        noise = random_rows(seed, *book.values.shape, torch.float64, 1)
        noise = noise - noise.mean(-1, keepdim=True)
        values = released_by(book) + 0.3 * noise / noise.abs().sum(-1, keepdim=True)
        values = values.clamp_min(1e-9)
        with torch.no_grad():
            told = [surrogate(values / values.sum(-1, keepdim=True)) for surrogate in SURROGATES]
        strayed.append(float(torch.stack([(one - targets).square().mean() for one in told]).mean()))
    assert means[-1] - means[0] > 3 * (np.mean(strayed) - means[0])


def test_one_small_step_goes_where_the_error_rises(training_data):
    """Against differences of the error itself, along each stored value."""
    book, logits, images = training_data
    targets = mean_images(book, logits, images)
    step = 1e-4
    decoys = plant_decoys(book, logits, images, SURROGATES, steps=1, step_size=step, l1_budget=1.0)
    logs = book.values.log()

    def errors_at(values):
        with torch.no_grad():
            rows = book.expand(values, torch.arange(len(values))).softmax(-1)
            told = torch.stack(
                [(one(rows) - targets).square().flatten(1).mean(-1) for one in SURROGATES]
            )
        return told.mean(0)

    slopes = torch.stack(
        [
            (errors_at(logs + nudge) - errors_at(logs - nudge)) / 2e-6
            for nudge in 1e-6 * torch.eye(logs.shape[1], dtype=torch.float64)
        ],
        -1,
    )
    clear = (slopes.abs() > 1e-7).all(-1) & (book.values[:, 0] > 1.05 * book.values[:, 1:].amax(-1))
    assert clear.sum() > 10
    moved = decoys.values.log() - logs
    # Up to a constant per row, which normalizes.
    index = slopes.sign() * step
    wanted = index - (index.exp() * book.values).sum(-1, keepdim=True).log()
    torch.testing.assert_close(moved[clear], wanted[clear], rtol=0, atol=1e-9)


def test_cells_that_nobody_is_in_aim_at_their_label_s_image():
    logits, images = (
        random_rows(3, 120, 6, torch.float64, 2),
        random_images(4, 120, PIXELS).double(),
    )
    logits[:, 2] = -50
    book = fit_codebook(logits, FitSettings(min_members=5, rate_weight=0.0))
    # Asked about by a few: most cells are empty then, and one label has nobody.
    few = logits[:15], images[:15]
    targets = mean_images(book, *few)
    surrogates = [Smooth(1, 6)]
    decoys = plant_decoys(book, *few, surrogates, l1_budget=0.1, steps=20)
    clean, after = (errors_of(one, targets, surrogates) for one in (book, decoys))
    assert (after >= clean - 1e-12).all()
    assert (after > clean + 1e-6).double().mean() > 0.8


def test_a_trained_kind_of_surrogate_in_float32_is_misled_by_a_sparse_table():
    logits, images = scored(5, 400)
    book = fit_codebook(
        logits.float(), FitSettings(min_members=10, rate_weight=0.005, explicit_classes=2)
    )
    surrogates = [small_inverter(seed, CLASSES, PIXELS) for seed in (1, 2)]
    found = []
    for queries in (images.float(), images):
        decoys = plant_decoys(book, logits.float(), queries, surrogates, l1_budget=0.3, steps=20)
        targets = mean_images(book, logits, images).float()
        clean, after = (errors_of(one, targets, surrogates) for one in (book, decoys))
        assert (after >= clean - 1e-6).all()
        assert after.mean() > 1.002 * clean.mean()
        found.append(decoys.values)
    torch.testing.assert_close(*found, rtol=0, atol=0.02)


def test_a_value_next_to_nothing_stays_above_nothing():
    logits = torch.cat([torch.zeros(30, 1), torch.full((30, 1), -900.0)], -1).double()
    logits = torch.cat([logits, logits.flip(-1)])
    book = fit_codebook(logits, FitSettings(min_members=10))
    images = random_images(1, 60, PIXELS).double()
    decoys = plant_decoys(book, logits, images, [Smooth(1, 2)], steps=30, step_size=20.0)
    assert decoys.fault() is None


def test_inference_mode_and_no_grad_change_nothing(training_data):
    book, logits, images = training_data
    wanted = plant_decoys(book, logits, images, SURROGATES, steps=3).values
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            told = plant_decoys(book, logits, images, SURROGATES, steps=3).values
        assert torch.equal(told, wanted)


def test_options_outside_their_range_are_refused_by_name(training_data):
    for options, text in (
        ({"l1_budget": 0}, "l1_budget must be positive"),
        ({"l1_budget": math.nan}, "l1_budget must be a finite number"),
        ({"nats": 0.0}, "nats must be positive"),
        ({"steps": 0}, "steps must be"),
        ({"step_size": -1}, "step_size must be positive"),
    ):
        with pytest.raises(InvalidOptionError, match=text):
            plant_decoys(*training_data, SURROGATES, **options)


def test_what_decoys_cannot_be_made_of_is_refused(training_data):
    book, logits, images = training_data
    with pytest.raises(InvalidOptionError, match="surrogates must hold at least one"):
        plant_decoys(book, logits, images, [])
    with pytest.raises(InvalidTensorError, match="4 classes"):
        plant_decoys(book, logits[:, :3], images, SURROGATES)
    with pytest.raises(InvalidTensorError, match="one per row"):
        plant_decoys(book, logits, images[:9], SURROGATES)
    broken = Smooth(3)
    nn.init.constant_(broken.layers[0].weight, torch.nan)
    with pytest.raises(DefenseFailedError, match=r"gradient is not finite.*Check that it was"):
        plant_decoys(book, logits, images, [Smooth(1), broken])
