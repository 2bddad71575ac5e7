"""The prior of GMI: a Wasserstein GAN with gradient penalty, as published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_count, check_images
from oneway.errors import InvalidOptionError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import Store, fingerprint
from oneway.options import Options, option

SIDES = {32: 3, 64: 4}
"""Sides of images, in pixels, and how often each is halved to a map of 4x4."""

BETAS = (0.5, 0.999)

STAGE = 100
"""Steps after which the state of a training is stored."""


class AdversarialPrior(nn.Module):
    """A generator and a critic of square images, in GMI's layers.

    Source:
        Zhang, Jia, Pei, Wang, Li & Song, "The Secret Revealer: Generative Model-Inversion Attacks
        Against Deep Neural Networks", CVPR 2020, in the authors' code: 100 latents, ``width`` 64.
        Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017.
    """

    limit = 1.0
    """Largest absolute value of a latent in a search, as published."""

    def __init__(self, shape: Sequence[int], *, latents: int = 100, width: int = 64) -> None:
        """Build untrained networks.

        Args:
            shape: ``(C, H, W)`` with both sides 32 or both 64.
            latents: Number of latents, L.
            width: Channels of the critic's first and of the generator's last hidden layer.

        Raises:
            InvalidOptionError: A size is outside its range.
        """
        super().__init__()
        check_count("latents", latents)
        check_count("width", width)
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in SIDES:
            raise InvalidOptionError(
                f"shape must be (C, 32, 32) or (C, 64, 64), but got {tuple(shape)}. Pad or scale "
                "the images, or use an autoencoder as the prior."
            )
        self.latents = latents
        channels, halvings = shape[0], SIDES[shape[1]]
        wide = width * 2 ** (halvings - 1)
        layers: list[nn.Module] = [
            nn.Linear(latents, 16 * wide, bias=False),
            nn.BatchNorm1d(16 * wide),
            nn.ReLU(),
            nn.Unflatten(-1, (wide, 4, 4)),
        ]
        for exponent in range(halvings - 1, 0, -1):
            size = width * 2**exponent
            layers += [_doubling(size, size // 2, bias=False), nn.BatchNorm2d(size // 2), nn.ReLU()]
        self.generator = nn.Sequential(*layers, _doubling(width, channels), nn.Sigmoid())
        judged: list[nn.Module] = [nn.Conv2d(channels, width, 5, 2, 2), nn.LeakyReLU(0.2)]
        for exponent in range(halvings - 1):
            size = width * 2**exponent
            judged += [
                nn.Conv2d(size, 2 * size, 5, 2, 2),
                nn.InstanceNorm2d(2 * size, affine=True),
                nn.LeakyReLU(0.2),
            ]
        self.critic = nn.Sequential(*judged, nn.Conv2d(wide, 1, 4), nn.Flatten(0))

    def forward(self, latents: Tensor) -> Tensor:
        """Map ``(N, L)`` latents to ``(N, C, H, W)`` images in [0, 1]."""
        images: Tensor = self.generator(latents)
        return images

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw ``(count, L)`` standard normal latents; the generator is on the CPU."""
        device = next(self.parameters()).device
        return torch.randn(count, self.latents, generator=generator).to(device)

    def plausibility(self, latents: Tensor) -> Tensor:
        """Return the critic's ``(N)`` scores of the images of ``(N, L)`` latents."""
        scores: Tensor = self.critic(self(latents))
        return scores


def _doubling(wide: int, channels: int, *, bias: bool = True) -> nn.Module:
    return nn.ConvTranspose2d(wide, channels, 5, 2, padding=2, output_padding=1, bias=bias)


class AdversarialPriorSettings(Options):
    """Size and speed of the training, with GMI's values as defaults."""

    width: int = option("Channels of the generator's last hidden layer.", default=64)
    learning_rate: float = option("Step size of Adam.", default=2e-4, above=0)
    batch_size: int = option("Rows per step.", default=64, least=2)
    critic_steps: int = option("Steps of the critic before each step of the generator.", default=5)
    penalty: float = option("Weight of the critic's gradient penalty.", default=10.0, above=0)


class AdversarialPriorTraining:
    """A training that can be stopped after any step, and goes on from its state bit for bit.

    Attributes:
        network: The networks in training.
    """

    def __init__(self, network: AdversarialPrior, settings: AdversarialPriorSettings) -> None:
        """Begin a training.

        Args:
            network: Untrained networks.
            settings: Speed.
        """
        self.network, self.settings = network, settings
        self._optimizers = {
            name: torch.optim.Adam(part.parameters(), lr=settings.learning_rate, betas=BETAS)
            for name, part in (("generator", network.generator), ("critic", network.critic))
        }

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of networks and optimizers, by name."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for part, optimizer in self._optimizers.items():
            for number, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{part}.{number}.{name}": each for name, each in values.items()}
        return {name: value.detach().clone() for name, value in tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "generator": {}, "critic": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.network.load_state_dict(parts["network"])
        for part, optimizer in self._optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in parts[part].items():
                number, _, rest = name.partition(".")
                moments.setdefault(int(number), {})[rest] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def advance(
        self,
        images: Tensor,
        steps: int,
        generator: Generator,
        on_step: Callable[[float], None] | None = None,
    ) -> None:
        """Take steps of the generator, and leave the networks in eval mode.

        Args:
            images: ``(N, C, H, W)`` training images in ``[0, 1]``.
            steps: Steps of the generator.
            generator: Source of batches and latents, on the CPU.
            on_step: Called after each step with the share of the steps that are done.

        Raises:
            InvalidTensorError: The images have another type, shape or range.
        """
        check_images(images)
        network, settings = self.network.train(), self.settings
        for step in range(1, steps + 1):
            for _ in range(settings.critic_steps):
                chosen = torch.randint(len(images), (settings.batch_size,), generator=generator)
                self._judge(images[chosen.to(images.device)], generator)
            latents = network.draw(settings.batch_size, generator)
            self._take_step("generator", -network.plausibility(latents).mean())
            if on_step is not None:
                on_step(step / steps)
        network.eval()

    def _judge(self, real: Tensor, generator: Generator) -> None:
        """Take a step of the critic on a batch of real and as many made images."""
        critic = self.network.critic
        with torch.no_grad():
            made = self.network(self.network.draw(len(real), generator))
        share = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
        between = (made + share * (real - made)).requires_grad_()
        (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slopes.flatten(1).norm(dim=-1) - 1).square().mean()
        loss = critic(made).mean() - critic(real).mean() + self.settings.penalty * penalty
        self._take_step("critic", loss)

    def _take_step(self, part: str, loss: Tensor) -> None:
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizers[part].step()


def train_adversarial_prior(
    images: Tensor,
    settings: AdversarialPriorSettings,
    steps: int,
    store: Store,
    seed: int,
    report: Callable[[float], None] = lambda _: None,
) -> AdversarialPrior:
    """Return a trained adversarial prior; an interrupted training goes on where it was.

    Args:
        images: ``(N, C, H, W)`` auxiliary images of 32x32 or 64x64.
        settings: Size and speed.
        steps: Steps of the generator, a multiple of 100.
        store: Store of trained networks.
        seed: Seed of the experiment.
        report: Called with the share of the training that is done.

    Raises:
        InvalidOptionError: ``steps`` is no such multiple, or the images are no such squares.
    """
    if steps % STAGE:
        raise InvalidOptionError(
            f"steps must be a multiple of {STAGE}, after which a state is stored, but got {steps}."
        )
    spec = {"seed": seed, "training": asdict(settings)}
    spec["data"] = fingerprint(images)
    device = images.device

    def begin() -> AdversarialPriorTraining:
        network = AdversarialPrior(images.shape[1:], width=settings.width).to(device)
        return AdversarialPriorTraining(network, settings)

    training = Stream(seed, "adversarial prior").call(begin, device)
    for done in range(0, steps, STAGE):

        def go_on(done: int = done) -> Mapping[str, Tensor]:
            training.advance(
                images,
                STAGE,
                Stream(seed, f"adversarial prior, step {done}").generator(),
                lambda share: report((done + share * STAGE) / steps),
            )
            return training.state()

        training.load(store.tensors("adversarial-prior", {**spec, "from": done}, go_on))
    report(1.0)
    return training.network.eval()
