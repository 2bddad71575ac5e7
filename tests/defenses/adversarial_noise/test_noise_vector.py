"""Laws of Algorithm 1, and its agreement with the plain NumPy version."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.adversarial_noise import noise_vector
from oneway.defenses.adversarial_noise.noise_vector import part_from_ties
from oneway.errors import InvalidOptionError, InvalidTensorError
from reference import wen2021
from rows import leads, random_rows, same_bits, score_rows, smallest_subnormal

NORMS = (1, 2, math.inf)
NORM = st.sampled_from(NORMS)
BUDGET = st.none() | st.sampled_from([1e-6, 0.01, 0.3, 1.0, 40.0])
STEP_SIZE = st.sampled_from([1e-3, 0.1, 0.4, 5.0])
THE_LARGEST = torch.tensor([[[0.0] * 8], [[2.0**1021] * 8], [[0.0] * 8]], dtype=torch.float64)
"""Clean, current and gradients whose noise has a norm beyond float64."""


def excess(clean: Tensor, noise: Tensor, budget: float, norm: float) -> Tensor:
    """Return each row's norm beyond the budget, in units of the documented rounding."""
    clean, wide, limits = clean.double(), noise.double(), torch.finfo(noise.dtype)
    largest = torch.maximum(clean.abs().amax(-1), (clean + wide).abs().amax(-1))
    rounding = limits.eps * (4 * budget + 5 * largest)
    rounding += (clean.shape[-1] + 3) * smallest_subnormal(noise.dtype)
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    size = scale[..., 0] * torch.linalg.vector_norm(wide / scale, ord=norm, dim=-1)
    return (size - budget) / rounding


@given(score_rows(count=3), STEP_SIZE, BUDGET, NORM)
def test_label_is_the_only_maximum_of_clean_plus_noise_in_its_own_type(
    rows, step_size, budget, norm
):
    clean = rows[0]
    before = [tensor.clone() for tensor in rows]
    noise = noise_vector(*rows, step_size=step_size, budget=budget, norm=norm)
    assert noise.dtype == clean.dtype
    assert leads(clean + noise, clean.argmax(-1))
    assert all(map(same_bits, rows, before))


@looped("rival_sign", [1, -1])
def test_label_leads_for_every_pair_of_bfloat16_mantissas(rival_sign):
    mantissas = 1 + torch.arange(128) / 128
    exponents = 2.0 ** torch.arange(-10, 11)
    own = torch.cat([mantissas * exponent * sign for exponent in exponents for sign in (1, -1)])
    clean = torch.cartesian_prod(own, rival_sign * mantissas).bfloat16()
    labels = torch.zeros(len(clean), dtype=torch.int64)
    noise = part_from_ties(clean, torch.zeros_like(clean), labels)
    assert leads(clean + noise, labels)
    assert not noise[clean[:, 0] > clean[:, 1]].any()
    label, rival = clean.double().unbind(-1)
    beyond = (noise.double()[:, 0] - (rival - label)) / clean.double().abs().amax(-1)
    assert (beyond[label <= rival] <= 5 * torch.finfo(torch.bfloat16).eps).all()


@given(score_rows(count=3), STEP_SIZE, BUDGET.filter(bool), NORM)
def test_no_row_of_noise_measures_more_than_the_budget(rows, step_size, budget, norm):
    noise = noise_vector(*rows, step_size=step_size, budget=budget, norm=norm)
    assert (excess(rows[0], noise, budget, norm) <= 1).all()


@looped("dtype", FLOATING)
@looped("norm", NORMS)
def test_ten_thousand_classes(dtype, norm):
    clean, current, gradients = (random_rows(seed, 3, 10_000, dtype, 5) for seed in range(3))
    noise = noise_vector(clean, current, gradients, step_size=0.1, budget=1.0, norm=norm)
    assert leads(clean + noise, clean.argmax(-1))
    assert (excess(clean, noise, 1.0, norm) <= 1).all()


@given(score_rows(count=3), STEP_SIZE, BUDGET, NORM)
def test_each_row_stands_for_itself_to_the_bit(rows, step_size, budget, norm):
    options = {"step_size": step_size, "budget": budget, "norm": norm}
    together = noise_vector(*rows, **options)
    assert same_bits(noise_vector(*rows, **options), together)
    order = list(reversed(range(len(together))))
    twice = order + order
    mixed = noise_vector(*(tensor[twice] for tensor in rows), **options)
    assert same_bits(mixed, together[twice])
    for row in order:
        assert same_bits(noise_vector(*(tensor[row] for tensor in rows), **options), together[row])


@looped("norm", NORMS)
def test_each_of_ten_thousand_classes_wide_rows_stands_for_itself_to_the_bit(norm):
    rows = [random_rows(seed, 4, 10_000, torch.float32, 5) for seed in range(3)]
    together = noise_vector(*rows, step_size=0.1, budget=1.0, norm=norm)
    for row, expected in enumerate(together):
        alone = [tensor[row : row + 1] for tensor in rows]
        noise = noise_vector(*alone, step_size=0.1, budget=1.0, norm=norm)
        assert same_bits(noise[0], expected)


@looped("norm", NORMS)
@looped("spread", [3.0, 1e150])
def test_rows_of_very_different_scale_stand_for_themselves_to_the_bit(norm, spread):
    scales = torch.tensor([[1 / spread], [1.0], [spread]], dtype=torch.float64)
    rows = [scales * random_rows(seed, 3, 6, torch.float64, 1) for seed in range(3)]
    options = {"step_size": 1e-160, "budget": 0.01 / spread, "norm": norm, "margin": 1e-160}
    together = noise_vector(*rows, **options)
    sizes = torch.linalg.vector_norm(together / together.abs().amax(), ord=norm, dim=-1)
    torch.testing.assert_close(sizes, sizes[:1].expand(3))
    for row, expected in enumerate(together):
        alone = noise_vector(*(tensor[row : row + 1] for tensor in rows), **options)
        assert same_bits(alone[0], expected)


@looped("norm", NORMS)
def test_a_row_of_large_noise_leaves_the_others_alone(norm):
    clean = torch.zeros(3, 4)
    clean[:, 0] = 1
    current = clean + torch.tensor([[1e-3], [1.0], [1e6]]) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    noise = noise_vector(clean, current, torch.zeros(3, 4), step_size=0.1, budget=10.0, norm=norm)
    assert torch.equal(noise[:2], (current - clean)[:2])
    assert torch.linalg.vector_norm(noise[2], ord=norm).item() == pytest.approx(10, rel=1e-6)


@given(score_rows((torch.float64,), count=3), STEP_SIZE)
@example(tuple(THE_LARGEST), 0.1)
def test_without_a_budget_equals_the_reference(rows, step_size):
    expected = wen2021.noise_vector(*(tensor.numpy() for tensor in rows), step_size=step_size)
    noise = noise_vector(*rows, step_size=step_size)
    largest = float(max(tensor.abs().max() for tensor in rows[:2]))
    torch.testing.assert_close(
        noise, torch.from_numpy(expected), rtol=1e-15, atol=4 * 2.0**-52 * largest
    )


@looped("norm", NORMS)
@looped("budget", [0.05, 1.0, 30.0])
@looped("step_size", [0.1, 2.0])
def test_with_a_budget_equals_the_reference(norm, budget, step_size):
    clean, moved, gradients = (random_rows(seed, 20, 7, torch.float64, 2) for seed in range(3))
    gradients[gradients.abs() < 0.3] = 0
    options = {"step_size": step_size, "budget": budget, "norm": norm}
    rows = (clean, clean + moved, gradients)
    expected = wen2021.noise_vector(*(tensor.numpy() for tensor in rows), **options)
    torch.testing.assert_close(
        noise_vector(*rows, **options), torch.from_numpy(expected), rtol=1e-12, atol=1e-14
    )


def test_noise_is_counted_from_the_clean_logits():
    clean, current = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    noise = noise_vector(clean, current, torch.tensor([[0.0, 1.0, -2.0]]), step_size=0.5)
    assert noise.tolist() == [[0.0, 1.5, -0.5]]


@given(score_rows(count=2))
def test_where_the_gradient_is_zero_only_the_label_may_move(rows):
    clean, _ = rows
    noise = noise_vector(clean, clean, torch.zeros_like(clean), step_size=0.1)
    assert (noise.scatter(-1, clean.argmax(-1, keepdim=True), 0) == 0).all()


@given(score_rows(count=3), st.floats(2.0**-10, 2.0**10))
def test_only_the_sign_of_the_gradient_counts(rows, factor):
    clean, current, gradients = rows
    signs = gradients.sign()
    assert same_bits(
        noise_vector(clean, current, gradients, step_size=0.1),
        noise_vector(clean, current, (signs * factor).to(clean.dtype), step_size=0.1),
    )


def test_noise_carries_no_gradient_of_its_own():
    rows = [torch.rand(2, 3, requires_grad=True) for _ in range(3)]
    assert not noise_vector(*rows, step_size=0.1, budget=1.0).requires_grad


def test_logits_with_no_room_above_them_are_refused():
    largest = torch.finfo(torch.float16).max
    clean = torch.tensor([[largest, largest]], dtype=torch.float16)
    with pytest.raises(InvalidTensorError, match=r"too close to the largest .*float16"):
        noise_vector(clean, clean, torch.zeros_like(clean), step_size=0.1)


@looped(("position", "name"), [(0, "clean_logits"), (1, "current_logits"), (2, "gradients")])
@looped(
    ("wrong", "message"),
    [
        (torch.tensor([[0.0, math.nan, 1.0]]), "finite"),
        (torch.zeros(1, 3, dtype=torch.int64), "floating"),
        ([[0.0, 1.0, 2.0]], r"torch\.Tensor, but got list"),
    ],
    ids=["not finite", "integers", "a list"],
)
def test_a_wrong_tensor_is_refused_by_name(position, name, wrong, message):
    rows = [torch.zeros(1, 3) for _ in range(3)]
    rows[position] = wrong
    with pytest.raises(InvalidTensorError, match=f"{name} must be .*{message}"):
        noise_vector(*rows, step_size=0.1)


@looped("position", [1, 2])
def test_a_tensor_of_another_shape_than_the_clean_logits_is_refused(position):
    rows = [torch.zeros(2, 3) for _ in range(3)]
    rows[position] = torch.zeros(3)
    with pytest.raises(InvalidTensorError, match=r"clean logits, \(2, 3\), but got \(3,\)"):
        noise_vector(*rows, step_size=0.1)


@looped(
    ("options", "message"),
    [
        ({"step_size": 0}, "step_size must be positive"),
        ({"step_size": math.nan}, "step_size must be a finite number"),
        ({"budget": 0.0}, "budget must be positive"),
        ({"budget": math.inf}, "budget must be a finite number"),
        ({"norm": 3}, "norm must be 1, 2 or math.inf, but got 3"),
        ({"norm": True}, "norm must be 1, 2 or math.inf, but got True"),
        ({"margin": 0}, "margin must be positive"),
    ],
)
def test_an_option_outside_its_range_is_refused(options, message):
    rows = [torch.zeros(1, 3) for _ in range(3)]
    with pytest.raises(InvalidOptionError, match=message):
        noise_vector(*rows, **{"step_size": 0.1, **options})
