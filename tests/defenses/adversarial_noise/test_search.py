"""Laws of where a search starts and which way it steps, whatever the gradients."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses.adversarial_noise.search import (
    KeyedStart,
    Momentum,
    RandomStart,
    Search,
    SignSteps,
    noise_search,
)
from oneway.errors import InvalidOptionError
from reference import wen2021
from rows import random_rows, same_bits, score_rows, smallest_subnormal

WIDE = (torch.float32, torch.float64)
DECAYS = st.sampled_from([0.0, 0.5, 1.0, 1.5])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(name: str) -> SignSteps | Momentum:
    return noise_search(name, step_size=0.4, generator=seeded(0))


@given(score_rows(WIDE, 3), st.sampled_from(get_args(Search)))
def test_a_first_step_goes_along_the_sign_and_later_ones_at_most_one_step(gradients, name):
    search, gathered = built(name), None
    for number, gradient in enumerate(gradients):
        before = gradient.clone()
        direction, gathered = search.direction(gradient, gathered)
        assert same_bits(gradient, before)
        assert set(direction.unique().tolist()) <= {-1.0, 0.0, 1.0}
        if number == 0 or name != "momentum":
            # What is a 1e-300th of its row's largest gradient may count as 0.
            large = gradient.abs() >= 1e-300 * gradient.abs().amax(-1, keepdim=True)
            assert torch.equal(direction[large].double(), gradient.sign()[large].double())


@given(score_rows(WIDE, 3), DECAYS)
def test_momentum_sums_rows_scaled_to_an_l1_norm_of_1(gradients, decay):
    search, gathered = Momentum(decay), None
    sums = np.zeros(gradients[0].shape)
    for gradient in gradients:
        direction, gathered = search.direction(gradient, gathered)
        for row, values in enumerate(gradient.double().tolist()):
            largest = max(map(abs, values)) or 1.0
            scaled = [value / largest for value in values]
            total = sum(map(abs, scaled)) or 1.0
            for column, value in enumerate(scaled):
                sums[row, column] = decay * sums[row, column] + value / total
        torch.testing.assert_close(gathered, torch.from_numpy(sums), rtol=1e-12, atol=1e-15)
        assert torch.equal(direction, gathered.sign())


@given(score_rows(WIDE, 2), st.sampled_from(["sign", "momentum"]))
def test_a_row_s_direction_is_the_same_alone(gradients, name):
    search = built(name)
    first, gathered = search.direction(gradients[0], None)
    second, _ = search.direction(gradients[1], gathered)
    for row in range(len(first)):
        alone, kept = search.direction(gradients[0][row : row + 1], None)
        assert torch.equal(alone[0], first[row])
        assert torch.equal(search.direction(gradients[1][row : row + 1], kept)[0][0], second[row])


@looped("dtype", WIDE)
def test_momentum_takes_the_largest_and_the_smallest_gradients_alike(dtype):
    largest, smallest = torch.finfo(dtype).max, smallest_subnormal(dtype)
    gradients = torch.tensor([[largest, -largest], [smallest, -smallest], [0, 0]], dtype=dtype)
    direction, gathered = Momentum().direction(gradients, None)
    assert gathered.tolist() == [[0.5, -0.5], [0.5, -0.5], [0, 0]]
    assert direction.tolist() == [[1, -1], [1, -1], [0, 0]]


def test_momentum_goes_on_where_the_gradient_has_vanished():
    gradients = random_rows(1, 5, 4, torch.float32, 1)
    _, gathered = Momentum(0.5).direction(gradients, None)
    direction, kept = Momentum(0.5).direction(torch.zeros(5, 4), gathered)
    assert torch.equal(direction, gradients.sign().double())
    assert torch.equal(kept, gathered / 2)


@looped("decay", [0.0, 1.0])
def test_momentum_leaves_what_it_gathered_as_it_was(decay):
    gathered = random_rows(1, 5, 4, torch.float64, 1)
    before = gathered.clone()
    Momentum(decay).direction(random_rows(2, 5, 4, torch.float32, 1), gathered)
    assert same_bits(gathered, before)


@given(score_rows(WIDE), st.floats(1e-3, 1e3), st.integers(0, 2**63 - 1))
def test_a_start_is_drawn_within_the_radius_on_the_generator_alone(clean, radius, seed):
    before, state = clean.clone(), torch.get_rng_state()
    start = RandomStart(radius, seeded(seed)).start(clean)
    assert start.dtype == clean.dtype
    assert start.shape == clean.shape
    assert (start.abs() <= radius * (1 + torch.finfo(clean.dtype).eps)).all()
    assert same_bits(RandomStart(radius, seeded(seed)).start(clean), start)
    assert same_bits(clean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_starts_spread_evenly_from_end_to_end_and_move_on():
    search = RandomStart(2.0, seeded(3))
    start = search.start(torch.zeros(4000, 5))
    counts = torch.histc(start, bins=8, min=-2, max=2)
    assert counts.sum() == 20000
    assert ((counts - 2500).abs() < 250).all()
    assert not (search.start(torch.zeros(4000, 5)) == start).all(-1).any()


def test_a_start_of_many_rows_is_the_starts_of_its_rows():
    search = RandomStart(2.0, seeded(3))
    parts = [search.start(torch.zeros(rows, 7)) for rows in (1, 5, 64, 2)]
    assert same_bits(RandomStart(2.0, seeded(3)).start(torch.zeros(72, 7)), torch.cat(parts))


def key_of(seed: int) -> bytes:
    """Return the 32 bytes that a keyed start draws, by its documentation."""
    return np.array(torch.randint(2**62, (4,), generator=seeded(seed)).tolist(), "<i8").tobytes()


@given(score_rows(WIDE), st.floats(1e-3, 1e3), st.integers(0, 2**63 - 1))
def test_a_keyed_start_lies_within_the_radius_and_is_the_row_s_and_the_key_s(clean, radius, seed):
    before, state, generator = clean.clone(), torch.get_rng_state(), seeded(seed)
    search = KeyedStart(radius, generator)
    drawn = generator.get_state()
    start = search.start(clean)
    assert start.dtype == clean.dtype
    assert start.shape == clean.shape
    assert (start.abs() <= radius * (1 + torch.finfo(clean.dtype).eps)).all()
    assert same_bits(search.start(clean), start)
    assert same_bits(KeyedStart(radius, seeded(seed)).start(clean), start)
    assert same_bits(torch.cat([search.start(row) for row in clean.split(1)]), start)
    assert not torch.equal(KeyedStart(radius, seeded(seed ^ 1)).start(clean), start)
    assert same_bits(clean, before)
    assert torch.equal(torch.get_rng_state(), state)
    # The key is drawn once, and nothing after it.
    assert torch.equal(generator.get_state(), drawn)
    assert not torch.equal(drawn, seeded(seed).get_state())


def test_keyed_starts_equal_the_reference_however_far_scores_are_apart():
    clean = random_rows(2, 60, 7, torch.float64, 3)
    clean[::3] *= 40
    wanted = wen2021.keyed_starts(clean.numpy(), key_of(5), 1.7)
    start = KeyedStart(1.7, seeded(5)).start(clean)
    torch.testing.assert_close(start, torch.from_numpy(wanted), rtol=0, atol=1e-12)


def test_keyed_starts_spread_evenly_and_differ_from_row_to_row():
    start = KeyedStart(2.0, seeded(3)).start(random_rows(0, 4000, 5, torch.float32, 2))
    counts = torch.histc(start, bins=8, min=-2, max=2)
    assert counts.sum() == 20000
    assert ((counts - 2500).abs() < 250).all()
    assert len(start.unique(dim=0)) == 4000
    # No entry tells another one, nor the scores.
    assert torch.corrcoef(start.T).triu(1).abs().max() < 0.07


def test_scores_that_round_alike_share_a_start_and_others_do_not():
    search, logs = KeyedStart(1.0, seeded(3)), torch.tensor([[-0.51, -1.62, -1.70]]).double()
    logs[0, 0] = (1 - logs[0, 1:].exp().sum()).log()
    start = search.start(logs)
    assert same_bits(search.start(logs + 8), start)
    assert same_bits(search.start(logs + torch.tensor([0.0, 1e-3, 0.0])), start)
    assert not torch.equal(search.start(logs + torch.tensor([0.0, 0.03, 0.0])), start)


def test_a_score_below_every_limit_decides_nothing_more():
    search = KeyedStart(1.0, seeded(3))
    low = torch.tensor([[0.0, -100.0, -3000.0], [0.0, -120.0, -1e30]])
    assert same_bits(*(row.clone() for row in search.start(low)))


@looped(
    ("name", "kind", "deterministic", "starts"),
    [
        ("sign", SignSteps, True, False),
        ("random-start", RandomStart, False, True),
        ("keyed-start", KeyedStart, True, True),
        ("momentum", Momentum, True, False),
    ],
)
def test_each_name_gives_its_search(name, kind, deterministic, starts):
    search = built(name)
    assert type(search) is kind
    assert search.deterministic is deterministic
    assert (search.start(torch.zeros(2, 3)) is not None) is starts
    assert search.start(torch.zeros(0, 3)) is None or search.start(torch.zeros(0, 3)).shape == (
        0,
        3,
    )


def test_options_reach_their_search_and_have_defaults():
    generator = seeded(0)
    options = {"step_size": 0.4, "generator": generator}
    for name in ("random-start", "keyed-start"):
        assert noise_search(name, **options).radius == 0.4
        assert noise_search(name, start_radius=0.1, **options).radius == 0.1
    assert noise_search("random-start", **options).generator is generator
    assert noise_search("momentum", **options).decay == 1.0
    assert noise_search("momentum", decay=0, **options).decay == 0


class ElsewhereGenerator(torch.Generator):
    """A generator on a GPU, on a machine that has none."""

    device = torch.device("cuda")


@looped(
    ("name", "options", "message"),
    [
        ("sign", {"decay": 1.0}, "decay is an option of search='momentum', but .* 'sign'"),
        ("sign", {"start_radius": 0.1}, "start_radius is an option of search='random-start'"),
        ("momentum", {"start_radius": 0.1}, "start_radius .* but the search is 'momentum'"),
        ("random-start", {"decay": 0.0}, "decay .* but the search is 'random-start'"),
        ("keyed-start", {"decay": 0.0}, "decay .* but the search is 'keyed-start'"),
        ("random-start", {"generator": None}, "search='random-start' has a start that is drawn"),
        ("keyed-start", {"generator": None}, "search='keyed-start' has a start that is drawn"),
        ("keyed-start", {"generator": 3}, r"torch\.Generator on the CPU"),
        ("random-start", {"generator": 3}, r"torch\.Generator on the CPU"),
        ("random-start", {"generator": ElsewhereGenerator()}, r"torch\.Generator on the CPU"),
    ],
)
def test_an_option_of_another_search_and_a_missing_generator_are_refused(name, options, message):
    given_options = {"step_size": 0.4, "generator": seeded(0), **options}
    with pytest.raises(InvalidOptionError, match=message):
        noise_search(name, **given_options)
