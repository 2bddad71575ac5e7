"""PPF: scores are rewritten by an autoencoder that was trained against an inverter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import (
    check_above,
    check_count,
    check_images,
    check_logits,
    check_switch,
    check_weight,
)
from oneway.contracts import TrainingData
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.trained.training_options import COMMON, Checks, check_options
from oneway.inversion import build_inverter, shuffled_batches


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


TRAINING_CHECKS: Checks = {
    **COMMON,
    "label_weight": check_weight,
    "inversion_weight": check_weight,
    "helper_width": check_count,
}
"""What is refused of each option of :meth:`Purification.train`."""


class Purification:
    """PPF: released scores are what an autoencoder makes of the clean ones.

    Source:
        Yang, Shao, Xuan, Chang & Zhang, "Defending Model Inversion and Membership Inference
        Attacks via Prediction Purification", 2020, in its inversion-specialised form: purifier
        and helper inverter are trained alternately. Wen, Yiu & Hui purify logits (section II-C);
        so does this.
    """

    network_type = Purifier
    requires_input = False
    deterministic = True

    def __init__(
        self, network: nn.Module, *, keep_label: bool = False, margin: float = 1e-3
    ) -> None:
        """Prepare the defense.

        Args:
            network: From :meth:`train`.
            keep_label: Lift the clean label over all others (the paper's label modifier, which
                it says that PPF could use).
            margin: Least lead of a lifted label, in nats, above 0.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        self.network = network.eval()
        self.keeps_label, self.margin = keep_label, margin

    @classmethod
    def check_training(cls, **options: Any) -> None:
        """Refuse options of :meth:`train` that are outside their range.

        Raises:
            InvalidOptionError: One is.
        """
        check_options(TRAINING_CHECKS, options)

    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        label_weight: float = 0.2,
        inversion_weight: float = 1.0,
        hidden: int = 200,
        helper_width: int = 16,
        epochs: int = 8,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        on_epoch: Callable[[float], None] | None = None,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Train a purifier on the auxiliary images, alternately with a helper inverter.

        In every batch the helper takes a step to reconstruct the images from purified scores;
        then the purifier takes one to lower

            distance + label_weight * cross_entropy - inversion_weight * inversion_error

        where the distance is the mean squared difference of the logits over their variance, the
        cross entropy is with the clean label, and the helper's error is over that of the mean
        image: so each term is about 1 where nothing was learned, whatever the data's scale.

        Args:
            training_data: Its auxiliary images and clean logits: a set disjoint from the private
                one.
            generator: On the CPU; gives the order of the rows.
            label_weight: Theirs: 0.2.
            inversion_weight: Theirs is not published. 0 purifies without a helper.
            hidden: Size of the purifier's hidden layer.
            helper_width: Width of the helper inverter.
            epochs: Passes over the auxiliary images.
            learning_rate: Of Adam, for both.
            batch_size: Rows per step.
            on_epoch: Called with the share that is done.

        Returns:
            The purifier, and the terms of the last epoch.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        check_images(images, rows=len(logits))
        cls.check_training(
            label_weight=label_weight,
            inversion_weight=inversion_weight,
            hidden=hidden,
            helper_width=helper_width,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
        )
        classes, labels = logits.shape[-1], logits.argmax(-1)
        purifier = Purifier(classes, hidden=hidden).to(images.device)
        purifier.fit_scale(logits)
        helper = build_inverter(
            classes, images.shape[1:], width=helper_width, input_transform="standardized"
        ).to(images.device)
        helper.fit_input_transform(logits.softmax(-1))
        prior = (images - images.mean(0)).square().mean()
        purifier_steps = torch.optim.Adam(purifier.parameters(), lr=learning_rate)
        helper_steps = torch.optim.Adam(helper.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        purifier.train()
        helper.train()
        sums = torch.zeros(3, device=images.device)
        for epoch in range(1, epochs + 1):
            sums.zero_()
            for rows in shuffled_batches(len(images), batch_size, generator, images.device):
                purified = purifier(logits[rows])
                if inversion_weight > 0:
                    helper_steps.zero_grad(set_to_none=True)
                    guess = helper(purified.detach().softmax(-1))
                    functional.mse_loss(guess, images[rows]).backward()
                    helper_steps.step()
                distance = (purified - logits[rows]).square().mean() / purifier.scale.square()
                entropy = functional.cross_entropy(purified, labels[rows])
                inversion = torch.zeros_like(distance)
                if inversion_weight > 0:
                    guess = helper(purified.softmax(-1))
                    inversion = functional.mse_loss(guess, images[rows]) / prior
                purifier_steps.zero_grad(set_to_none=True)
                loss = distance + label_weight * entropy - inversion_weight * inversion
                loss.backward(inputs=list(purifier.parameters()))
                purifier_steps.step()
                terms = torch.stack([distance, entropy, inversion]).detach()
                sums += terms * len(rows) / len(images)
            if on_epoch is not None:
                on_epoch(epoch / epochs)
        names = ("distance", "cross_entropy", "inversion_error")
        return purifier.eval(), dict(zip(names, sums.tolist(), strict=True))

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Purify scores.

        Args:
            logits: ``(N, K)`` clean scores.
            images: Ignored.

        Returns:
            ``(N, K)`` purified logits of the same type. With ``keep_label`` the clean arg max is
            the only maximum of each row.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        narrow = next(self.network.parameters()).dtype
        purified: Tensor = self.network(logits.to(narrow)).to(logits.dtype)
        if self.keeps_label:
            purified = lift_label(purified, logits.argmax(-1), self.margin)
        return purified
