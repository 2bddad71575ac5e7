"""LPA-style: released scores poison the training of an attacker who inverts them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import check_above, check_count, check_images, check_logits
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, ScoreDefense
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.defenses.trained.training_options import TrainingOptions
from oneway.errors import InvalidOptionError
from oneway.inversion import build_inverter, shuffled_batches
from oneway.options import option

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


class PoisonTraining(TrainingOptions):
    """Options of a poison generator's training."""

    budget: float = option(
        "Most L1 distance of released probabilities from the clean ones.", default=0.5, above=0
    )
    wrong_image: Literal["mean", "permuted"] = option(
        'Image that inverters are taught instead. ``"mean"``: the mean image of the label. '
        '``"permuted"``: another image of the batch.',
        default="mean",
    )
    hidden: int = option("Size of the generator's hidden layers.", default=64)
    helper_width: int = option("Width of the helper inverter.", default=8)


class Poisoning(DefenseWithState, ScoreDefense):
    """LPA-style: pairs of images and released scores teach an inverter what it should not learn.

    Theirs: all released vectors are perturbed under their labels, as poison for the training of
    an inverter; the perturbation is crafted by gradient alignment, so that the gradient of
    fitting the perturbed pairs points where an inverter errs; a generator network makes it
    cheap. No code is public.

    Ours, where their text leaves it open: the generator is a small deterministic network on the
    scores alone (theirs is a variational autoencoder); the budget is on the L1 distance of the
    probabilities, and holds exactly; alignment is the cosine of two gradients over a batch in
    all parameters of a helper inverter, which is trained alternately with the generator; the
    gradient aligned to is that of fitting a wrong image to clean scores. Their second method,
    which flips labels (LFP), is not here.

    Source:
        Zhou, Ye, Zhu & Zhou, "Defending Against Neural Network Model Inversion Attacks via Data
        Poisoning", arXiv 2412.07575, 2024. Gradient alignment: Geiping et al., "Witches' Brew",
        ICLR 2021.
    """

    state_type = PoisonGenerator
    training = PoisonTraining
    fitted_to = "auxiliary images"

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: PoisonTraining,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Train a poison generator on the auxiliary images, alternately with a helper inverter.

        In every batch the helper takes a step to reconstruct the images from perturbed scores;
        then the generator takes a step to lower ``1 - cos(a, b)``, where a is the gradient of the
        helper's error on the perturbed pairs, and b that of its distance from wrong images when
        it sees the clean scores. So an inverter that descends a learns to answer clean scores
        wrongly.

        Args:
            training_data: Its auxiliary images and clean logits.
            settings: Options of the training.
            generator: On the CPU; gives the order of the rows.
            report: Called with the share that is done.

        Returns:
            The generator, and the cosine and the mean L1 distance of the last epoch.

        Raises:
            InvalidOptionError: There are fewer than two images.
            InvalidTensorError: Images and logits are not finite pairs.
        """
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        check_logits(logits)
        check_images(images, rows=len(logits))
        if len(images) < 2:
            raise InvalidOptionError(
                f"training takes 2 auxiliary images or more, but there are {len(images)}."
            )
        logs, classes = logits.log_softmax(-1), logits.shape[-1]
        poison = PoisonGenerator(classes, hidden=settings.hidden, budget=settings.budget)
        poison = poison.to(images.device).train()
        helper = build_inverter(
            classes, images.shape[1:], width=settings.helper_width, input_transform="standardized"
        ).to(images.device)
        helper.fit_input_transform(logs.exp())
        helper.train()
        means = label_means(images, logits.argmax(-1), classes)
        rate = settings.learning_rate
        poison_steps = torch.optim.Adam(poison.parameters(), lr=rate)
        helper_steps = torch.optim.Adam(helper.parameters(), lr=rate, betas=(0.5, 0.999))
        sums = torch.zeros(2, device=images.device)
        for epoch in range(1, settings.epochs + 1):
            sums.zero_()
            for rows in shuffled_batches(
                len(images), settings.batch_size, generator, images.device
            ):
                clean, truths = logs[rows], images[rows]
                perturbed = poison(clean)
                helper_steps.zero_grad(set_to_none=True)
                functional.mse_loss(helper(perturbed.detach()), truths).backward()
                helper_steps.step()
                # The rows are in random order, so that the next row is as good as any.
                by_label = settings.wrong_image == "mean"
                wrong = means[clean.argmax(-1)] if by_label else truths.roll(1, 0)
                cosine = _alignment(helper, clean, perturbed, truths, wrong)
                poison_steps.zero_grad(set_to_none=True)
                (1 - cosine).backward(inputs=list(poison.parameters()))
                poison_steps.step()
                distance = (perturbed - clean.exp()).abs().sum(-1).mean()
                sums += torch.stack([cosine, distance]).detach() * len(rows) / len(images)
            report(epoch / settings.epochs)
        return poison, dict(zip(("cosine", "l1_mean"), sums.tolist(), strict=True))

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(N, K)`` logits of the perturbed confidences.

        The probabilities are within the budget in L1, up to the rounding of the type.
        """
        # Logs may tie where the logits differ by less than their last bit.
        clean = lift_label(log_probabilities(logits), logits.argmax(-1), 0)
        return logits_of(self.state(clean).clamp_min(0), logits.dtype)


def _alignment(
    helper: nn.Module, clean: Tensor, perturbed: Tensor, truths: Tensor, wrong: Tensor
) -> Tensor:
    """Return the cosine of the helper's gradients on perturbed pairs and on wrong images.

    Args:
        helper: The inverter.
        clean: ``(N, K)`` log confidences.
        perturbed: ``(N, K)`` confidences, with a gradient.
        truths: ``(N, C, H, W)`` images.
        wrong: ``(N, C, H, W)`` images to be reconstructed from clean confidences.
    """
    parameters = list(helper.parameters())
    astray = functional.mse_loss(helper(clean.exp()), wrong)
    wanted = torch.autograd.grad(astray, parameters)
    error = functional.mse_loss(helper(perturbed), truths)
    taught = torch.autograd.grad(error, parameters, create_graph=True)
    return functional.cosine_similarity(_flat(taught), _flat(wanted), dim=0)


def label_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return ``(classes, C, H, W)`` the mean image of each label, of all where it has none."""
    counts = labels.bincount(minlength=classes).view(-1, 1, 1, 1)
    sums = images.new_zeros(classes, *images.shape[1:]).index_add(0, labels, images)
    return torch.where(counts > 0, sums / counts.clamp_min(1), images.mean(0))


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
