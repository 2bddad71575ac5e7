"""Pace an audit: measure the seconds of epochs, queries and linear systems before the plan."""

import math
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from oneway.auditing.audit_target import Answers, AuditTarget, access
from oneway.auditing.controls import CONTROLS
from oneway.auditing.plan import LEAST_ROWS, AuditSettings, Costs
from oneway.evaluation.defenders import FittedDefense
from oneway.evaluation.randomness import Stream
from oneway.evaluation.timing import synchronize
from oneway.inversion import Inverter, RecordInverter, build_inverter

TIMED_SECONDS = 0.5
"""Most seconds that each decoder and linear systems are timed before an audit is planned."""

TIMED_SHARE = 0.003
"""Most of the target run time that each is timed."""

SOLVED_ROWS, SOLVED_COLUMNS = 1000, 64
"""Size of the linear systems that are timed."""


def measure_costs(
    audited: AuditTarget,
    settings: AuditSettings,
    answers: Answers,
    fitted: FittedDefense,
    seed: int,
) -> Costs:
    """Measure the seconds of epochs, queries and linear systems on this machine.

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
    limit = math.inf if settings.minutes is None else 60 * settings.minutes
    most = min(TIMED_SECONDS, TIMED_SHARE * limit)
    training = dict[tuple[str, int], float]()
    # The narrowest first: where it does not fit, the time to measure the others is missing, too.
    for width, transform in product(sorted(settings.widths), transforms):
        price = next(iter(training.values()), 0.0)
        if price * settings.first_epochs * min(len(audited.auxiliary), LEAST_ROWS) <= limit:
            price = _step_seconds(confidences, images, transform, width, seed, most)
        training[transform, width] = price
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
        solving=_multiplication_seconds(images.device, most),
        auxiliary=len(audited.auxiliary),
        test=len(audited.test),
        entries=images[0].numel(),
    )


def _step_seconds(
    confidences: Tensor, images: Tensor, input_transform: str, width: int, seed: int, most: float
) -> float:
    """Return the seconds of a training step of a decoder, per row."""
    classes, shape = confidences.shape[-1], images.shape[1:]

    def build() -> Inverter | RecordInverter:
        network = build_inverter(classes, shape, width=width, input_transform=input_transform)
        return network.to(images.device)

    network = Stream(seed, "timing").call(build, images.device)
    network.fit_input_transform(confidences)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        (network(confidences) - images).square().mean().backward()
        optimizer.step()

    return _seconds(step, images.device, most) / len(images)


def _multiplication_seconds(device: torch.device, most: float) -> float:
    """Return the seconds of a multiplication in a linear system of kernel ridge regression."""
    rows, columns = SOLVED_ROWS, SOLVED_COLUMNS
    system = torch.full((rows, rows), 0.5, dtype=torch.float64, device=device)
    system.diagonal().add_(1.0)
    sides = torch.ones(rows, columns, dtype=torch.float64, device=device)

    def solve() -> None:
        torch.cholesky_solve(sides, torch.linalg.cholesky(system))

    return _seconds(solve, device, most) / (rows**3 / 6 + rows**2 * columns)


def _seconds(call: Callable[[], None], device: torch.device, most: float) -> float:
    """Return the seconds of a call, on average over ``most`` seconds and at least two calls.

    The first call prepares kernels and does not count, unless it takes ``most`` seconds by itself.
    """
    taken = list[float]()
    begin = time.perf_counter()
    while len(taken) < 3 or taken[-1] - taken[0] < most:
        call()
        synchronize(device)
        taken.append(time.perf_counter() - begin)
        if taken[0] > most > 0:
            return taken[0]
    return (taken[-1] - taken[0]) / (len(taken) - 1)
