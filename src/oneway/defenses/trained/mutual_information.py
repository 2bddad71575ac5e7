"""MID: the target retrained with an information bottleneck; its answers are random."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, LabelOnRequest, RandomDefense
from oneway.defenses.trained.training_options import TrainingOptions
from oneway.errors import InvalidOptionError
from oneway.options import option
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
        """Return a bound on what the last training batch's codes reveal, in nats per image.

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


class BottleneckTraining(TrainingOptions):
    """Options of the target's retraining."""

    beta: float = option("Weight of the divergence. Theirs: 0.001 to 0.02; try several.", least=0)
    epochs: int = option("Passes over the private images.", default=TargetTrainingSettings.epochs)
    learning_rate: float = option(
        "Peak of the one-cycle learning rate.",
        default=TargetTrainingSettings.learning_rate,
        above=0,
    )
    batch_size: int = option("Rows per step.", default=TargetTrainingSettings.batch_size, least=2)


class MutualInformation(LabelOnRequest, DefenseWithState, RandomDefense):
    """MID: answers come from a target that was retrained to reveal little of its input.

    The code is sampled anew for every answer, so that the same query is answered differently
    each time; a client who asks often enough averages the noise away. Its labels are those of the
    retrained target: the undefended one's only with ``keep_label``.

    Source:
        Wang, Zhang & Jia, "Improving Robustness to Model Inversion Attacks via Mutual Information
        Regularization", AAAI 2021, with the bottleneck of Alemi et al. as the estimate. It is
        trained by Adam in one cycle; theirs is plain SGD.
    """

    state_type = BottleneckNetwork
    training = BottleneckTraining
    fitted_to = "the classifier and the images that it was trained on"
    requires_input = True

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: BottleneckTraining,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Retrain the target on cross entropy plus ``beta`` times the divergence.

        Args:
            training_data: Its private images, and the target, whose architecture is retrained.
            settings: Options of the training.
            generator: On the CPU; gives the order of the rows.
            report: Called with the share that is done.

        Returns:
            The network, and the divergence over the auxiliary images, in nats per image.

        Raises:
            InvalidOptionError: The target is not a :class:`oneway.targets.TargetNetwork`, or its
                private images are not at hand.
        """
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
        network = BottleneckNetwork(**training_data.target.architecture).to(private.device)
        train_target(
            network,
            private,
            labels,
            settings=TargetTrainingSettings(
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                batch_size=settings.batch_size,
            ),
            generator=generator,
            penalty=lambda _: settings.beta * network.divergence(),
            on_epoch=lambda epoch, _: report(epoch / settings.epochs),
        )
        network._encoded = None  # the last batch need not stay in memory
        with torch.no_grad():
            parts = [network.encoded(part) for part in training_data.auxiliary_images.split(512)]
            nats = divergence(*(torch.cat(side) for side in zip(*parts, strict=True)))
        return network, {"divergence_nats": float(nats)}

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, N, K)`` answers of the retrained target; features are computed once."""
        assert images is not None  # noqa: S101  narrows the type; the base class refuses None
        network = cast("BottleneckNetwork", self.state)
        mean, spread = network.encoded(images.to(next(network.parameters()).dtype))
        noise = torch.randn((count, *mean.shape), generator=self.generator).to(mean)
        answers: Tensor = network.classify(mean + spread * noise)
        return answers
