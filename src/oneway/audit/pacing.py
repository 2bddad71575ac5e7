"""Pace an audit: seconds of an epoch and of a query, and the epochs at which decoders plateau."""

import time
from collections.abc import Callable, Iterable
from itertools import product

import torch
from torch import Tensor

from oneway.audit.audit_target import Answers, AuditTarget, access
from oneway.audit.controls import CONTROLS
from oneway.audit.plan import Costs
from oneway.audit.settings import AuditSettings
from oneway.evaluation.defenders import FittedDefense
from oneway.evaluation.randomness import Stream
from oneway.evaluation.timing import synchronize
from oneway.inversion import Inverter, RecordInverter, build_inverter

GAIN = 0.01
"""Share of the error that twice the epochs must remove to count as a gain."""

TIMED_SECONDS = 0.5
"""Seconds that each decoder is timed before an audit is planned."""


def measure_costs(
    audited: AuditTarget,
    settings: AuditSettings,
    answers: Answers,
    fitted: FittedDefense,
    seed: int,
) -> Costs:
    """Measure the seconds of an epoch and of a query on this machine.

    Args:
        audited: Model, data and release.
        settings: Settings of the audit: decoders and controls.
        answers: Answers of the model and of the release.
        fitted: The defense.
        seed: Seed of the decoders that are timed.
    """
    images, confidences = audited.auxiliary[:64], answers.clean[:64]
    transforms = dict.fromkeys(settings.input_transforms)
    if settings.controls:
        transforms |= dict.fromkeys(control.input_transform for control in CONTROLS.values())
    training = {
        (transform, width): _step_seconds(confidences, images, transform, width, seed)
        for transform, width in product(transforms, settings.widths)
    }
    allowed = access(audited, fitted.again("timing"), undeclared=answers.undeclared)
    taken = []
    for queries in (images, images[:1]):
        begin = time.perf_counter()
        allowed.query(queries, 1)
        synchronize(images.device)
        taken.append(time.perf_counter() - begin)
    return Costs(
        training,
        asking=taken[0] / len(images),
        single=taken[1],
        auxiliary=len(audited.auxiliary),
        test=len(audited.test),
    )


def _step_seconds(
    confidences: Tensor, images: Tensor, input_transform: str, width: int, seed: int
) -> float:
    """Return the seconds of a training step of a decoder, per row."""
    classes, shape = confidences.shape[-1], images.shape[1:]

    def build() -> Inverter | RecordInverter:
        network = build_inverter(classes, shape, width=width, input_transform=input_transform)
        return network.to(images.device)

    network = Stream(seed, "timing").call(build, images.device)
    network.fit_input_transform(confidences)
    optimizer = torch.optim.Adam(network.parameters())
    taken = list[float]()
    begin = time.perf_counter()
    while len(taken) < 3 or taken[-1] - taken[0] < TIMED_SECONDS:
        optimizer.zero_grad()
        (network(confidences) - images).square().mean().backward()
        optimizer.step()
        synchronize(images.device)
        taken.append(time.perf_counter() - begin)
    # The first step is slow, since it prepares kernels.
    return (taken[-1] - taken[0]) / (len(taken) - 1) / len(images)


def find_plateau(
    first: int,
    most: int,
    scores: Iterable[str],
    held_out_error: Callable[[str, int], float],
    is_late: Callable[[], bool],
) -> tuple[int, bool]:
    """Double the epochs until twice as many gain nothing, on all scores.

    A gain on any scores doubles the epochs for all, since all releases are attacked with equal
    means.

    Args:
        first: Epochs to begin with.
        most: Most epochs.
        scores: Names of the scores that decoders are trained on.
        held_out_error: Returns the held-out error of a decoder, given the name of scores and the
            number of epochs.
        is_late: Returns whether there is no time for another doubling.

    Returns:
        The epochs, and whether twice as many gained nothing.
    """
    epochs, names = first, list(scores)
    while 2 * epochs <= most:
        gains = [
            1 - held_out_error(name, 2 * epochs) / held_out_error(name, epochs) for name in names
        ]
        if max(gains) < GAIN:
            return epochs, True
        # Twice the epochs gained, so that all decoders get twice as many.
        epochs *= 2
        if is_late():
            break
    return epochs, False
