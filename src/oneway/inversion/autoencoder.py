"""A variational autoencoder: a prior of inputs, or of inputs given released confidences."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from oneway.checks import check_count, check_images
from oneway.inversion.input_transforms import StandardizedLog
from oneway.inversion.inverter import build_inverter
from oneway.inversion.training import check_held_out, shuffled_batches
from oneway.options import Options, option

LEAST_VARIANCE = 1e-4
"""Least variance of a pixel around its reconstruction, so that its logarithm stays finite."""


UNITS = 256
"""Hidden units of each layer of the encoder."""


class Autoencoder(nn.Module):
    """A variational autoencoder, with the confidences as a condition where there are any.

    The encoder is a multilayer perceptron. The decoder is the chain of layers of an inverter, which
    reads latents, and standardized log confidences beside them. Latents are drawn from the encoded
    training inputs (the aggregated posterior), which the decoder knows better than the standard
    normal distribution.

    Source:
        Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014. The aggregated posterior as
        the prior: Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018. Conditions: Sohn, Lee &
        Yan, "Learning Structured Output Representation using Deep Conditional Generative Models",
        NeurIPS 2015.
    """

    limit = 4.0
    """Largest absolute value of a latent in a search."""

    codes: Tensor
    deviations: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int = 0,
        latents: int = 32,
        width: int = 16,
        rows: int = 0,
    ) -> None:
        """Build an untrained autoencoder.

        Args:
            shape: Shape of an input: ``(C, H, W)`` of an image, or ``(D,)`` of an encoded record.
            num_classes: Length of the confidences that are the condition, K; 0: no condition.
            latents: Number of latents, L, at least 2.
            width: Width of the decoder; see :class:`oneway.Inverter`.
            rows: Number of encoded training inputs that :meth:`draw` draws from, N.

        Raises:
            InvalidOptionError: A size is below its least value.
        """
        super().__init__()
        check_count("latents", latents, least=2)
        self.condition = StandardizedLog(num_classes) if num_classes else None
        self.encoder = nn.Sequential(
            nn.Linear(math.prod(shape) + num_classes, UNITS),
            nn.ReLU(),
            nn.Linear(UNITS, UNITS),
            nn.ReLU(),
            nn.Linear(UNITS, 2 * latents),
        )
        self.decoder = build_inverter(latents + num_classes, shape, width=width).layers
        self.register_buffer("codes", torch.zeros(rows, latents))
        self.register_buffer("deviations", torch.zeros(rows, latents))

    def encode(self, inputs: Tensor, confidences: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(N, L)`` means and logarithms of variances of the latents of ``(N, ...)``."""
        shown = self._with_condition(inputs.flatten(1), confidences)
        mean, log_variance = self.encoder(shown).chunk(2, -1)
        return mean, log_variance.clamp(-10, 4)

    def forward(self, latents: Tensor, confidences: Tensor | None = None) -> Tensor:
        """Map ``(N, L)`` latents, and ``(N, K)`` confidences, to ``(N, ...)`` inputs in [0, 1]."""
        inputs: Tensor = self.decoder(self._with_condition(latents, confidences))
        return inputs

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw ``(count, L)`` latents.

        Args:
            count: Number of latents.
            generator: Source of randomness, on the CPU.
        """
        rows = torch.randint(len(self.codes), (count,), generator=generator)
        noise = torch.randn(count, self.codes.shape[-1], generator=generator)
        rows, noise = rows.to(self.codes.device), noise.to(self.codes)
        return self.codes[rows] + self.deviations[rows] * noise

    def plausibility(self, latents: Tensor) -> Tensor:
        """Return ``(N)`` standard normal log densities of ``(N, L)`` latents, less a constant."""
        return -0.5 * latents.square().sum(-1)

    @torch.no_grad()
    def keep_codes(self, inputs: Tensor, confidences: Tensor | None) -> None:
        """Encode the ``(N, ...)`` training inputs, which :meth:`draw` draws from."""
        self.codes, log_variances = self.encode(inputs, confidences)
        self.deviations = (0.5 * log_variances).exp()

    def _with_condition(self, rows: Tensor, confidences: Tensor | None) -> Tensor:
        if self.condition is None or confidences is None:
            return rows
        return torch.cat([rows, self.condition(confidences).to(rows)], -1)


class AutoencoderSettings(Options):
    """Size and training of an autoencoder: Adam with a one-cycle schedule."""

    latents: int = option("Number of latents.", default=32, least=2)
    width: int = option("Channels of the decoder's last hidden layer.", default=16)
    epochs: int = option("Passes over the training rows.", default=40)
    learning_rate: float = option("Largest step size of Adam.", default=3e-3, above=0)
    batch_size: int = option("Rows per step.", default=64, least=2)


def train_autoencoder(
    network: Autoencoder,
    inputs: Tensor,
    confidences: Tensor | None,
    held_out: Tensor,
    *,
    settings: AutoencoderSettings,
    generator: Generator,
    on_epoch: Callable[[float], None] | None = None,
) -> list[float]:
    """Train an autoencoder in place; keep the epoch with the best bound on held-out rows.

    The variance of pixels around their reconstruction is the mean squared error of the batch, so
    that no weight balances the two parts of the bound.

    Args:
        network: The autoencoder, on the tensors' device.
        inputs: ``(N, ...)`` inputs in ``[0, 1]``.
        confidences: ``(N, K)`` confidences that answer them; None: there is no condition.
        held_out: ``(N)`` bool: rows that select the epoch and are not trained on.
        settings: Length and speed.
        generator: Source of the order of the rows and of latents, on the CPU.
        on_epoch: Called after each epoch with the share of the work that is done.

    Returns:
        The negative bound per pixel on held-out rows after each epoch, in nats.

    Raises:
        InvalidTensorError: A tensor has another type, shape or range.
        InvalidOptionError: No row is held out, or fewer than two are left to train on.

    Source:
        Rybkin, Daniilidis & Levine, "Simple and Effective VAE Training with Calibrated Decoders",
        ICML 2021.
    """
    check_images(inputs)
    check_held_out(held_out, len(inputs))
    rows, judges = ((~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0])
    if network.condition is not None and confidences is not None:
        network.condition.fit(confidences[rows])
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    rate = OneCycleLR(optimizer, settings.learning_rate, total_steps=max(steps, 4))
    best, bounds = copy.deepcopy(network.state_dict()), list[float]()
    for epoch in range(1, settings.epochs + 1):
        network.train()
        for batch in shuffled_batches(len(rows), settings.batch_size, generator, inputs.device):
            chosen = rows[batch]
            shown = None if confidences is None else confidences[chosen]
            optimizer.zero_grad(set_to_none=True)
            _negative_bound(network, inputs[chosen], shown, generator).backward()
            optimizer.step()
            rate.step()
        network.eval()
        with torch.no_grad():
            shown = None if confidences is None else confidences[judges]
            # The same latents each time, so that epochs differ by their weights alone.
            noise = torch.Generator().manual_seed(0)
            bound = float(_negative_bound(network, inputs[judges], shown, noise))
        if not bounds or bound < min(bounds):
            best = copy.deepcopy(network.state_dict())
        bounds.append(bound)
        if on_epoch is not None:
            on_epoch(epoch / settings.epochs)
    network.load_state_dict(best)
    network.eval()
    network.keep_codes(inputs[rows], None if confidences is None else confidences[rows])
    return bounds


def _negative_bound(
    network: Autoencoder, inputs: Tensor, confidences: Tensor | None, generator: Generator
) -> Tensor:
    """Return the negative evidence lower bound per pixel, in nats, less a constant."""
    mean, log_variance = network.encode(inputs, confidences)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    guess = network(mean + (0.5 * log_variance).exp() * noise, confidences)
    error = (guess - inputs).square().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
    bound: Tensor = 0.5 * error.clamp_min(LEAST_VARIANCE).log() + divergence / inputs[0].numel()
    return bound
