"""Laws of keyed randomness: the key and the query decide, and nothing else does."""

import hashlib
import hmac

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.guards import KeyedDefense

KEY = b"0123456789abcdef"


def keyed(key=KEY):
    generator = torch.Generator()
    noise = GaussianNoise(standard_deviation=1.0, keep_label=True, generator=generator)
    return KeyedDefense(noise, generator, key)


def rows(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 5, generator=generator),
        torch.rand(count, 1, 2, 2, generator=generator),
    )


@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_row_is_answered_the_same_in_any_batch_by_anybody_with_the_key(order, size):
    logits, images = rows(0)
    whole = keyed()(logits, images)
    other = keyed()
    for some in torch.tensor(order).split(size):
        assert torch.equal(other(logits[some], images[some]), whole[some])


def test_another_key_or_another_query_draws_otherwise():
    logits, images = rows(1, 1)
    noise = keyed()(logits, images) - logits
    moved = images.clone()
    moved[0, 0, 0, 0] = torch.nextafter(moved[0, 0, 0, 0], torch.tensor(2.0))
    for other in (
        keyed(b"another key of 16")(logits, images) - logits,
        keyed()(logits, moved) - logits,
        keyed()(logits, images.reshape(1, 4)) - logits,
    ):
        assert ((other - noise).abs() > 1e-3).sum() >= 4


def test_minus_zero_and_the_type_of_a_query_do_not_matter():
    logits, images = rows(2, 1)
    images[0, 0, 0, 0] = 0.0
    negative = images.clone()
    negative[0, 0, 0, 0] = -0.0
    once = keyed()(logits, images)
    assert torch.equal(keyed()(logits, negative), once)
    assert torch.equal(keyed()(logits, images.double()), once)


def test_the_noise_is_what_it_would_be_unkeyed():
    """Mean 0 and standard deviation 1 over many queries: keys change the draws, not their law."""
    images = torch.arange(4000.0).reshape(-1, 1)
    logits = torch.zeros(4000, 5)
    generator = torch.Generator()
    noise = KeyedDefense(GaussianNoise(generator=generator), generator, KEY)(logits, images)
    assert abs(float(noise.mean())) < 4 / 20000**0.5
    assert abs(float(noise.std()) - 1) < 0.02
    correlation = np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]
    assert abs(correlation) < 0.03


def test_the_whole_state_of_the_generator_comes_from_the_key():
    """PyTorch's seeds have 32 bits; an oracle in NumPy's twister, given all 624 numbers."""
    logits, images = rows(3, 1)
    generator = torch.Generator()

    class Draws:
        requires_input, keeps_label, deterministic = False, True, False

        def __call__(self, logits, images=None):  # noqa: ARG002
            whole = torch.randint(0, 2**31, logits.shape, generator=generator, dtype=torch.int64)
            return whole.double()

    drawn = KeyedDefense(Draws(), generator, KEY)(logits, images)
    said = b"(1, 2, 2):" + images.numpy().tobytes()
    digest = hmac.new(KEY, said, hashlib.sha256).digest()
    words = np.frombuffer(hashlib.shake_256(digest).digest(2496), np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    # PyTorch takes two numbers of 32 bits for one of 64, the second as the lower half.
    expected = twister.random_raw(10)[1::2] % 2**31
    assert drawn[0].tolist() == expected.astype(float).tolist()


def test_a_short_key_and_missing_queries_are_refused():
    with pytest.raises(InvalidOptionError, match="at least 16 bytes, but has 15"):
        keyed(KEY[:-1])
    with pytest.raises(InvalidTensorError, match="draws depend on the queries"):
        keyed()(torch.zeros(1, 3))
