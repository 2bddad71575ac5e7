"""MID: the target retrained with an information bottleneck; its answers are random."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import (
    check_above,
    check_generator,
    check_images,
    check_logits,
    check_switch,
    check_weight,
)
from oneway.contracts import TrainingData
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets import TargetNetwork, TargetTrainingSettings, train_target


class BottleneckNetwork(nn.Module):
    """A target whose last layer reads a random code of few numbers instead of the features.

    Features go through a linear layer to the mean and the spread of a Gaussian code, half as long
    as they are; a sample of the code goes through a linear layer to the logits.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int],
        *,
        width: int,
        blocks: int,
        dropout: float = 0.5,
    ) -> None:
        """Build an untrained network; see :class:`oneway.targets.TargetNetwork`.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__()
        whole = TargetNetwork(num_classes, image_shape, width=width, blocks=blocks, dropout=dropout)
        self.architecture: dict[str, Any] = dict(whole.architecture)
        *features, last = whole.layers
        self.features = nn.Sequential(*features)
        self.code = cast("nn.Linear", last).in_features // 2
        self.encode = nn.Linear(2 * self.code, 2 * self.code)
        self.classify = nn.Linear(self.code, num_classes)
        self._encoded: tuple[Tensor, Tensor] | None = None

    def encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and spread of the code, ``(N, k)`` each, of ``(N, C, H, W)`` images."""
        features = self.features(images)
        # Features of an odd count lose their last one.
        mean, raw = self.encode(features[:, : 2 * self.code]).chunk(2, dim=-1)
        return mean, functional.softplus(raw - 5)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` logits of a random code, drawn from PyTorch's global stream."""
        mean, spread = self.encoded(images)
        if self.training:
            self._encoded = mean, spread
        logits: Tensor = self.classify(mean + spread * torch.randn_like(mean))
        return logits

    def divergence(self) -> Tensor:
        """Return how much the last training batch's codes tell: a bound, in nats per image.

        The Kullback-Leibler divergence of the code from a standard Gaussian, summed over the
        code and averaged over the batch.

        Raises:
            InvalidOptionError: No batch was seen in training mode.
        """
        if self._encoded is None:
            raise InvalidOptionError("there is no divergence before a batch in training mode.")
        return divergence(*self._encoded)


def divergence(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the mean over rows of KL(N(mean, spread^2) || N(0, I)), in nats.

    Args:
        mean: ``(N, k)``.
        spread: ``(N, k)`` standard deviations, above 0.
    """
    each = (mean.square() + spread.square() - 1) / 2 - spread.clamp_min(1e-12).log()
    return each.sum(-1).mean()


class MutualInformation:
    """MID: answers come from a target that was retrained to tell little of its input.

    The code is sampled anew for every answer, so that the same query is answered differently
    each time; whoever asks often enough averages the noise away. Its labels are those of the
    retrained target: the undefended one's only with ``keep_label``.

    Source:
        Wang, Zhang & Jia, "Improving Robustness to Model Inversion Attacks via Mutual Information
        Regularization", AAAI 2021, with the bottleneck of Alemi et al. as the estimate. It is
        trained like the undefended target here (Adam, one cycle; theirs is plain SGD).
    """

    network_type = BottleneckNetwork
    requires_input = True
    deterministic = False

    def __init__(
        self,
        network: nn.Module,
        *,
        generator: Generator,
        keep_label: bool = False,
        margin: float = 1e-3,
    ) -> None:
        """Prepare the defense.

        Args:
            network: From :meth:`train`.
            generator: On the CPU; gives the codes. Who knows its seed undoes the noise.
            keep_label: Lift the undefended target's label over all others (the paper's label
                modifier, which it says that MID could use).
            margin: Least lead of a lifted label, in nats, above 0.

        Raises:
            InvalidOptionError: An option is outside its range, or ``generator`` is none on the CPU.
        """
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        check_generator(generator, "codes are")
        self.network, self.generator = network.eval(), generator
        self.keeps_label, self.margin = keep_label, margin

    @classmethod
    def check_training(cls, *, beta: float, **settings: Any) -> None:
        """Refuse options of :meth:`train` that are outside their range.

        Raises:
            InvalidOptionError: One is.
        """
        check_weight("beta", beta)
        TargetTrainingSettings(**settings)

    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        beta: float,
        epochs: int = TargetTrainingSettings.epochs,
        learning_rate: float = TargetTrainingSettings.learning_rate,
        batch_size: int = TargetTrainingSettings.batch_size,
        on_epoch: Callable[[float], None] | None = None,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Retrain the target on cross entropy plus ``beta`` times the divergence.

        Args:
            training_data: Its private images, and the target, whose architecture is retrained.
            generator: On the CPU; gives the order of the rows.
            beta: Weight of the divergence, at least 0. Theirs: 0.001 to 0.02; try several.
            epochs: Passes over the private images.
            learning_rate: The cycle's peak.
            batch_size: Rows per step.
            on_epoch: Called with the share that is done.

        Returns:
            The network, and the divergence over the auxiliary images, in nats per image.

        Raises:
            InvalidOptionError: An option is outside its range, or the target is not a
                :class:`oneway.targets.TargetNetwork`.
        """
        cls.check_training(
            beta=beta, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size
        )
        settings = TargetTrainingSettings(epochs, learning_rate, batch_size)
        if not isinstance(training_data.target, TargetNetwork):
            raise InvalidOptionError(
                "MID retrains a oneway.targets.TargetNetwork, but the target is a "
                f"{type(training_data.target).__name__}. Retrain your own with `divergence`."
            )
        private, labels = training_data.private_images, training_data.private_labels
        if private is None or labels is None:
            raise InvalidOptionError(
                "MID retrains the target, but the images that it was trained on are not at hand. "
                "Use a defense that needs no retraining."
            )
        device = private.device
        network = BottleneckNetwork(**training_data.target.architecture).to(device)
        train_target(
            network,
            private,
            labels,
            settings=settings,
            generator=generator,
            penalty=lambda _: beta * network.divergence(),
            on_epoch=None if on_epoch is None else lambda epoch, _: on_epoch(epoch / epochs),
        )
        network._encoded = None  # the last batch need not stay in memory
        with torch.no_grad():
            parts = [network.encoded(some) for some in training_data.auxiliary_images.split(512)]
            told = divergence(*(torch.cat(side) for side in zip(*parts, strict=True)))
        return network, {"divergence_nats": float(told)}

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Answer from the retrained target.

        Args:
            logits: ``(N, K)`` scores of the undefended target; only their labels are used, and
                only to keep them.
            images: ``(N, C, H, W)`` the queries.

        Returns:
            ``(N, K)`` random logits in the type of ``logits``.

        Raises:
            InvalidTensorError: A tensor breaks the lines above.
        """
        return self.draws(logits, images, 1)[0]

    @torch.no_grad()
    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:
        """Return ``(count, N, K)`` independent answers; the features are computed once."""
        check_logits(logits)
        if images is None:
            raise InvalidTensorError(
                "images must be given: this defense asks a retrained target about the queries."
            )
        check_images(images, rows=len(logits))
        network = cast("BottleneckNetwork", self.network)
        mean, spread = network.encoded(images.to(next(network.parameters()).dtype))
        shape = (count, *mean.shape)
        noise = torch.randn(shape, generator=self.generator).to(mean)
        answers: Tensor = network.classify(mean + spread * noise).to(logits.dtype)
        if self.keeps_label:
            labels = logits.argmax(-1).expand(count, -1)
            answers = lift_label(answers, labels, self.margin)
        return answers
