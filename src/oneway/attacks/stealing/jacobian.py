"""Steal with queries that the copy itself chooses: Jacobian-based data set augmentation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge

ROUNDS = 3
"""Rounds of augmentation, each of which doubles the queries."""

STEP = 0.1
"""Step along the sign of the copy's gradient, as a share of the range of inputs."""


class Jacobian(StealingAttack):
    """Ask about few inputs, train, and ask about inputs moved towards the copy's boundaries.

    Each round doubles the queries: an input moves against the sign of the gradient of its own
    label's logit, and so towards a boundary of the copy. The paper moves along the gradient.

    Source:
        Papernot et al., "Practical Black-Box Attacks against Machine Learning", AsiaCCS 2017.
    """

    name = "jacobian"
    knows = "a few inputs like the queries; it makes the others by gradients of its copy"
    requires = frozenset({"own"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Spend an eighth of the budget on inputs of its own, and the rest on moved ones."""
        seeds = knowledge.budget // 2**ROUNDS
        if not seeds:
            return {}
        asked = knowledge.own[:seeds]
        answers = knowledge.ask(asked)
        for _ in range(ROUNDS):
            copy = knowledge.train(asked, answers)
            moved = (asked - STEP * _gradients(copy, asked, answers.argmax(-1)).sign()).clamp(0, 1)
            answers = torch.cat([answers, knowledge.ask(moved)])
            asked = torch.cat([asked, moved])
        return {"augmented": knowledge.train(asked, answers)}


@torch.enable_grad()
def _gradients(copy: Copy, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradients of each input's own logit, in the shape of ``inputs``."""
    leaves = inputs.detach().clone().requires_grad_()
    own = copy(leaves).gather(-1, labels.unsqueeze(-1)).sum()
    return torch.autograd.grad(own, leaves)[0]
