"""Options of codebooks, each with its range and its only default. Imports no torch."""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, get_args

from oneway.errors import InvalidOptionError
from oneway.options import Options, option

Center = Literal["mean", "median"]

CENTERS: tuple[Center, ...] = get_args(Center)

LARGEST = {"l1_mean": 2.0, "l1_quantile": 2.0, "top5_kept": 1.0}
"""The largest possible values of limits in a :class:`Budget`."""


def check_limit(name: str, value: float, largest: float) -> None:
    """Refuse a limit that is not a number from 0 to ``largest``.

    Raises:
        InvalidOptionError: The value is something else.
    """
    from oneway.checks import check_weight  # imports torch; keeps --help fast

    check_weight(name, value)
    if value > largest:
        raise InvalidOptionError(f"{name} must be from 0 to {largest:g}, but got {value!r}.")


def check_rate_weight(name: str, value: float) -> None:
    """Refuse a weight that is neither a number of at least 0 nor infinity.

    Raises:
        InvalidOptionError: The value is something else.
    """
    from oneway.checks import check_weight

    if value != math.inf:
        check_weight(name, value)


def check_held_out(name: str, value: float) -> None:
    """Refuse a held-out share that leaves no queries to fit to.

    Raises:
        InvalidOptionError: The value is not a number from 0 to below 1.
    """
    from oneway.checks import check_weight

    check_weight(name, value)
    if not value < 1:
        raise InvalidOptionError(f"{name} must be below 1, but got {value}.")


class FitSettings(Options):
    """How a codebook is fitted to calibration scores."""

    min_members: int = option(
        "k: calibration queries behind each released vector. A label with fewer releases one "
        "vector, which reveals the label alone.",
        default=20,
    )
    rate_weight: float = option(
        "L1 distance of probabilities that one bit beyond the label is worth. 0 joins boxes only "
        "where that distorts no more; infinity leaves one cell per label.",
        default=0.01,
        least=0,
        check=check_rate_weight,
    )
    image_weight: float = option(
        "L1 distance that a mean squared error (per pixel, between the mean images of cells) is "
        "worth: joins cells whose images differ, since no attacker separates what a cell mixes. "
        "0 ignores images.",
        default=0.0,
        least=0,
    )
    explicit_classes: int = option(
        "T: classes whose probabilities each label's table stores. All other classes share the "
        "rest evenly.",
        default=32,
    )
    center: Center = option(
        'What a cell releases. ``"mean"`` of its members\' probabilities: calibrated. '
        '``"median"``, scaled to sum to 1: nearest to most members in L1, since in a large cell '
        "most are nearly sure of the label and a few are not.",
        default="mean",
    )
    max_boxes: int = option("Largest number of boxes per label.", default=64)


class CodebookOptions(FitSettings):
    """Options of the defense ``codebook``."""

    l1_budget: float | None = option(
        "Mean L1 distance of probabilities that users may lose: the table with the best certified "
        "error within it is chosen, and ``rate_weight`` is not used.",
        default=None,
        least=0,
        most=2,
        check=partial(check_limit, largest=2.0),
    )
    held_out: float = option(
        "Share of the queries that certify and do not fit. 0: the same queries fit and certify, "
        "and the certificate says so.",
        default=0.2,
        least=0,
        below=1,
        check=check_held_out,
    )

    @property
    def budget(self) -> "Budget | None":
        """What ``l1_budget`` allows; None without one."""
        return None if self.l1_budget is None else Budget(l1_mean=self.l1_budget)


class DecoyOptions(CodebookOptions):
    """Options of the defense ``decoy-codebook``."""

    decoy_l1: float = option(
        "Largest L1 distance of probabilities by which a decoy moves a codeword. It may exceed "
        "``l1_budget`` by as much.",
        default=0.02,
        above=0,
    )
    decoy_steps: int = option("Steps of the search for decoys.", default=100)
    surrogate_width: int = option("Channels of a surrogate's last hidden layer.", default=16)
    surrogate_epochs: int = option("Training epochs of each surrogate.", default=8)


@dataclass(frozen=True)
class Budget:
    """What users may lose, or attackers may gain; every limit that is set holds.

    Within the limits the table with the fewest bits is chosen, which has the best certified
    error; with ``bits`` alone, the table that distorts least.

    Attributes:
        l1_mean: Mean L1 distance of probabilities, in [0, 2].
        l1_quantile: 95 % quantile of that distance, in [0, 2].
        logits: Mean absolute difference of centered logits per class, in nats.
        top5_kept: Least share of the clean five likeliest classes that are among the released
            five, in [0, 1].
        bits: Measured bits beyond the label.
    """

    l1_mean: float | None = None
    l1_quantile: float | None = None
    logits: float | None = None
    top5_kept: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits outside their range.

        Raises:
            InvalidOptionError: A limit is outside its range, or none is set.
        """
        if not self.limits:
            names = ", ".join(field.name for field in fields(self))
            raise InvalidOptionError(f"a budget must set one of {names}.")
        for name, limit in self.limits.items():
            check_limit(name, limit, LARGEST.get(name, math.inf))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}

    def broken(self, measured: "dict[str, float]") -> list[str]:
        """Return the names of the limits that measured figures break.

        Args:
            measured: Figures by the names of limits; a limit without a figure is not judged.
        """
        return [
            name
            for name, limit in self.limits.items()
            if name in measured
            and not (measured[name] >= limit if name == "top5_kept" else measured[name] <= limit)
        ]
