"""Every error that oneway raises on purpose.

::

    OnewayError
    ├── InvalidTensorError   (ValueError)  a tensor has the wrong type, shape or content
    ├── InvalidOptionError   (ValueError)  an option is outside its range
    ├── UnknownNameError     (ValueError)  no such defense, data set, preset or key
    ├── DataError                          input files or arrays cannot be used
    │   ├── MissingDataError               a file is not there
    │   ├── CorruptDataError               a file is there, but is not what it should be
    │   └── OverlappingSplitsError         one image stands in two splits
    ├── MissingExtraError    (ImportError) an optional package is not installed
    ├── TargetFailedError    (RuntimeError) a target did not answer
    ├── DefenseFailedError   (RuntimeError) a defense broke its promise; nothing was released
    └── GapTooSmallError     (AssertionError) an audit's release hides less than asked for

Messages say what was expected, what came, where, and the remedy. They name shapes, types,
counts and row numbers, never a value from a query: an error text travels to logs and clients.
"""

import difflib
import traceback
from collections.abc import Collection, Iterable
from typing import Any


class OnewayError(Exception):
    """Base of all errors below: catch it to catch them all.

    They can be pickled, so that a worker's error reaches its caller.

    Attributes:
        raised: The type and the place of the exception behind this error, for a log that must not
            quote its text. None if there is none.
    """

    raised: tuple[str, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Some compose their message from other arguments than it.
        return _restored, (type(self), self.args)


def _restored(kind: type[OnewayError], args: tuple[Any, ...]) -> OnewayError:
    error = kind.__new__(kind)
    error.args = args
    return error


class InvalidTensorError(OnewayError, ValueError):
    """A tensor has the wrong type, shape or content. The message says which it should have."""


class InvalidOptionError(OnewayError, ValueError):
    """An option is outside its range. The message gives the range."""


SYNONYMS = {"defence": "guard", "defense": "guard"}
"""Names that people write, and the registered names that they mean."""


class UnknownNameError(OnewayError, ValueError):
    """A name is not registered. The message offers the nearest one and lists the known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Compose the message.

        Args:
            kind: What the name stands for, such as ``"defense"``.
            name: The unknown name.
            known: The known names.
        """
        names = sorted(known)
        meant = SYNONYMS.get(name)
        nearest = [meant] if meant in names else difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")

    @classmethod
    def check(cls, kind: str, name: str, known: Collection[str]) -> None:
        """Raise this error if a name is none of the known names."""
        if name not in known:
            raise cls(kind, name, known)


class DataError(OnewayError):
    """Input files or arrays cannot be used as they are."""


class MissingDataError(DataError):
    """A file is not there. The message says where it was looked for and where it comes from."""


class CorruptDataError(DataError):
    """A file is there, but its content is not what it should be."""


class OverlappingSplitsError(DataError):
    """One image stands in two splits, so that an attack would be graded on what it has seen."""


class MissingExtraError(OnewayError, ImportError):
    """An optional package is not installed. The message has the command to install it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        """Compose the message.

        Args:
            package: The package that could not be imported.
            extra: The extra of oneway that installs the package.
            purpose: What the package is needed for.
        """
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Run `pip install 'oneway[{extra}]'`."
        )


class DefenseFailedError(OnewayError, RuntimeError):
    """A defense could not keep its promise, so nothing was released."""


class GapTooSmallError(OnewayError, AssertionError):
    """An audit's release hides less than was asked for, or a flag speaks against it."""


class TargetFailedError(OnewayError, RuntimeError):
    """A target did not answer. The message names it and the kind of failure, never a value."""


def raising_frame(error: BaseException, file: str | None = None) -> traceback.FrameSummary | None:
    """Return the frame that raised an exception.

    Args:
        error: The exception, caught.
        file: Prefer the innermost frame of this file. None, or no such frame: the innermost.

    Returns:
        The frame, or None if the exception was never raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    candidates = [frame for frame in frames if frame.filename == file] or frames
    return candidates[-1] if candidates else None


def where_raised(error: BaseException, file: str | None = None) -> str:
    """Return ``"model.py, line 12"``, the place that raised an exception.

    Args:
        error: The exception, caught.
        file: See :func:`raising_frame`.
    """
    frame = raising_frame(error, file)
    return "no traceback" if frame is None else f"{frame.filename}, line {frame.lineno}"


def kind_of(error: BaseException) -> str:
    """Return the system's words for a failed call to it, such as "Permission denied", or the type.

    Args:
        error: Any exception. Its text is never used, since it may quote data.
    """
    words = error.strerror if isinstance(error, OSError) else None
    return words or type(error).__name__
