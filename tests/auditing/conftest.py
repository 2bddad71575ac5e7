"""Count what is trained to the end."""

from trainings import trainings

__all__ = ["trainings"]
