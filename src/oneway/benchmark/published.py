"""Printed tables of papers, and the rows of figures: data that ships with oneway."""

from collections.abc import Sequence
from dataclasses import dataclass

from oneway.benchmark.spec import bundled_toml
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation import ReleaseRecord
from oneway.parsing import build_from


@dataclass(frozen=True)
class PublishedRow:
    """A row of a printed table.

    Attributes:
        release: Name of the corresponding release of the experiment.
        printed: Name of the row in the paper.
        logit_distortion: The paper's "confidence score distortion".
        error: The paper's "reconstruction error".
        accuracy: Accuracy of the model, from 0 to 1; negative: not printed.
    """

    release: str
    printed: str
    logit_distortion: float
    error: float
    accuracy: float = -1.0


@dataclass(frozen=True)
class Remark:
    """A sentence that a reader must know before comparing."""

    text: str


@dataclass(frozen=True)
class Published:
    """A printed table, with remarks."""

    table: str
    rows: tuple[PublishedRow, ...]
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class FigureRow:
    """A strip of a figure: reconstructions by an attack from a release, with a label."""

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
            InvalidOptionError: The figure has no rows.
        """
        if not self.rows:
            raise InvalidOptionError("a figure must have at least one row, but has none.")


def published(experiment: str) -> Published:
    """Return the printed table of an experiment, such as ``"table1-mnist"``.

    Raises:
        UnknownNameError: The experiment has no printed table.
    """
    name = f"{experiment}.expected"
    return build_from(Published, bundled_toml(name), name)


def published_of(records: Sequence[ReleaseRecord]) -> dict[str, Published]:
    """Return the printed tables of the experiments of records, by experiment."""
    tables = {}
    for experiment in {record.experiment: None for record in records}:
        try:
            tables[experiment] = published(experiment)
        except UnknownNameError:
            continue
    return tables


def figure_spec(name: str) -> FigureSpec:
    """Return the spec of a figure, such as ``"figure1"``.

    Raises:
        UnknownNameError: The figure does not exist.
    """
    return build_from(FigureSpec, bundled_toml(name), name)
