"""PPF: scores are rewritten by an autoencoder that was trained against an inverter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import check_count, check_images
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, LabelOnRequest, ScoreDefense
from oneway.defenses.trained.training_options import TrainingOptions
from oneway.inversion import build_inverter, shuffled_batches
from oneway.options import option


class Purifier(nn.Module):
    """An autoencoder on logits: K numbers, a hidden layer, K numbers.

    Rows are centered first (a softmax ignores what is taken away) and scaled as a whole.
    """

    scale: Tensor

    def __init__(self, num_classes: int, *, hidden: int = 200) -> None:
        """Build an untrained purifier.

        Args:
            num_classes: K, at least 2.
            hidden: Size of the hidden layer. Theirs: 200, for 10 classes and for 530.

        Raises:
            InvalidOptionError: A size is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("hidden", hidden)
        self.architecture: dict[str, Any] = {"num_classes": num_classes, "hidden": hidden}
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.Sequential(
            nn.Linear(num_classes, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    @torch.no_grad()
    def fit_scale(self, logits: Tensor) -> None:
        """Take the scale from ``(N, K)`` training logits."""
        self.scale.copy_((logits - logits.mean(-1, keepdim=True)).std(correction=0).clamp_min(1e-6))

    def forward(self, logits: Tensor) -> Tensor:
        """Return ``(N, K)`` purified logits, centered as the input is."""
        center = logits.mean(-1, keepdim=True)
        purified: Tensor = self.layers((logits - center) / self.scale) * self.scale + center
        return purified


class PurifierTraining(TrainingOptions):
    """Options of a purifier's training."""

    label_weight: float = option(
        "Weight of the cross entropy with the clean label. Theirs: 0.2.", default=0.2, least=0
    )
    inversion_weight: float = option(
        "Weight of the helper's error. Theirs is not published. 0 purifies without a helper.",
        default=1.0,
        least=0,
    )
    hidden: int = option("Size of the purifier's hidden layer.", default=200)
    helper_width: int = option("Width of the helper inverter.", default=16)


class Purification(LabelOnRequest, DefenseWithState, ScoreDefense):
    """PPF: released scores are what an autoencoder makes of the clean ones.

    Source:
        Yang, Shao, Xuan, Chang & Zhang, "Defending Model Inversion and Membership Inference
        Attacks via Prediction Purification", 2020, in its inversion-specialised form: purifier
        and helper inverter are trained alternately. Wen, Yiu & Hui purify logits (section II-C);
        so does this.
    """

    state_type = Purifier
    training = PurifierTraining
    fitted_to = "auxiliary images"

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: PurifierTraining,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Train a purifier on the auxiliary images, alternately with a helper inverter.

        In every batch the helper takes a step to reconstruct the images from purified scores;
        then the purifier takes a step to lower

            distance + label_weight * cross_entropy - inversion_weight * inversion_error

        where the distance is the mean squared difference of the logits over their variance, the
        cross entropy is with the clean label, and the helper's error is over that of the mean
        image: so each term is about 1 where nothing was learned, whatever the data's scale.

        Args:
            training_data: Its auxiliary images and clean logits: a set disjoint from the private
                images.
            settings: Options of the training.
            generator: On the CPU; gives the order of the rows.
            report: Called with the share that is done.

        Returns:
            The purifier, and the terms of the last epoch.

        Raises:
            InvalidTensorError: The images are not finite, or not one per row of logits.
        """
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        check_images(images, rows=len(logits))
        classes, labels = logits.shape[-1], logits.argmax(-1)
        purifier = Purifier(classes, hidden=settings.hidden).to(images.device).train()
        purifier.fit_scale(logits)
        helper = build_inverter(
            classes, images.shape[1:], width=settings.helper_width, input_transform="standardized"
        ).to(images.device)
        helper.fit_input_transform(logits.softmax(-1))
        helper.train()
        prior = (images - images.mean(0)).square().mean()
        rate, weight = settings.learning_rate, settings.inversion_weight
        purifier_steps = torch.optim.Adam(purifier.parameters(), lr=rate)
        helper_steps = torch.optim.Adam(helper.parameters(), lr=rate, betas=(0.5, 0.999))
        sums = torch.zeros(3, device=images.device)
        for epoch in range(1, settings.epochs + 1):
            sums.zero_()
            for rows in shuffled_batches(
                len(images), settings.batch_size, generator, images.device
            ):
                purified = purifier(logits[rows])
                if weight > 0:
                    helper_steps.zero_grad(set_to_none=True)
                    guess = helper(purified.detach().softmax(-1))
                    functional.mse_loss(guess, images[rows]).backward()
                    helper_steps.step()
                distance = (purified - logits[rows]).square().mean() / purifier.scale.square()
                entropy = functional.cross_entropy(purified, labels[rows])
                inversion = torch.zeros_like(distance)
                if weight > 0:
                    guess = helper(purified.softmax(-1))
                    inversion = functional.mse_loss(guess, images[rows]) / prior
                purifier_steps.zero_grad(set_to_none=True)
                loss = distance + settings.label_weight * entropy - weight * inversion
                loss.backward(inputs=list(purifier.parameters()))
                purifier_steps.step()
                terms = torch.stack([distance, entropy, inversion]).detach()
                sums += terms * len(rows) / len(images)
            report(epoch / settings.epochs)
        names = ("distance", "cross_entropy", "inversion_error")
        return purifier, dict(zip(names, sums.tolist(), strict=True))

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(N, K)`` purified logits."""
        purified: Tensor = self.state(logits.to(next(self.state.parameters()).dtype))
        return purified
