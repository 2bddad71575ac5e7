"""Gaussian and Dirichlet noise and the one-parameter mechanism: their distributions."""

import math

import pytest
import torch

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.dirichlet_noise import DirichletNoise
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.one_parameter import OneParameter, _truncated_laplace
from oneway.errors import InvalidOptionError
from rows import leads, random_rows, same_bits

COUNT = 4000
RANDOM = {
    "standard_deviation": GaussianNoise,
    "concentration": DirichletNoise,
    "epsilon": OneParameter,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_the_deviation_it_was_told_and_no_mean():
    logits = random_rows(0, 3, 5, torch.float64, 2)
    noise = GaussianNoise(standard_deviation=0.7, generator=seeded())
    moved = noise.draws(logits, None, COUNT) - logits
    assert moved.mean(0).abs().max() < 4 * 0.7 / COUNT**0.5
    assert (moved.std(0) / 0.7 - 1).abs().max() < 4 / (2 * COUNT) ** 0.5
    # Entries do not move together.
    assert torch.corrcoef(moved.flatten(1).T).fill_diagonal_(0).abs().max() < 5 / COUNT**0.5


@looped("concentration", [2.0, 40.0])
def test_dirichlet_noise_has_the_mean_and_variance_of_its_distribution(concentration):
    logits = random_rows(1, 3, 4, torch.float64, 1)
    clean = logits.softmax(-1)
    noise = DirichletNoise(concentration=concentration, generator=seeded())
    drawn = noise.draws(logits, None, COUNT).softmax(-1)
    variance = clean * (1 - clean) / (concentration + 1)
    assert ((drawn.mean(0) - clean).abs() < 5 * (variance / COUNT).sqrt()).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.25, atol=1e-5)


def test_dirichlet_draws_of_tiny_parameters_have_the_logs_of_a_gamma_draw():
    # The log of a gamma draw of a small parameter a is that of a uniform number over a.
    logits = torch.tensor([[0.0, math.log(1e-5)]], dtype=torch.float64)
    noise = DirichletNoise(concentration=1.0, generator=seeded())
    logs = noise.draws(logits, None, COUNT)[:, 0, 1]
    parameter = float(logits.softmax(-1)[0, 1])
    share = float((logs < math.log(0.5) / parameter).double().mean())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / COUNT**0.5)


@looped("rate", [1e-9, 0.5, 8.0, 1e6])
@looped("center", [0.0, 1e-12, 0.3, 1.0])
def test_scores_are_drawn_from_a_truncated_laplace_distribution(center, rate):
    uniform = torch.rand(COUNT, generator=seeded(3), dtype=torch.float64)
    drawn = _truncated_laplace(torch.full_like(uniform, center), uniform, rate).sort().values
    assert ((drawn > 0) & (drawn <= 1)).all()
    # Its distribution function, by a sum over a fine grid around the center.
    width = min(1.0, 40 / rate)
    low, high = max(0.0, center - width), min(1.0, center + width)
    grid = torch.linspace(low, high, 200_001, dtype=torch.float64)
    density = torch.exp(-rate * (grid - center).abs())
    mass = density.cumsum(0) / density.sum()
    at = torch.searchsorted(grid, drawn).clamp_max(len(grid) - 1)
    empirical = torch.arange(1, COUNT + 1) / COUNT
    # Kolmogorov's bound, passed by chance once in ten thousand.
    assert (mass[at] - empirical).abs().max() < 2.3 / COUNT**0.5


@looped("dtype", FLOATING)
def test_one_parameter_keeps_the_order_of_all_scores(dtype):
    logits = random_rows(2, 40, 6, dtype, 2)
    told = OneParameter(epsilon=3.0, generator=seeded()).draws(logits, None, 20)
    order = logits.argsort(dim=-1, descending=True, stable=True).expand(20, -1, -1)
    ranked = told.gather(-1, order)
    assert (ranked.diff(dim=-1) <= 0).all()
    assert leads(told, logits.argmax(-1).expand(20, -1))


def test_more_epsilon_is_less_noise():
    logits = random_rows(2, 40, 6, torch.float64, 1)
    clean, distances = logits.softmax(-1), []
    for epsilon in (1.0, 30.0, 1e3, 1e6):
        told = OneParameter(epsilon=epsilon, generator=seeded())(logits).softmax(-1)
        distances.append(float((told - clean).abs().sum(-1).mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4
    assert distances[0] > 0.2


@looped("option", RANDOM)
def test_one_answer_is_the_first_of_several_draws(option):
    logits = random_rows(2, 7, 5, torch.float32, 2)
    build = RANDOM[option]
    answer = build(generator=seeded(4))(logits)
    assert same_bits(answer, build(generator=seeded(4)).draws(logits, None, 1)[0])
    assert answer.shape == logits.shape


@looped("option", RANDOM)
def test_what_is_no_generator_is_refused(option):
    build = RANDOM[option]
    with pytest.raises(InvalidOptionError, match=r"generator must be a torch\.Generator"):
        build(generator=None)
    with pytest.raises(TypeError, match="generator"):
        build()


@looped("build", [GaussianNoise, DirichletNoise])
def test_a_kept_label_leads_by_the_margin(build):
    logits = random_rows(2, 60, 5, torch.float64, 1)
    free = build(generator=seeded())(logits)
    kept = build(generator=seeded(), keep_label=True, margin=0.5)(logits)
    labels = logits.argmax(-1, keepdim=True)
    lead = kept.gather(-1, labels) - kept.scatter(-1, labels, -torch.inf).amax(-1, keepdim=True)
    assert (lead > 0.5 - 1e-9).all()
    assert torch.equal(kept.scatter(-1, labels, 0), free.scatter(-1, labels, 0))
