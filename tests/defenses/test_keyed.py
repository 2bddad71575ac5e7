"""Laws of keyed randomness: same key and query, same answer; else draws like any others."""

import copy
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.contracts import Defense, RepeatableDefense
from oneway.defenses import KeyedRandomness, SecretKey, build_defense
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.keyed import _state_of
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError, MissingDataError
from oneway.releases import release
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER = b"fedcba9876543210fedcba9876543210"
CLASSES = 5

RANDOM = {
    "gaussian-noise": {},
    "dirichlet-noise": {"keep_label": True},
    "one-parameter": {},
    "adversarial-noise": {"step_size": 0.4, "search": "random-start", "steps": 2},
}


def keyed(name="gaussian-noise", secret=SECRET, **options):
    surrogate = small_inverter(1, CLASSES) if name == "adversarial-noise" else None
    return KeyedRandomness(
        lambda generator: build_defense(name, RANDOM[name], surrogate, generator=generator),
        SecretKey(secret),
        **options,
    )


@pytest.fixture
def logits():
    return random_rows(2, 40, CLASSES, torch.float32, 3)


@pytest.fixture
def images():
    return random_images(3, 40)


@looped("bind", ["scores", "input"])
@looped("name", RANDOM)
def test_a_query_has_one_answer_in_any_batch_order_and_worker(name, bind, logits, images):
    one, other = keyed(name, bind=bind), keyed(name, bind=bind)
    assert isinstance(one, Defense)
    assert not isinstance(one, RepeatableDefense)
    assert one.deterministic
    together = one(logits, images)
    assert together.shape == logits.shape
    assert together.dtype == logits.dtype
    assert same_bits(one(logits, images), together)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert same_bits(other(logits[order], images[order]), together[order])
    for part in (slice(7, 8), slice(3, 20)):
        assert same_bits(other(logits[part], images[part]), together[part])


@looped("bind", ["scores", "input"])
def test_another_key_or_another_query_draws_anew(bind, logits, images):
    noise = keyed(bind=bind)(logits, images) - logits
    assert ((keyed(bind=bind, secret=OTHER)(logits, images) - logits) - noise).abs().min() > 1e-6
    # No two queries share their noise.
    gaps = torch.cdist(noise.double(), noise.double()) + torch.eye(40)
    assert gaps.min() > 0.05


def test_draws_are_those_of_the_defense_in_distribution():
    """Against what scipy says of the normal distribution: over queries, the key is a fair die."""
    stats = pytest.importorskip("scipy.stats")
    rows = random_rows(5, 800, CLASSES, torch.float64, 4)
    noise = (keyed()(rows) - rows).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise.T) - np.eye(CLASSES)
    assert np.abs(correlation).max() < 0.2


def test_asking_again_does_not_average_the_noise_away(logits):
    defense = keyed()
    answers = torch.stack([defense(logits) for _ in range(20)])
    fresh = GaussianNoise(generator=torch.Generator().manual_seed(0))
    averaged = torch.stack([fresh(logits) for _ in range(20)]).mean(0)
    assert (answers.mean(0) - logits).std() > 0.9
    assert (averaged - logits).std() < 0.3


@given(st.floats(-50, 50), st.integers(0, 2**31))
def test_scores_that_differ_by_a_constant_or_a_type_share_their_draws(shift, seed):
    rows = random_rows(seed, 3, CLASSES, torch.float32, 2).double()
    # Of those not at the border of two cells.
    cells = rows.log_softmax(-1) * 16
    inside = ((cells - cells.floor() - 0.5).abs() > 1e-3).all(-1)
    defense = keyed()
    noise = defense(rows) - rows
    moved = defense(rows + shift) - (rows + shift)
    torch.testing.assert_close(moved[inside], noise[inside], rtol=0, atol=1e-9)
    narrow = defense(rows.float()).double() - rows
    torch.testing.assert_close(narrow[inside], noise[inside], rtol=0, atol=1e-4)


def test_what_batches_do_to_last_digits_hardly_ever_draws_anew():
    rows = random_rows(6, 500, 10, torch.float32, 3)
    jitter = 1e-6 * random_rows(7, 500, 10, torch.float32, 1)
    defense = keyed()
    moved = (defense(rows + jitter) - defense(rows)).abs().amax(-1) > 1e-3
    assert moved.sum() <= 5


def test_bound_to_the_input_scores_do_not_matter_and_each_bit_of_the_input_does(logits, images):
    defense = keyed(bind="input")
    assert defense.requires_input
    noise = defense(logits.double(), images) - logits.double()
    torch.testing.assert_close(
        defense(logits.double() * 2, images) - logits.double() * 2, noise, rtol=0, atol=1e-9
    )
    near = images.clone()
    near[:, 0, 0, 0] = torch.nextafter(near[:, 0, 0, 0], torch.ones(()))
    assert ((defense(logits.double(), near) - logits.double()) - noise).abs().amax(-1).min() > 1e-3
    zero, minus = torch.zeros(1, 1, 2, 2), -torch.zeros(1, 1, 2, 2)
    assert same_bits(defense(logits[:1], zero), defense(logits[:1], minus))
    assert same_bits(defense(logits, images.double()), defense(logits, images))
    flat = defense(logits, images.reshape(40, -1))
    assert same_bits(flat, defense(logits, images))


def test_a_generator_has_a_state_of_20_kilobits_and_not_a_seed_of_32_bits():
    """An independent Mersenne Twister draws the same from the same words."""
    state = _state_of(b"some digest")
    words = state.numpy()[24 : 24 + 8 * 624].view(np.uint64)
    assert len(np.unique(words)) > 600
    assert words.max() < 2**32
    twister = np.random.MT19937()
    twister.state = {
        "bit_generator": "MT19937",
        "state": {"key": words.astype(np.uint32), "pos": 624},
    }
    generator = torch.Generator()
    generator.set_state(state)
    drawn = torch.randint(2**20, (1500,), generator=generator)
    assert drawn.tolist() == (twister.random_raw(1500) % 2**20).tolist()
    # Why manual_seed will not do: it forgets all but 32 bits.
    short, long = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(torch.rand(3, generator=short), torch.rand(3, generator=long))
    assert not torch.equal(_state_of(b"some digest"), _state_of(b"some digesu"))


def test_threads_that_ask_at_once_get_the_answers_of_one(logits):
    defense = keyed()
    alone, told, start = defense(logits), {}, threading.Barrier(4)

    def ask(number):
        start.wait()
        told[number] = [defense(logits) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(one, alone) for answers in told.values() for one in answers)
    assert len(told) == 4


def test_another_process_gives_the_same_answer():
    """Whatever the seed of Python's hashes is there."""
    script = (
        "import torch\n"
        "from oneway.defenses import KeyedRandomness, SecretKey, build_defense\n"
        "key = SecretKey.from_environment()\n"
        "make = lambda generator: build_defense('dirichlet-noise', {}, generator=generator)\n"
        "rows = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(3, 4)\n"
        "print(KeyedRandomness(make, key)(rows).tolist())\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1", "ONEWAY_KEY": SECRET.decode() + "\n"}
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True
    )
    here = KeyedRandomness(
        lambda generator: build_defense("dirichlet-noise", {}, generator=generator),
        SecretKey(SECRET),
    )
    rows = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(3, 4)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)).double(), here(rows))


def test_log_probabilities_below_the_lowest_decide_no_draw():
    """What a saturated score is exactly differs from batch to batch, and must not draw anew."""
    rows = torch.tensor([[0.0, -1.0, low] for low in (-65.0, -70.0, -3000.0, -1e30)])
    noise = keyed()(rows)[:, :2] - rows[:, :2]
    assert same_bits(noise, noise[:1].expand(4, -1).contiguous())
    higher = torch.tensor([[0.0, -1.0, -60.0]])
    assert not torch.equal(keyed()(higher)[:, :2] - higher[:, :2], noise[:1])


def test_the_label_stays_on_top_where_the_defense_promises_it(logits):
    defense = keyed("dirichlet-noise")
    assert defense.keeps_label
    assert leads(release(defense(logits)), logits.argmax(-1))
    assert not keyed().keeps_label


def test_a_defense_that_draws_nothing_is_asked_as_it_is(logits):
    defense = KeyedRandomness(lambda _: Rounding(decimals=1), SecretKey(SECRET), bind="input")
    assert not defense.requires_input
    assert same_bits(defense(logits), Rounding(decimals=1)(logits))


def test_nothing_else_draws_and_nothing_is_changed(logits, images):
    state, before = torch.get_rng_state(), (logits.clone(), images.clone())
    keyed(bind="input")(logits, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(logits, before[0])
    assert same_bits(images, before[1])


def test_no_rows_give_no_rows(logits, images):
    for bind in ("scores", "input"):
        assert keyed(bind=bind)(logits[:0], images[:0]).shape == (0, CLASSES)


def test_the_key_is_shown_nowhere(logits):
    secret, defense = SecretKey(SECRET), keyed(bind="input")
    texts = [repr(secret), str(secret), f"{defense!r} {defense}", repr(vars(defense))]
    for refused in (lambda: defense(logits), lambda: pickle.dumps(defense)):
        with pytest.raises((InvalidTensorError, InvalidOptionError)) as raised:
            refused()
        texts.append(str(raised.value))
    with pytest.raises(InvalidOptionError, match="at least 16 bytes") as raised:
        SecretKey(SECRET[:9])
    texts.append(str(raised.value))
    assert not any(SECRET[:6].decode() in text for text in texts)
    assert "SecretKey(...)" in texts[0]


@looped("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_neither_key_nor_defense_is_pickled_and_copies_are_themselves(protocol):
    for one in (SecretKey(SECRET), keyed()):
        with pytest.raises(InvalidOptionError, match="not pickled"):
            pickle.dumps(one, protocol)
        assert copy.deepcopy({"one": one})["one"] is one
        assert copy.copy(one) is one


def test_a_key_comes_from_a_file_or_the_environment_newline_or_not(tmp_path, monkeypatch, logits):
    (tmp_path / "key").write_bytes(SECRET + b"\n")
    monkeypatch.setenv("SOME_KEY", SECRET.decode())
    told = []
    for key in (SecretKey.from_file(tmp_path / "key"), SecretKey.from_environment("SOME_KEY")):
        made = KeyedRandomness(lambda generator: GaussianNoise(generator=generator), key)
        told.append(made(logits))
    assert same_bits(*told)


def test_a_key_that_is_not_there_or_too_short_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"nowhere.*openssl rand"):
        SecretKey.from_file(tmp_path / "nowhere")
    monkeypatch.delenv("ONEWAY_KEY", raising=False)
    with pytest.raises(MissingDataError, match=r"ONEWAY_KEY.*same"):
        SecretKey.from_environment()
    for wrong in (b"", b"short", b"short" + b" " * 40, "a text of more than sixteen"):
        with pytest.raises(InvalidOptionError, match="at least 16 bytes"):
            SecretKey(wrong)


@looped(
    ("arguments", "said"),
    [
        ({"key": SECRET}, "SecretKey"),
        ({"bind": "label"}, "'scores' or 'input'"),
        ({"grid": 0.0}, "grid must be positive"),
        ({"defense_factory": lambda _: None}, "NoneType"),
    ],
)
def test_what_it_cannot_work_with_is_refused(arguments, said):
    given_ = {
        "defense_factory": lambda generator: GaussianNoise(generator=generator),
        "key": SecretKey(SECRET),
    }
    with pytest.raises(InvalidOptionError, match=said):
        KeyedRandomness(**{**given_, **arguments})


def test_what_is_no_batch_of_scores_or_queries_is_refused(logits, images):
    with pytest.raises(InvalidTensorError, match="images are needed"):
        keyed(bind="input")(logits)
    with pytest.raises(InvalidTensorError, match="one per row"):
        keyed(bind="input")(logits, images[:3])
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\)"):
        keyed()(logits[0])
    with pytest.raises(InvalidTensorError, match="finite"):
        keyed()(logits * torch.nan)
