"""The small networks that membership attacks fit: in float64, by L-BFGS, the same every time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 4_000
"""Most rows that a network is fitted to; more are thinned evenly."""

DECAY = 1e-3
"""Weight of the mean squared weight in the loss."""


class Standardized(nn.Module):
    """A network of standardized features: linear, or with one hidden layer."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Tensor, hidden: int, outputs: int) -> None:
        """Build an untrained network.

        Args:
            features: ``(R, F)`` float64, which decide mean and scale.
            hidden: Size of the hidden layer; 0: none.
            outputs: Number of outputs.
        """
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", features.std(0, correction=0).clamp_min(1e-9))
        wide = features.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (
                [nn.Linear(wide, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
                if hidden
                else [nn.Linear(wide, outputs)]
            )
        self.layers = nn.Sequential(*layers).double()

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(R, outputs)`` of ``(R, F)`` features."""
        standard = (features - self.mean) / self.scale
        answer: Tensor = self.layers(standard.clamp(-8, 8))
        return answer


def fit(
    features: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], *, hidden: int, outputs: int = 1
) -> nn.Module:
    """Fit a network to features.

    Args:
        features: ``(R, F)`` float64.
        loss_of: Maps ``(r, outputs)`` and the ``(r)`` row numbers that they belong to, to a loss.
        hidden: Size of the hidden layer; 0: a linear model.
        outputs: Number of outputs.

    Returns:
        The network, in eval mode.
    """
    network = Standardized(features, hidden, outputs)
    rows = torch.arange(0, len(features), -(-len(features) // ROWS))
    shown = features[rows]
    parameters = list(network.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=30, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = sum((weights.square().mean() for weights in parameters), torch.zeros(()).double())
        loss = loss_of(network(shown), rows) + DECAY * decay
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return network.eval().requires_grad_(False)


def fit_odds(features: Tensor, members: Tensor, *, hidden: int) -> nn.Module:
    """Fit the log odds of membership.

    Args:
        features: ``(R, F)`` float64.
        members: ``(R)`` bool.
        hidden: Size of the hidden layer; 0: logistic regression.

    Returns:
        ``(R, F)`` features to ``(R, 1)`` log odds.
    """

    def loss_of(odds: Tensor, rows: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            odds.squeeze(-1), members[rows].to(odds.dtype)
        )

    return fit(features, loss_of, hidden=hidden)
