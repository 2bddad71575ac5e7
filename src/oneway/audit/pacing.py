"""Pace an audit: measure the seconds of an epoch and of a query, before it is planned."""

import time
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
        named = (control.input_transform for control in CONTROLS.values())
        transforms |= dict.fromkeys(transform for transform in named if transform)
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
