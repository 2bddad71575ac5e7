"""Both image measures against scikit-image, and where it has no answer against SciPy's filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidTensorError
from oneway.metrics import peak_signal_to_noise_ratio, reconstruction, structural_similarity
from optional import later

correlate1d = later("scipy.ndimage:correlate1d")
skimage_metrics = later("skimage.metrics")

SEEDS = st.integers(0, 10**6)
CHANNELS = st.integers(1, 3)


def pictures(seed, shape, noise=0.2):
    """Smooth images and noisy copies: unlike pure noise, they have a structure to keep."""
    generator = np.random.default_rng(seed)
    across = np.linspace(0, 3, shape[-1]) + generator.normal(0, 1, (*shape[:2], 1, 1))
    down = np.linspace(0, 2, shape[-2])[:, None] * generator.normal(1, 1, (*shape[:2], 1, 1))
    images = 0.5 + 0.5 * np.sin(across + down)
    return images, np.clip(images + generator.normal(0, noise, shape), 0, 1)


def similarity_by_scipy(image, reconstruction):
    """The definition, one channel at a time, with the window cut to what fits the image."""
    windows = [min(11, side if side % 2 else side - 1) for side in image.shape[1:]]

    def local_mean(picture):
        for axis, window in enumerate(windows):
            weights = np.exp(-0.5 * ((np.arange(window) - window // 2) / 1.5) ** 2)
            picture = correlate1d(picture, weights / weights.sum(), axis, mode="reflect")
            inside = [slice(None)] * 2
            inside[axis] = slice(window // 2, picture.shape[axis] - window // 2)
            picture = picture[tuple(inside)]
        return picture

    values = []
    for first, second in zip(image, reconstruction, strict=True):
        mean_1, mean_2 = local_mean(first), local_mean(second)
        variance_1 = local_mean(first**2) - mean_1**2
        variance_2 = local_mean(second**2) - mean_2**2
        covariance = local_mean(first * second) - mean_1 * mean_2
        values.append(
            (2 * mean_1 * mean_2 + 1e-4)
            * (2 * covariance + 9e-4)
            / ((mean_1**2 + mean_2**2 + 1e-4) * (variance_1 + variance_2 + 9e-4))
        )
    return np.mean(values)


@settings(max_examples=40)
@given(SEEDS, CHANNELS, st.integers(11, 24), st.integers(11, 24))
def test_similarity_equals_scikit_image(seed, channels, height, width):
    images, guesses = pictures(seed, (3, channels, height, width))
    expected = [
        skimage_metrics.structural_similarity(
            image,
            guess,
            gaussian_weights=True,
            use_sample_covariance=False,
            sigma=1.5,
            data_range=1,
            channel_axis=0,
        )
        for image, guess in zip(images, guesses, strict=True)
    ]
    got = structural_similarity(torch.from_numpy(images), torch.from_numpy(guesses))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(SEEDS, CHANNELS, st.integers(1, 14), st.integers(1, 14))
def test_similarity_of_small_images_equals_the_definition(seed, channels, height, width):
    images, guesses = pictures(seed, (2, channels, height, width))
    expected = [similarity_by_scipy(*pair) for pair in zip(images, guesses, strict=True)]
    got = structural_similarity(torch.from_numpy(images), torch.from_numpy(guesses))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 5), st.integers(1, 20))
def test_signal_to_noise_ratio_equals_scikit_image(seed, count, side):
    images, guesses = pictures(seed, (count, 1, side, side))
    expected = [
        skimage_metrics.peak_signal_noise_ratio(image, guess, data_range=1)
        for image, guess in zip(images, guesses, strict=True)
    ]
    got = peak_signal_to_noise_ratio(torch.from_numpy(images), torch.from_numpy(guesses))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


@given(SEEDS, st.integers(1, 15))
def test_an_exact_reconstruction_is_1_and_infinite(seed, side):
    images = torch.from_numpy(pictures(seed, (2, 1, side, side))[0]).float()
    assert structural_similarity(images, images).tolist() == pytest.approx([1, 1], abs=1e-12)
    assert peak_signal_to_noise_ratio(images, images).tolist() == [torch.inf] * 2


@settings(max_examples=20)
@given(SEEDS)
def test_similarity_is_symmetric_within_its_range_and_falls_with_noise(seed):
    images, near = map(torch.from_numpy, pictures(seed, (4, 2, 16, 13), noise=0.02))
    far = torch.from_numpy(pictures(seed, (4, 2, 16, 13), noise=0.5)[1])
    less, more = structural_similarity(images, near), structural_similarity(images, far)
    torch.testing.assert_close(less, structural_similarity(near, images))
    assert (less > more).all()
    assert (more.abs() <= 1).all()


def test_the_memory_bound_changes_nothing(monkeypatch):
    images, guesses = map(torch.from_numpy, pictures(0, (7, 2, 12, 9)))
    whole = structural_similarity(images, guesses)
    seen = []
    similarity = reconstruction._similarity

    def spy(few, *rest):
        seen.append(len(few))
        return similarity(few, *rest)

    monkeypatch.setattr(reconstruction, "_similarity", spy)
    monkeypatch.setattr(reconstruction, "PIXELS_AT_ONCE", 3 * 2 * 12 * 9)
    torch.testing.assert_close(structural_similarity(images, guesses), whole, rtol=1e-12, atol=0)
    assert seen == [3, 3, 1]


@looped("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type_is_measured_in_float64(dtype):
    images, guesses = (
        torch.from_numpy(each).to(dtype) for each in pictures(1, (2, 1, 12, 12), noise=0.1)
    )
    for measure in (structural_similarity, peak_signal_to_noise_ratio):
        assert torch.equal(measure(images, guesses), measure(images.double(), guesses.double()))


@looped("measure", [structural_similarity, peak_signal_to_noise_ratio])
@looped(
    ("images", "guesses", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4), r"shape \(2, 1, 4, 4\), but got \(1"),
        (torch.full((2, 1, 4, 4), 255.0), torch.zeros(2, 1, 4, 4), r"\[0, 1\].*2 of 2.*/ 255"),
        (torch.zeros(2, 1, 4, 4) - 0.1, torch.zeros(2, 1, 4, 4), r"\[0, 1\].*2 of 2 rows"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2, 1, 4, 4), "images must be floating"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4).byte(), "reconstructions must be floa"),
        (torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), torch.nan), "2 of 2 rows hold NaN"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4), "at least one row"),
    ],
)
def test_what_cannot_be_compared_is_refused(measure, images, guesses, message):
    with pytest.raises(InvalidTensorError, match=message):
        measure(images, guesses)


def test_records_have_no_structure():
    with pytest.raises(InvalidTensorError, match=r"\(N, C, H, W\).*unsqueeze\(1\)"):
        structural_similarity(torch.zeros(2, 9), torch.zeros(2, 9))
