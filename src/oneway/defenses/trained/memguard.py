"""MemGuard: noise that leaves a membership classifier undecided, at little distortion."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.checks import check_count, check_images, check_logits
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, ScoreDefense
from oneway.defenses.scores import log_probabilities
from oneway.defenses.trained.training_options import TrainingOptions
from oneway.errors import InvalidOptionError
from oneway.options import option

LOWEST_LOG = -1e4
"""Noise is searched from log probabilities no lower than this, in nats."""

DECIMALS = 3
"""Decimals of the log probabilities that are searched and hashed: see :class:`MemGuard`."""

DISTORTION_WEIGHTS = tuple(10.0**power for power in range(-1, 6))
"""Weights of the distortion, tried in turn until a weight gives no row noise. Theirs."""


class MembershipClassifier(nn.Module):
    """Tells members of the training set from others by their sorted confidences.

    Attributes:
        key: Decides each query's random choice in :class:`MemGuard`; a secret.
    """

    key: Tensor

    def __init__(self, num_classes: int, *, hidden: int = 256) -> None:
        """Build an untrained classifier.

        Args:
            num_classes: K, at least 2.
            hidden: Size of the first hidden layer; the other two have a half and a quarter of it.

        Raises:
            InvalidOptionError: A size is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("hidden", hidden, least=4)
        self.architecture: dict[str, Any] = {"num_classes": num_classes, "hidden": hidden}
        self.register_buffer("key", torch.zeros(4, dtype=torch.int64))
        sizes = (num_classes, hidden, hidden // 2, hidden // 4)
        hidden_layers = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
        self.layers = nn.Sequential(*chain(*hidden_layers), nn.Linear(hidden // 4, 1))

    def forward(self, confidences: Tensor) -> Tensor:
        """Return ``(N)`` log odds of membership from ``(N, K)`` confidences."""
        odds: Tensor = self.layers(confidences.sort(dim=-1, descending=True).values)
        return odds.squeeze(-1)


class MembershipTraining(TrainingOptions):
    """Options of a membership classifier's training."""

    hidden: int = option(
        "Size of the classifier's first hidden layer; the next two have half as much each. Theirs: "
        "256.",
        default=256,
        least=4,
    )
    epochs: int = option("Passes over all rows. Theirs: 400.", default=400)


class MemGuard(DefenseWithState, ScoreDefense):
    """Noise on the logits after which a membership classifier's odds are even, label kept.

    Each row's noise is found by at most ``steps`` steps of normalized gradient descent on

        abs(h) + label_weight * relu(largest other - label) + weight * L1

    where h are the log odds of membership, and L1 is the distance of the probabilities. A row is
    done as soon as h has changed its sign under the label it had; then the weight is raised, and
    the last noise that did it is kept. Rows without any stay clean.

    The noise is put on with probability ``min(budget / L1, 1)``, once per query: the choice is
    decided by a keyed hash of the row's log probabilities, so that the same query is answered
    the same, always. The key is drawn in training, and is kept with the network.

    Hash and noise are those of the row rounded to three decimals: a last bit that differs from
    batch to batch would change the hash, and the signs that the first steps go by. (Only what
    falls on two sides of a rounding is still answered in two ways.)

    Source:
        Jia, Salem, Backes, Zhang & Gong, "MemGuard: Defending against Black-Box Membership
        Inference Attacks via Adversarial Examples", CCS 2019. Phases of the noise, classifier and
        budget are as published; the classifier's non-members are the auxiliary images.
    """

    needs_same_bits = True  # its noise is searched for by gradients
    state_type = MembershipClassifier
    training = MembershipTraining
    fitted_to = "the classifier and the images that it was trained on"

    budget: float = option(
        "Most L1 distance of the released probabilities, on average over the choice. Theirs: 0.1 "
        "to 1.",
        default=0.5,
        above=0,
    )
    steps: int = option("Most steps for each weight of the distortion. Theirs: 300.", default=300)
    step_size: float = option("Length of a step, in nats. Theirs: 0.1.", default=0.1, above=0)
    label_weight: float = option(
        "Weight of what would change the label. Theirs: 10.", default=10.0, least=0
    )

    def __post_init__(self) -> None:
        """Copy the classifier.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__post_init__()
        # In float64, where a batch's shape moves nothing that many steps could blow up.
        self.state = copy.deepcopy(self.state).double().eval().requires_grad_(False)

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: MembershipTraining,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Train a membership classifier on private images against auxiliary images.

        Both kinds count the same, however many there are of each.

        Args:
            training_data: Its target, private images and auxiliary logits.
            settings: Options of the training.
            generator: On the CPU; gives the key and the order of the rows.
            report: Called with the share that is done.

        Returns:
            The classifier, and its balanced accuracy on its training rows.

        Raises:
            InvalidOptionError: The target or its private images are not at hand.
            InvalidTensorError: The images or logits are not finite.
        """
        if training_data.target is None or training_data.private_images is None:
            raise InvalidOptionError(
                "MemGuard learns to part members from others: it needs the target and the images "
                "that it was trained on, and they are not at hand. Use another defense."
            )
        check_images(training_data.private_images)
        check_logits(training_data.auxiliary_logits)
        target = training_data.target.eval()
        with torch.no_grad():
            members = torch.cat(
                [target(part.clone()) for part in training_data.private_images.split(512)]
            )
        others = training_data.auxiliary_logits.to(members.dtype)
        confidences = torch.cat([members, others]).softmax(-1)
        member = torch.zeros(len(confidences), dtype=members.dtype, device=members.device)
        member[: len(members)] = 1
        weight = torch.where(member > 0, 0.5 / len(members), 0.5 / len(others)) * len(member)
        network = MembershipClassifier(confidences.shape[-1], hidden=settings.hidden)
        network = network.to(members.device).train()
        network.key.copy_(torch.randint(2**62, (4,), generator=generator))
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
        for epoch in range(1, settings.epochs + 1):
            order = torch.randperm(len(member), generator=generator).to(members.device)
            for rows in order.split(settings.batch_size):
                optimizer.zero_grad(set_to_none=True)
                odds = network(confidences[rows])
                functional.binary_cross_entropy_with_logits(
                    odds, member[rows], weight[rows]
                ).backward()
                optimizer.step()
            report(epoch / settings.epochs)
        network.eval()
        with torch.no_grad():
            right = ((network(confidences) > 0) == (member > 0)).to(members.dtype)
        return network, {"balanced_accuracy": float((right * weight).mean())}

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(N, K)`` log probabilities, some rows with noise."""
        with torch.enable_grad():
            clean, labels = log_probabilities(logits), logits.argmax(-1)
            # Adding 0 turns -0 into 0, which has other bytes.
            rounded = clean.clamp_min(LOWEST_LOG).round(decimals=DECIMALS) + 0.0
            noisy = clean + (self._noisy(rounded, labels) - rounded)
            moved = (noisy.softmax(-1) - clean.exp()).abs().sum(-1)
            put_on = self._uniform(rounded) * moved < self.budget
            return torch.where(put_on.unsqueeze(-1), noisy, clean)

    def _noisy(self, clean: Tensor, labels: Tensor) -> Tensor:
        """Return each row with its least noise, clean where no noise makes the odds even."""
        result, searched = clean.clone(), torch.arange(len(clean), device=clean.device)
        for weight in DISTORTION_WEIGHTS:
            reached, noisy = self._search(clean[searched], labels[searched], weight)
            searched = searched[reached]
            result[searched] = noisy[reached]
            if not len(searched):
                break
        return result

    def _search(self, clean: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return which rows reached even odds under their label, and the rows as they then were."""
        probabilities, index = clean.softmax(-1), labels.unsqueeze(-1)
        noisy = clean.clone()
        side = cast("Tensor", self.state(probabilities)).sign()
        reached = side == 0
        going = (~reached).nonzero().squeeze(-1)
        for step in range(self.steps + 1):
            variable = noisy[going].requires_grad_()
            confidences = variable.softmax(-1)
            odds = self.state(confidences)
            entry = variable.gather(-1, index[going]).squeeze(-1)
            rival = variable.scatter(-1, index[going], -torch.inf).amax(-1)
            done = (odds.sign() != side[going]) & (variable.argmax(-1) == labels[going])
            reached[going] = done
            if step == self.steps or done.all():
                break
            distance = (confidences - probabilities[going]).abs().sum(-1)
            loss = odds.abs() + self.label_weight * (rival - entry).relu() + weight * distance
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
            length = gradient.norm(dim=-1, keepdim=True).clamp_min(1e-300)
            stepped = variable.detach() - self.step_size * gradient / length
            going = going[~done]
            noisy[going] = stepped[~done]
        return reached, noisy

    def _uniform(self, rounded: Tensor) -> Tensor:
        """Return a number in [0, 1) for each row, decided by the row and the key alone."""
        key = cast("Tensor", self.state.key).cpu().numpy().tobytes()
        digests = [
            hashlib.blake2b(row.tobytes(), key=key, digest_size=8).digest()
            for row in rounded.cpu().numpy()
        ]
        # The upper 53 bits, as many as float64 holds.
        numbers = [(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests]
        return torch.tensor(numbers, dtype=rounded.dtype).to(rounded.device)
