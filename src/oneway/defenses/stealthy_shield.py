"""SSD: each answer is pulled to a class's mean answer, as far as its own uncertainty allows."""

from typing import Literal

import torch
from torch import Generator, Tensor

from oneway.contracts import TrainingData
from oneway.defenses.base import RandomDefense
from oneway.defenses.class_means import FittedToClassMeans
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.errors import InvalidOptionError
from oneway.options import Options, injected, option


class ClassMeansTraining(Options):
    """Options of the class means."""

    means_of: Literal["true", "predicted"] = option(
        'Classes whose calibration answers are averaged. ``"true"``: the true classes, as '
        'published. ``"predicted"``: the labels that the target gives, for queries without '
        "true classes.",
        default="true",
    )


class StealthyShield(FittedToClassMeans, RandomDefense):
    """Minimize KL(p || q) subject to L1(p, f) <= ``epsilon`` * H(f).

    f are the clean confidences, H their entropy in nats, and q the mean confidences of a class's
    calibration queries. As published that class is drawn from ``softmax(f / temperature)`` for
    every answer, which may change the released label; with ``label_guarded`` it is the predicted
    label, which stays. A retrained attacker may average over draws.

    Source:
        "Stealthy Shield Defense: A Conditional Mutual Information-Based Post-Processing against
        Black-Box Model Inversion Attacks", ICLR 2025.
    """

    training = ClassMeansTraining
    fitted_to = "calibration queries, with their classes or without"

    epsilon: float = option(
        "L1 distance allowed per nat of entropy. Theirs: 0.35 to 0.8.",
        default=0.5,
        above=0,
        is_strength=True,
    )
    temperature: float = option(
        "Temperature of the label's draw. Theirs: 0.1.", default=0.1, above=0
    )
    label_guarded: bool = option("Take the predicted label; nothing is drawn.", default=False)
    generator: Generator | None = injected(  # type: ignore[assignment]
        "On the CPU; gives the labels' draws. Not needed with `label_guarded`.", default=None
    )

    def __post_init__(self) -> None:
        """Refuse options outside their range, or a missing generator to draw from.

        Raises:
            InvalidOptionError: An option or the generator is refused.
        """
        self.keeps_label = self.deterministic = self.label_guarded
        super().__post_init__()

    @classmethod
    def classes_of(cls, training_data: TrainingData, settings: ClassMeansTraining) -> Tensor | None:
        """Return ``(N)`` classes of the calibration rows; None: the predicted labels.

        Raises:
            InvalidOptionError: True classes are asked for, and there are none.
        """
        if settings.means_of == "predicted":
            return None
        *_, labels = training_data.calibration
        if labels is None:
            raise InvalidOptionError(
                "SSD averages answers by the true classes of the calibration queries, but these "
                "have none. Pass their labels, or set means_of = 'predicted'."
            )
        return labels

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` logits of the pulled confidences."""
        clean = log_probabilities(logits).exp()
        shape = (count, *logits.shape)
        drawn = logits.argmax(-1).expand(shape[:-1])
        if not self.label_guarded:
            uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
            # The largest of scores with Gumbel noise is a draw from their softmax.
            noise = -(-(1 - uniform).log()).log()
            drawn = (clean / self.temperature + noise.to(clean.device)).argmax(-1)
        radius = self.epsilon * torch.special.entr(clean).sum(-1)
        pulled = pull_towards(clean.expand(shape), self.state(drawn), radius.expand(shape[:-1]))
        return logits_of(pulled, logits.dtype)


def pull_towards(clean: Tensor, goal: Tensor, radius: Tensor) -> Tensor:
    """Return the distribution nearest to ``goal``, in KL(p || goal), within an L1 ball.

    Where the ball does not reach the goal, its solution is ``clip(clean, a * goal, b * goal)``
    with ``a < 1 < b``: what lies lowest in relation to the goal is filled up to one level, what
    lies highest is cut down to another, half the radius each. Both levels are found by sorting,
    in O(K log K).

    Args:
        clean: ``(..., K)`` float64 probabilities, the center of the ball.
        goal: ``(..., K)`` float64 probabilities, none of them 0.
        radius: ``(...)`` of the ball, at least 0.

    Returns:
        ``(..., K)`` probabilities, within rounding.
    """
    half = (radius / 2).unsqueeze(-1)
    ratios, order = (clean / goal).sort(dim=-1)
    ordered_clean, ordered_goal = clean.gather(-1, order), goal.gather(-1, order)
    lower = _level(ratios, ordered_clean, ordered_goal, half)
    # Cut down is filled up with signs and order reversed.
    upper = -_level(-ratios.flip(-1), -ordered_clean.flip(-1), ordered_goal.flip(-1), half)
    clipped = clean.maximum(lower * goal).minimum(upper * goal)
    reached = (clean - goal).abs().sum(-1, keepdim=True) <= 2 * half
    return torch.where(reached, goal, clipped)


def _level(ratios: Tensor, amounts: Tensor, widths: Tensor, volume: Tensor) -> Tensor:
    """Return the level w at which ``sum(max(w * widths - amounts, 0))`` is ``volume``.

    ``ratios``, amounts over widths, ascend along the last axis.
    """
    width, amount = widths.cumsum(-1), amounts.cumsum(-1)
    below = ratios * width - amount <= volume
    # At the lowest ratio nothing is filled yet, whatever rounding says.
    last = (below.sum(-1, keepdim=True) - 1).clamp_min(0)
    return (volume + amount.gather(-1, last)) / width.gather(-1, last)
