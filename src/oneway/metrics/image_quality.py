"""Measures of visual similarity: PSNR and SSIM."""

import torch
from torch import Tensor

from oneway.errors import InvalidTensorError
from oneway.metrics.inputs import check_pairs, check_unit_range
from oneway.metrics.reconstruction import inversion_errors

WINDOW = 11
"""Side of the structural similarity's window in pixels; smaller images have a smaller window."""

WINDOW_SIGMA = 1.5
"""Standard deviation of its Gaussian weights, in pixels."""

LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2
"""The paper's C1 and C2 for a data range of 1."""

PIXELS_AT_ONCE = 2**20
"""Most pixels at once: they take about 100 MB of float64 maps."""


def peak_signal_to_noise_ratio(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's peak signal-to-noise ratio, for a peak of 1.

    Args:
        images: ``(N, ...)`` true inputs in ``[0, 1]``.
        reconstructions: Same shape, finite.

    Returns:
        ``(N)`` decibels, float64: infinite where a reconstruction is exact. One such row makes
        the mean infinite, so report a quantile or the worst share; the ratio of the mean
        error, ``-10 * log10(inversion_errors(...).mean())``, is finite too.

    Raises:
        InvalidTensorError: The shapes differ, or ``images`` leave ``[0, 1]``.
    """
    check_pairs(images, reconstructions)
    check_unit_range(images)
    return -10 * inversion_errors(images, reconstructions).log10()


def structural_similarity(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's mean structural similarity (SSIM).

    Local means, variances and the covariance are weighted by a Gaussian of standard deviation
    1.5 in an 11 by 11 window, at every place where the whole window fits, and averaged over
    places and channels. A side below 11 pixels gets the largest odd window that fits, with the same
    Gaussian cut there; such values are comparable only between images of equal size. For images of
    one or two pixels the window is a single pixel, and only luminance is compared.

    Args:
        images: ``(N, C, H, W)`` true inputs in ``[0, 1]``, of any size.
        reconstructions: Same shape, finite.

    Returns:
        ``(N)`` float64 in ``[-1, 1]`` if the reconstructions are in ``[0, 1]``; 1 where a
        reconstruction is exact.

    Raises:
        InvalidTensorError: The shapes differ or are not those of images, or ``images`` leave
            ``[0, 1]``.

    Source:
        Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to
        Structural Similarity", IEEE Transactions on Image Processing 13(4), 2004. The smaller
        windows are ours.
    """
    check_pairs(images, reconstructions)
    check_unit_range(images)
    if images.ndim != 4 or not all(images.shape[1:]):
        raise InvalidTensorError(
            f"images must have shape (N, C, H, W), but got {tuple(images.shape)}: only images "
            "have a structure. Pass `images.unsqueeze(1)` if they lack the channel."
        )
    down, across = (_window_weights(side, images.device) for side in images.shape[-2:])
    rows = max(1, PIXELS_AT_ONCE // images[0].numel())
    parts = [
        _similarity(true.double(), guess.double(), down, across)
        for true, guess in zip(images.split(rows), reconstructions.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _similarity(images: Tensor, reconstructions: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return ``(N)`` similarities of a few images; the weights are those of both sides."""

    def local_mean(maps: Tensor) -> Tensor:
        return down @ maps @ across.mT

    first, second = local_mean(images), local_mean(reconstructions)
    variances = local_mean(images.square() + reconstructions.square())
    variances = variances - first.square() - second.square()
    covariance = local_mean(images * reconstructions) - first * second
    luminance = (2 * first * second + LUMINANCE_CONSTANT) / (
        first.square() + second.square() + LUMINANCE_CONSTANT
    )
    structure = (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)
    return (luminance * structure).flatten(1).mean(-1)


def _window_weights(side: int, device: torch.device) -> Tensor:
    """Return ``(places, side)`` rows, the window's weights at each place where it fits."""
    window = min(WINDOW, side - 1 + side % 2)
    places = torch.arange(side - window + 1, dtype=torch.float64, device=device)
    offsets = torch.arange(side, device=device) - places.unsqueeze(-1)
    weights = (-0.5 * ((offsets - window // 2) / WINDOW_SIGMA).square()).exp()
    weights = weights * ((offsets >= 0) & (offsets < window))
    return weights / weights.sum(-1, keepdim=True)
