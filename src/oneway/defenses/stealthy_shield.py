"""SSD: each answer is pulled to a label's mean answer, as far as its own uncertainty allows."""

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_above, check_generator, check_switch
from oneway.defenses.class_means import FittedToClassMeans, check_classes
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, logits_of


class StealthyShield(FittedToClassMeans):
    """Minimize KL(p || q) subject to L1(p, f) <= ``epsilon`` * H(f).

    f are the clean confidences, H their entropy in nats, and q the mean confidences of a label.
    As published that label is drawn from ``softmax(f / temperature)`` for every answer, which
    may change the released label; with ``label_guarded`` it is the predicted one, and the label
    stays. A retrained attacker may average what is drawn.

    Source:
        "Stealthy Shield Defense: A Conditional Mutual Information-Based Post-Processing against
        Black-Box Model Inversion Attacks", ICLR 2025.
    """

    requires_input = False

    def __init__(
        self,
        network: nn.Module,
        *,
        epsilon: float = 0.5,
        temperature: float = 0.1,
        label_guarded: bool = False,
        generator: Generator | None = None,
    ) -> None:
        """Prepare the defense.

        Args:
            network: From :meth:`train`.
            epsilon: L1 distance allowed per nat of entropy, above 0. Theirs: 0.35 to 0.8.
            temperature: Of the label's draw, above 0. Theirs: 0.1.
            label_guarded: Take the predicted label; nothing is drawn.
            generator: On the CPU, for the draws; not needed by the guarded form.

        Raises:
            InvalidOptionError: An option is outside its range, or there is no generator to draw
                from.
        """
        super().__init__(network)
        check_above("epsilon", epsilon, 0)
        check_above("temperature", temperature, 0)
        check_switch("label_guarded", label_guarded)
        if not label_guarded:
            check_generator(generator)
        self.epsilon, self.temperature, self.generator = epsilon, temperature, generator
        self.keeps_label = self.deterministic = label_guarded

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return ``(..., K)`` logits of the pulled confidences; ``images`` are ignored.

        The guarded form keeps the arg max of ``logits`` (the lowest index, if they tie) as the
        only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over the fitted classes.
        """
        return self.draws(logits, images, 1)[0]

    @torch.no_grad()
    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` answers, independent unless the label is guarded."""
        check_classes(self.network, logits)
        clean, labels = log_probabilities(logits).exp(), logits.argmax(-1)
        shape = (count, *logits.shape)
        drawn = labels.expand(shape[:-1])
        if not self.keeps_label:
            uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
            # The largest of scores with Gumbel noise is a draw from their softmax.
            noise = -(-(1 - uniform).log()).log()
            drawn = (clean / self.temperature + noise.to(clean.device)).argmax(-1)
        radius = self.epsilon * torch.special.entr(clean).sum(-1)
        pulled = pull_towards(clean.expand(shape), self.network(drawn), radius.expand(shape[:-1]))
        told = logits_of(pulled, logits.dtype)
        return lift_label(told, labels.expand(shape[:-1]), 0) if self.keeps_label else told


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
