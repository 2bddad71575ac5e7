"""Random streams: one per seed and purpose, and none leaks into another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.evaluation.randomness import Stream

CPU = torch.device("cpu")
PURPOSES = st.text(max_size=20)
SEEDS = st.integers(-(2**40), 2**40)


@given(st.lists(st.tuples(SEEDS, PURPOSES), min_size=2, max_size=6, unique=True))
def test_each_seed_and_purpose_has_a_stream_of_its_own(keys):
    seeds = [Stream(seed, purpose).seed for seed, purpose in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**48 for seed in seeds)


@given(SEEDS, PURPOSES)
def test_a_stream_starts_anew_each_time(seed, purpose):
    stream = Stream(seed, purpose)
    one, other = (torch.rand(4, generator=stream.generator()) for _ in range(2))
    assert torch.equal(one, other)
    assert stream.generator().device == CPU


@given(SEEDS, PURPOSES, st.integers(0, 2**31), st.integers(0, 5))
def test_a_call_depends_on_its_stream_alone_and_leaves_the_global_one_as_it_was(
    seed, purpose, global_seed, drawn
):
    stream = Stream(seed, purpose)
    torch.manual_seed(global_seed)
    torch.rand(drawn)
    before = torch.get_rng_state()
    numbers = stream.call(lambda: torch.rand(4), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(numbers, torch.rand(4, generator=stream.generator()))
    other = Stream(seed, purpose + "!").call(lambda: torch.rand(4), CPU)
    assert not torch.equal(numbers, other)


def test_a_call_that_raises_leaves_the_global_stream_as_it_was():
    before = torch.get_rng_state()

    def fail():
        torch.rand(3)
        raise KeyError("planned")

    with pytest.raises(KeyError, match="planned"):
        Stream(0, "some").call(fail, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_nested_call_does_not_move_the_outer_stream():
    stream = Stream(0, "outer")

    def nested():
        first = torch.rand(2)
        Stream(0, "inner").call(lambda: torch.rand(7), CPU)
        return torch.cat([first, torch.rand(2)])

    plain = stream.call(lambda: torch.cat([torch.rand(2), torch.rand(2)]), CPU)
    assert torch.equal(stream.call(nested, CPU), plain)
