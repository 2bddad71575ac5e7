"""Flags: suspicious facts about an evaluation or a release."""

from dataclasses import dataclass

from oneway.errors import UnknownNameError
from oneway.evaluation.flag_kinds import FLAGS


@dataclass(frozen=True)
class Flag:
    """A raised flag.

    Attributes:
        name: Key of ``FLAGS``, and name of the flag's page.
        detail: The finding that raised the flag, in words.
        attack: Name of the attack that the flag is about; None: the flag is about no attack.
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
