"""The time that is left for a part of an audit."""

import math
import time
from dataclasses import dataclass
from typing import Self

from oneway.evaluation.convergence import OutOfTimeError


@dataclass(frozen=True)
class Deadline:
    """When a part of an audit must be done.

    Attributes:
        end: Value of :func:`time.perf_counter` then; infinite: never.
    """

    end: float = math.inf

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline after a number of seconds from now."""
        return cls(time.perf_counter() + seconds)

    def left(self) -> float:
        """Return the seconds that are left; below 0 if it is late."""
        return self.end - time.perf_counter()

    def part(self, share: float) -> "Deadline":
        """Return the deadline after a share of the time that is left.

        Args:
            share: The share, in ``(0, 1]``.
        """
        return Deadline.after(share * self.left())

    def check(self) -> None:
        """Raise OutOfTimeError if it is late."""
        if self.left() < 0:
            raise OutOfTimeError


NO_DEADLINE = Deadline()
"""There is always time."""
