"""The arguments of a data set's loader, and callbacks for its progress."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oneway.errors import InvalidOptionError, MissingDataError

ProgressCallback = Callable[[str, float], None]
"""Receives the name of a stage, and the share of it that is done, from 0 to 1."""


def no_progress(stage: str, share: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Source:
    """The arguments of ``load_dataset``.

    Attributes:
        name: The data set's name.
        data_root: A folder that holds the files of data sets, or None.
        path: A file or folder, relative to ``data_root`` or absolute, or None.
        side: The side in pixels that every image is scaled to, or None.
        labelled: Whether labels are wanted; an auxiliary set needs none.
        report: Receives the progress.
    """

    name: str
    data_root: Path | None = None
    path: str | None = None
    side: int | None = None
    labelled: bool = True
    report: ProgressCallback = no_progress

    def refuse_path(self) -> None:
        """Refuse a path, for a loader that takes none.

        Raises:
            InvalidOptionError: There is a path.
        """
        if self.path is not None:
            raise InvalidOptionError(
                f"data set {self.name!r} takes no path, but got {self.path!r}. Leave it out; "
                "the data root says where its files are."
            )

    def locate(self, origin: str, *, subfolder: str | None = None) -> Path:
        """Return the folder to read.

        It is ``path`` if that is given, else ``subfolder`` of the data root if that exists, else
        the data root.

        Args:
            origin: A sentence that says where the files come from.
            subfolder: The usual name of the data set's folder.

        Raises:
            MissingDataError: The folder does not exist, or neither a data root nor a path is given.
        """
        if self.path is not None:
            folder = (self.data_root or Path()) / self.path
        elif self.data_root is None:
            raise MissingDataError(
                f"data set {self.name!r} is not downloaded, but got neither a data root nor a "
                f"path. {origin}"
            )
        elif subfolder is not None and (self.data_root / subfolder).is_dir():
            folder = self.data_root / subfolder
        else:
            folder = self.data_root
        if not folder.is_dir():
            raise MissingDataError(
                f"data set {self.name!r} is read from a folder, but {folder} is none. {origin}"
            )
        return folder
