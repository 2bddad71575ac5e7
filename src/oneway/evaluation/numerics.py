"""Which version of each attacker made a record, and which of them are of another version today."""

from collections.abc import Iterable, Mapping

from oneway.attacks import ATTACKS
from oneway.attacks.base import Attack
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.attacks.stealing import STEALING_ATTACKS

REGISTERED: Mapping[str, Attack] = {**ATTACKS, **MEMBERSHIP_ATTACKS, **STEALING_ATTACKS}
"""Attacks of all threats; no two have the same name."""


def numerics_of(attackers: Iterable[str]) -> dict[str, int]:
    """Return today's ``numerics`` of the registered ones among attackers, by name."""
    taking_part = set(attackers)
    return {name: attack.numerics for name, attack in REGISTERED.items() if name in taking_part}


def outdated(numerics: Mapping[str, int], attackers: Iterable[str]) -> tuple[str, ...]:
    """Return the attackers whose results would differ today, or are missing.

    Args:
        numerics: The attackers' versions in a record, by name. Empty in a record that was made
            before attackers had versions.
        attackers: Names of the attackers that took part, or should take part today.
    """
    names = dict.fromkeys((*numerics, *attackers))
    today = numerics_of(names)
    return tuple(name for name in names if name not in today or numerics.get(name) != today[name])
