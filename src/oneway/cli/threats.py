"""Which threats `oneway audit` looks at, and whether each has its data."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from oneway.errors import InvalidOptionError, UnknownNameError

THREATS = ("inversion", "membership", "stealing")

Threats = Annotated[
    str,
    typer.Option(help="Threats to audit, separated by commas: inversion, membership, stealing."),
]

NEEDED = {
    "--queries": ("inversion", "stealing"),
    "--members": ("membership",),
    "--non-members": ("membership",),
}
"""Data by option, and the threats that need it."""

OPTIONAL = {"--public": "stealing", "--budget": "stealing"}
"""Options that one threat alone takes."""


def parse_threats(threats: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the threats, after a check that each has its data, and that no data is idle.

    Args:
        threats: Names, separated by commas.
        given: Values of the options of ``NEEDED`` and ``OPTIONAL``; None or empty: not given.

    Raises:
        UnknownNameError: There is no such threat.
        InvalidOptionError: Data of a threat is missing, or given without its threat.
    """
    chosen = tuple(dict.fromkeys(name.strip() for name in threats.split(",")))
    for name in chosen:
        if name not in THREATS:
            raise UnknownNameError("threat", name, THREATS)
    for option, users in NEEDED.items():
        needs = [name for name in users if name in chosen]
        if needs and not given[option]:
            raise InvalidOptionError(
                f"{option} must be given for the threat {needs[0]!r}, but is not. "
                f"Pass {option} DATA."
            )
        if given[option] and not needs:
            raise _idle(option, users[0])
    for option, user in OPTIONAL.items():
        if given[option] and user not in chosen:
            raise _idle(option, user)
    return chosen


def _idle(option: str, threat: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{option} is for the threat {threat!r}, which is not audited. Add it to --threats, or "
        f"leave {option} out."
    )
