"""The realistic black-box attacker: it learns from what the defended API answers."""

from collections.abc import Callable, Mapping

from torch import Tensor

from oneway.contracts import Observations, TrainDecoder


def retrained(
    observations: Observations, train: TrainDecoder
) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Train a decoder on released confidences of the attacker's own images."""
    return {"decoder": train(observations.released, observations.images, observations.held_out)}
