"""Count what is trained to the end, and time few queries."""

from auditing.audits import little_timing
from trainings import trainings

__all__ = ["little_timing", "trainings"]
