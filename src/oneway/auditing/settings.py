"""Settings of an audit."""

from dataclasses import dataclass
from typing import Any

from oneway.auditing.plan import (
    FIRST_EPOCHS,
    FULL_AUDIT_TRANSFORMS,
    MOST_EPOCHS,
    REPEATS,
    WIDTHS,
    first_epochs_for,
)
from oneway.auditing.suspicions import SEEDS
from oneway.checks import check_count
from oneway.errors import InvalidOptionError


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        seeds: Number of seeds; each repeats all attacks.
        minutes: Target run time, in minutes; None: no limit.
        controls: Whether controls are run. Without controls nothing vouches for the verdict.
        input_transforms: Input transforms in each model selection.
        widths: Decoder widths in each model selection.
        first_epochs: Epochs at which the search for convergence begins.
        most_epochs: Epochs at which the search for convergence ends.
        repeats: Numbers of answers to the same query that averaging tries.
    """

    seeds: int = SEEDS
    minutes: float | None = None
    controls: bool = True
    input_transforms: tuple[str, ...] = FULL_AUDIT_TRANSFORMS
    widths: tuple[int, ...] = WIDTHS
    first_epochs: int = FIRST_EPOCHS
    most_epochs: int = MOST_EPOCHS
    repeats: tuple[int, ...] = REPEATS

    @classmethod
    def for_rows(cls, rows: int, **others: Any) -> "AuditSettings":
        """Return settings with enough epochs for a number of auxiliary rows.

        Args:
            rows: Number of auxiliary rows.
            **others: Other attributes, by name.
        """
        first = first_epochs_for(rows)
        return cls(first_epochs=first, most_epochs=8 * first, **others)

    def __post_init__(self) -> None:
        """Refuse settings that could not run, before any query.

        Raises:
            InvalidOptionError: A value is outside its range.
        """
        if self.minutes is not None and not self.minutes > 0:
            raise InvalidOptionError(f"minutes must be positive, but got {self.minutes}.")
        check_count("seeds", self.seeds)
        check_count("first_epochs", self.first_epochs)
        check_count("most_epochs", self.most_epochs, least=self.first_epochs)
        for name in ("input_transforms", "widths", "repeats"):
            if not getattr(self, name):
                raise InvalidOptionError(f"{name} must hold at least one value, but is empty.")
        for name in ("widths", "repeats"):
            for count in getattr(self, name):
                check_count(f"each of {name}", count)
