"""Options of codebooks, each with its range and its only default. Imports no torch."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from oneway.errors import InvalidOptionError, UnknownNameError

CENTERS: tuple[Literal["mean", "median"], ...] = ("mean", "median")

LARGEST = {"l1_mean": 2.0, "l1_quantile": 2.0, "top5_kept": 1.0}
"""The largest possible values of limits in a :class:`Budget`."""


@dataclass(frozen=True)
class FitSettings:
    """How a codebook is fitted to calibration scores.

    Attributes:
        min_members: k: calibration queries behind each released vector, at least 1. A label with
            fewer releases one vector, which reveals the label alone.
        rate_weight: L1 distance of probabilities that one bit beyond the label is worth. 0 joins
            boxes only where that distorts no more; infinity leaves one cell per label.
        image_weight: L1 distance that a mean squared error (per pixel, between the mean images of
            cells) is worth: joins cells whose images differ, since no attacker separates what a
            cell mixes. 0 ignores images.
        explicit_classes: T: classes whose probabilities each label's table stores. All other
            classes share the rest evenly.
        center: What a cell releases. ``"mean"`` of its members' probabilities: calibrated.
            ``"median"``, scaled to sum to 1: nearest to most members in L1, since in a large cell
            most are nearly sure of the label and a few are not.
        max_boxes: Largest number of boxes per label.
    """

    min_members: int = 20
    rate_weight: float = 0.01
    image_weight: float = 0.0
    explicit_classes: int = 32
    center: Literal["mean", "median"] = "mean"
    max_boxes: int = 64

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InvalidOptionError: An option is outside its range.
            UnknownNameError: ``center`` is unknown.
        """
        from oneway.checks import check_count, check_weight  # imports torch; keeps --help fast

        if self.center not in CENTERS:
            raise UnknownNameError("center", str(self.center), CENTERS)
        for name in ("min_members", "explicit_classes", "max_boxes"):
            check_count(name, getattr(self, name))
        check_rate_weight(self.rate_weight)
        check_weight("image_weight", self.image_weight)


@dataclass(frozen=True)
class CodebookOptions(FitSettings):
    """Options of the defense ``codebook``.

    Attributes:
        l1_budget: Mean L1 distance of probabilities that users may lose, in [0, 2]: the table with
            the best certified error within it is chosen, and ``rate_weight`` is not used.
        held_out: Share of the queries that certify and do not fit, in [0, 1). 0: the same queries
            fit and certify, and the certificate says so.
    """

    l1_budget: float | None = None
    held_out: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values outside their range; see :class:`FitSettings`."""
        super().__post_init__()
        check_held_out(self.held_out)
        if self.l1_budget is not None:
            check_limit("l1_budget", self.l1_budget, 2.0)

    @property
    def budget(self) -> "Budget | None":
        """What ``l1_budget`` allows; None without one."""
        return None if self.l1_budget is None else Budget(l1_mean=self.l1_budget)


@dataclass(frozen=True)
class DecoyOptions(CodebookOptions):
    """Options of the defense ``decoy-codebook``.

    Attributes:
        decoy_l1: Largest L1 distance of probabilities by which a decoy moves a codeword, above 0.
            It may exceed ``l1_budget`` by as much.
        decoy_steps: Steps of the search for decoys, at least 1.
        surrogate_width: Channels of a surrogate's last hidden layer, at least 1.
        surrogate_epochs: Training epochs of each surrogate, at least 1.
    """

    decoy_l1: float = 0.02
    decoy_steps: int = 100
    surrogate_width: int = 16
    surrogate_epochs: int = 8

    def __post_init__(self) -> None:
        """Refuse values outside their range; see :class:`FitSettings`."""
        from oneway.checks import check_above, check_count

        super().__post_init__()
        check_above("decoy_l1", self.decoy_l1, 0)
        for name in ("decoy_steps", "surrogate_width", "surrogate_epochs"):
            check_count(name, getattr(self, name))


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


def check_limit(name: str, value: float, largest: float) -> None:
    """Refuse a limit that is not a number from 0 to ``largest``.

    Raises:
        InvalidOptionError: The value is something else.
    """
    from oneway.checks import check_weight

    check_weight(name, value)
    if value > largest:
        raise InvalidOptionError(f"{name} must be from 0 to {largest:g}, but got {value!r}.")


def check_rate_weight(value: float) -> None:
    """Refuse a ``rate_weight`` that is neither a number of at least 0 nor infinity.

    Raises:
        InvalidOptionError: The value is something else.
    """
    from oneway.checks import check_weight

    if value != math.inf:
        check_weight("rate_weight", value)


def check_held_out(value: float) -> None:
    """Refuse a held-out share that leaves no queries to fit to.

    Raises:
        InvalidOptionError: The value is not a number from 0 to below 1.
    """
    from oneway.checks import check_weight

    check_weight("held_out", value)
    if not value < 1:
        raise InvalidOptionError(f"held_out must be below 1, but got {value}.")
