"""Options of codebooks, declared once: commands, registry, `choose` and decoys read them here."""

import math
from collections.abc import Mapping
from typing import Literal

from oneway.checks import check_weight
from oneway.errors import InvalidOptionError
from oneway.options import Options, option

CENTERS: tuple[Literal["mean", "median"], ...] = ("mean", "median")


def check_rate_weight(name: str, value: float) -> None:
    """Refuse a weight of a bit that is neither a number of at least 0 nor infinity.

    Raises:
        InvalidOptionError: The value is something else.
    """
    if value != math.inf:
        check_weight(name, value)


class FitSettings(Options):
    """How a codebook is fitted to calibration scores."""

    min_members: int = option(
        "k: distinct calibration queries, and distinct groups where these are given, behind each "
        "released vector, at least. Labels with fewer than twice as many share levels.",
        default=20,
    )
    rate_weight: float = option(
        "L1 distance of probabilities that one bit beyond the label is worth. 0 joins boxes only "
        "where that distorts no more; infinity leaves one cell per label.",
        default=0.01,
        check=check_rate_weight,
    )
    image_weight: float = option(
        "L1 distance that a mean squared error (per pixel, between the mean images of cells) is "
        "worth: joins cells whose images differ, since no attacker separates what a cell mixes. 0 "
        "ignores images.",
        default=0.0,
        least=0,
    )
    variant_weight: float = option(
        "L1 distance that the chance is worth that two answers to changed copies of a query "
        "differ: joins cells between which they move. Needs the scores of such copies "
        "(`variants`) above 0.",
        default=0.0,
        least=0,
    )
    explicit_classes: int = option(
        "Classes whose probabilities each label's table stores. All others share the rest evenly.",
        default=32,
    )
    center: Literal["mean", "median"] = option(
        "What a cell releases: the mean of its members' probabilities (calibrated), or their "
        "median, rescaled to sum to 1 (nearest to most of them in L1).",
        default="mean",
    )
    shared_levels: int = option(
        "Largest number of levels of the top score that labels with too few calibration queries "
        "share: each such label has as many vectors, and min_members are behind a level of all "
        "labels together. 1: the vector of such a label reveals the label alone.",
        default=1,
    )
    max_boxes: int = option("Largest number of boxes per label.", default=64)
    max_cells: int | None = option(
        "Largest number of cells of the table, at least one per label: among M equally likely "
        "candidates the right one is named at most max_cells / M of the time. Cells are joined "
        "further where that costs least.",
        default=None,
    )
    max_l1_worst: float | None = option(
        "Cap on the L1 distance of probabilities between clean scores and their answer: no cells "
        "are joined where that brings a calibration query beyond it. The certificate states what "
        "share of other queries keeps it.",
        default=None,
        above=0,
        most=2,
    )
    max_group_share: float = option(
        "Largest share of a cell's calibration queries that one group may have. Cells above it are "
        "merged; a label above it, or with too few queries for a cut, releases one vector, which "
        "reveals the label alone. Needs groups below 1.",
        default=1.0,
        above=0,
        most=1,
    )


class CodebookOptions(FitSettings):
    """Options of the defense ``codebook``."""

    l1_budget: float | None = option(
        "Mean L1 distance of probabilities that users may lose: the table with the best certified "
        "error within it is chosen, and `rate_weight` is not used.",
        default=None,
        least=0,
        most=2,
    )
    held_out: float = option(
        "Share of the queries that certify and do not fit. 0: the same queries fit and certify, "
        "and the certificate says so.",
        default=0.2,
        least=0,
        below=1,
    )
    drop_copies: bool = option(
        "Count copies of a query once, also where they certify. For files whose copies are an "
        "artefact; in real traffic copies are part of what a certificate speaks of.",
        default=False,
    )


class DecoyOptions(CodebookOptions):
    """Options of the defense ``decoy-codebook``."""

    decoy_l1: float = option(
        "Largest L1 distance of probabilities by which a decoy moves a codeword, perhaps beyond "
        "`l1_budget`.",
        default=0.02,
        above=0,
    )
    decoy_steps: int = option("Steps of the search for decoys.", default=100)
    surrogate_width: int = option("Channels of a surrogate's last hidden layer.", default=16)
    surrogate_epochs: int = option("Training epochs of each surrogate.", default=8)


class Budget(Options):
    """What users may lose, or attackers may gain; every limit that is set holds.

    Within the limits the table with the fewest bits is chosen, which has the best certified
    error; with ``bits`` alone, the table that distorts least.
    """

    l1_mean: float | None = option(
        "Mean L1 distance of probabilities.", default=None, least=0, most=2
    )
    l1_quantile: float | None = option(
        "95 % quantile of that distance.", default=None, least=0, most=2
    )
    logits: float | None = option(
        "Mean absolute difference of centered logits per class, in nats.", default=None, least=0
    )
    top5_kept: float | None = option(
        "Least share of the clean five likeliest classes that are among the released five.",
        default=None,
        least=0,
        most=1,
    )
    bits: float | None = option("Measured bits beyond the label.", default=None, least=0)

    def __post_init__(self) -> None:
        """Refuse limits outside their range.

        Raises:
            InvalidOptionError: A limit is outside its range, or none is set.
        """
        super().__post_init__()
        if not self.limits:
            raise InvalidOptionError(f"a budget must set one of {', '.join(vars(self))}.")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}

    def broken(self, measured: Mapping[str, float]) -> list[str]:
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
