"""What papers printed, and which rows a figure shows: data that ships with oneway."""

from collections.abc import Sequence
from dataclasses import dataclass

from oneway.benchmark.spec import bundled_toml
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation import ReleaseRecord
from oneway.evaluation.parsing import build_from


@dataclass(frozen=True)
class PublishedRow:
    """One row of a printed table.

    Attributes:
        release: The release of ours that stands beside it.
        printed: The paper's name of the row.
        logit_distortion: Its "confidence score distortion".
        error: Its "reconstruction error".
        accuracy: Of the model, from 0 to 1; negative: not printed.
    """

    release: str
    printed: str
    logit_distortion: float
    error: float
    accuracy: float = -1.0


@dataclass(frozen=True)
class Remark:
    """What a reader must know before comparing."""

    text: str


@dataclass(frozen=True)
class Published:
    """A printed table, with remarks."""

    table: str
    rows: tuple[PublishedRow, ...]
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class FigureRow:
    """One strip of a figure: what an attacker makes of a release."""

    release: str
    attack: str
    label: str


@dataclass(frozen=True)
class FigureSpec:
    """A figure, drawn from the records of an experiment."""

    title: str
    experiment: str
    rows: tuple[FigureRow, ...]

    def __post_init__(self) -> None:
        """Refuse a figure without rows.

        Raises:
            InvalidOptionError: There are none.
        """
        if not self.rows:
            raise InvalidOptionError("a figure must have at least one row, but has none.")


def published(experiment: str) -> Published:
    """Return what the paper printed for an experiment, such as ``"table1-mnist"``.

    Raises:
        UnknownNameError: Nothing is printed of it.
    """
    name = f"{experiment}.expected"
    return build_from(Published, bundled_toml(name), name)


def published_of(records: Sequence[ReleaseRecord]) -> dict[str, Published]:
    """Return what the paper printed for the experiments of some records, by experiment."""
    found = {}
    for experiment in {record.experiment: None for record in records}:
        try:
            found[experiment] = published(experiment)
        except UnknownNameError:
            continue
    return found


def figure_spec(name: str) -> FigureSpec:
    """Return a figure's rows, such as those of ``"figure1"``.

    Raises:
        UnknownNameError: There is no such figure.
    """
    return build_from(FigureSpec, bundled_toml(name), name)
