"""LPA: released scores poison the training set of whoever trains an inverter on them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import check_above, check_count, check_images, check_logits
from oneway.contracts import TrainingData
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.defenses.trained.training_options import COMMON, Checks, check_options
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.inversion import build_inverter, shuffled_batches

LOWEST_LOG = -30.0
"""The generator reads log probabilities no lower than this, in nats: nothing saturates it."""

MARGIN = 1e-3
"""Least lead of the label where the generator points, in nats."""


class PoisonGenerator(nn.Module):
    """Perturbs confidences under their label, within an L1 budget.

    It points at a probability vector with the same label on top, and goes there from the clean
    one until it arrives or the budget is spent. What lies between two vectors with one arg max
    has that arg max, too.
    """

    def __init__(self, num_classes: int, *, hidden: int = 64, budget: float = 0.5) -> None:
        """Build an untrained generator, which points near the clean vectors.

        Args:
            num_classes: K, at least 2.
            hidden: Size of its hidden layers.
            budget: Most L1 distance of a row from the clean one, above 0.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("hidden", hidden)
        check_above("budget", budget, 0)
        self.architecture: dict[str, Any] = {
            "num_classes": num_classes,
            "hidden": hidden,
            "budget": budget,
        }
        self.budget = budget
        self.layers = nn.Sequential(
            nn.Linear(num_classes, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, logs: Tensor) -> Tensor:
        """Return ``(N, K)`` perturbed confidences from ``(N, K)`` log confidences, in their type.

        Rows sum to 1. The arg max of ``logs`` has the most, or as much as any other.
        """
        clean, labels = logs.exp(), logs.argmax(-1)
        read = logs.clamp_min(LOWEST_LOG)
        narrow = next(self.parameters()).dtype
        pointed = read + self.layers((read / -LOWEST_LOG * 4).to(narrow)).to(logs.dtype)
        direction = lift_label(pointed, labels, MARGIN).softmax(-1) - clean
        length = direction.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(logs.dtype).tiny)
        return clean + direction * (self.budget / length).clamp_max(1)


WRONG_IMAGES = ("mean", "permuted")

TRAINING_CHECKS: Checks = {
    **COMMON,
    "budget": partial(check_above, bound=0),
    "helper_width": check_count,
}
"""What is refused of each option of :meth:`Poisoning.train`."""


class Poisoning:
    """LPA: pairs of images and released scores teach an inverter what it should not learn.

    Theirs: all released vectors are perturbed under their labels, as poison for the training of
    an inverter; the perturbation is crafted by gradient alignment, so that the gradient of
    fitting the perturbed pairs points where an inverter errs; a generator network makes it
    cheap. No code is public.

    Ours, where their text leaves it open: the generator is a small deterministic network on the
    scores alone (theirs is a variational autoencoder); the budget is on the L1 distance of the
    probabilities, and holds exactly; alignment is the cosine of two gradients over a batch in
    all parameters of a helper inverter, which is trained alternately with the generator; the
    gradient aligned to is that of fitting a wrong image to clean scores. Their second method,
    which flips some labels (LFP), is not here.

    Source:
        Zhou, Ye, Zhu & Zhou, "Defending Against Neural Network Model Inversion Attacks via Data
        Poisoning", arXiv 2412.07575, 2024. Gradient alignment: Geiping et al., "Witches' Brew",
        ICLR 2021.
    """

    network_type = PoisonGenerator
    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, network: nn.Module) -> None:
        """Prepare the defense.

        Args:
            network: From :meth:`train`.
        """
        self.network = network.eval()

    @classmethod
    def check_training(cls, *, wrong_image: str = "mean", **options: Any) -> None:
        """Refuse options of :meth:`train` that are outside their range.

        Raises:
            InvalidOptionError: One is.
            UnknownNameError: There is no such ``wrong_image``.
        """
        if wrong_image not in WRONG_IMAGES:
            raise UnknownNameError("wrong_image", str(wrong_image), WRONG_IMAGES)
        check_options(TRAINING_CHECKS, options)

    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        budget: float = 0.5,
        wrong_image: str = "mean",
        hidden: int = 64,
        helper_width: int = 8,
        epochs: int = 8,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        on_epoch: Callable[[float], None] | None = None,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Train a poison generator on the auxiliary images, alternately with a helper inverter.

        In every batch the helper takes a step to reconstruct the images from perturbed scores;
        then the generator takes one to lower ``1 - cos(a, b)``, where a is the gradient of the
        helper's error on the perturbed pairs, and b that of its distance from wrong images when
        it sees the clean scores. So whoever descends a learns to answer clean scores wrongly.

        Args:
            training_data: Its auxiliary images and clean logits.
            generator: On the CPU; gives the order of the rows.
            budget: Most L1 distance of released probabilities from the clean ones, above 0.
            wrong_image: ``"mean"``: the mean image of the label. ``"permuted"``: another image
                of the batch.
            hidden: Size of the generator's hidden layers.
            helper_width: Width of the helper inverter.
            epochs: Passes over the auxiliary images.
            learning_rate: Of Adam, for both.
            batch_size: Rows per step.
            on_epoch: Called with the share that is done.

        Returns:
            The generator, and the cosine and the mean L1 distance of the last epoch.

        Raises:
            InvalidOptionError: An option is outside its range, or there are fewer than two images.
            InvalidTensorError: Images and logits are not finite pairs.
        """
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        check_logits(logits)
        check_images(images, rows=len(logits))
        cls.check_training(
            budget=budget,
            wrong_image=wrong_image,
            hidden=hidden,
            helper_width=helper_width,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
        )
        if len(images) < 2:
            raise InvalidOptionError(
                f"training takes 2 auxiliary images or more, but there are {len(images)}."
            )
        logs = logits.log_softmax(-1)
        poison = PoisonGenerator(logits.shape[-1], hidden=hidden, budget=budget).to(images.device)
        helper = build_inverter(
            logits.shape[-1], images.shape[1:], width=helper_width, input_transform="standardized"
        ).to(images.device)
        helper.fit_input_transform(logs.exp())
        means = label_means(images, logits.argmax(-1), logits.shape[-1])
        poison_steps = torch.optim.Adam(poison.parameters(), lr=learning_rate)
        helper_steps = torch.optim.Adam(helper.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        parameters = list(helper.parameters())
        poison.train()
        helper.train()
        sums = torch.zeros(2, device=images.device)
        for epoch in range(1, epochs + 1):
            sums.zero_()
            for rows in shuffled_batches(len(images), batch_size, generator, images.device):
                clean, truths = logs[rows], images[rows]
                perturbed = poison(clean)
                helper_steps.zero_grad(set_to_none=True)
                functional.mse_loss(helper(perturbed.detach()), truths).backward()
                helper_steps.step()
                # The rows are in random order, so that the next one is as good as any.
                wrong = means[clean.argmax(-1)] if wrong_image == "mean" else truths.roll(1, 0)
                astray = functional.mse_loss(helper(clean.exp()), wrong)
                wanted = torch.autograd.grad(astray, parameters)
                taught = torch.autograd.grad(
                    functional.mse_loss(helper(perturbed), truths), parameters, create_graph=True
                )
                cosine = functional.cosine_similarity(_flat(taught), _flat(wanted), dim=0)
                poison_steps.zero_grad(set_to_none=True)
                (1 - cosine).backward(inputs=list(poison.parameters()))
                poison_steps.step()
                distance = (perturbed - clean.exp()).abs().sum(-1).mean()
                sums += torch.stack([cosine, distance]).detach() * len(rows) / len(images)
            if on_epoch is not None:
                on_epoch(epoch / epochs)
        return poison.eval(), dict(zip(("cosine", "l1_mean"), sums.tolist(), strict=True))

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Perturb scores.

        Args:
            logits: ``(N, K)`` clean scores.
            images: Ignored.

        Returns:
            ``(N, K)`` logits of the perturbed confidences, of the same type. The arg max of
            ``logits`` (the lowest index, if they tie) is the only maximum. The probabilities are
            within the budget in L1, up to the rounding of the type.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over the trained classes.
        """
        check_logits(logits)
        classes = cast("PoisonGenerator", self.network).architecture["num_classes"]
        if logits.shape[-1] != classes:
            raise InvalidTensorError(
                f"logits must be over the {classes} classes that the generator was trained on, "
                f"but got {tuple(logits.shape)}."
            )
        labels = logits.argmax(-1)
        # Logs may tie where the logits differ by less than their last bit.
        clean = lift_label(log_probabilities(logits), labels, 0)
        perturbed = self.network(clean).clamp_min(0)
        return lift_label(logits_of(perturbed, logits.dtype), labels, 0)


def label_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return ``(classes, C, H, W)`` the mean image of each label, of all where it has none."""
    counts = labels.bincount(minlength=classes).view(-1, 1, 1, 1)
    sums = images.new_zeros(classes, *images.shape[1:]).index_add(0, labels, images)
    return torch.where(counts > 0, sums / counts.clamp_min(1), images.mean(0))


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
