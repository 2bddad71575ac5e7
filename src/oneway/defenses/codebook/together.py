"""Figures of a certificate that is about answers of several versions of a codebook."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alone:
    """One of several versions by itself, on the same queries.

    Attributes:
        version: Version of the guard.
        cells: Cells of its table.
        bits_measured: Bits beyond the label on average.
        error: Estimated least error of any attacker; None without the queries.
        named: Share of the queries that an attacker names who may ask about each of them: different
            answers / different queries.
    """

    version: str
    cells: int
    bits_measured: float
    error: float | None
    named: float


@dataclass(frozen=True)
class Together:
    """Whose answers a certificate is about, if they are of several versions.

    Attributes:
        alone: Each version by itself.
        named: As ``named`` of each, from the answers of all versions.
    """

    alone: tuple[Alone, ...]
    named: float
