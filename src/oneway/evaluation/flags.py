"""Flags: what is suspicious about an evaluation or a release."""

from dataclasses import dataclass

from oneway.errors import UnknownNameError
from oneway.evaluation.flag_kinds import FLAGS


@dataclass(frozen=True)
class Flag:
    """One raised flag.

    Attributes:
        name: A key of ``FLAGS``, and the name of its page.
        detail: The finding that raised the flag, in words.
        attack: Name of the attack that it is about, if it is about one.
    """

    name: str
    detail: str
    attack: str | None = None

    def __post_init__(self) -> None:
        """Refuse a flag that has no page.

        Raises:
            UnknownNameError: The name is none of ``FLAGS``.
        """
        if self.name not in FLAGS:
            raise UnknownNameError("flag", self.name, FLAGS)
