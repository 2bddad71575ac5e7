"""The version of a guard: a short digest of what decides its answers.

Guards of one version answer alike, in every process and on every device. No query is part of it,
nor how many queries are behind a vector, nor the certificate.

**What a version reveals.** It confirms a guess of the whole table, and nothing less. So whoever
knows all calibration queries but one, and how the table was fitted, can test candidates for the
last one. The vectors, which any client may read, reveal as much to them: the mean of a cell and all
its members but one give the last one's scores.
"""

from dataclasses import fields

from torch import Generator, nn

import oneway
from oneway.contracts import Defense
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.codebook.table import short_digest
from oneway.defenses.keyed import KeyedRandomness
from oneway.errors import InvalidOptionError
from oneway.files import digest_tensors
from oneway.options import options_of


def guard_version(defense: Defense, *, decimals: int | None = None) -> str:
    """Return the version of a guard, 16 hexadecimal digits.

    Args:
        defense: A defense of oneway. A codebook's version is that of its table. The version of
            any other depends on its options, its networks, its key and oneway's version.
        decimals: Decimals that its answers are rounded to; None: they are not rounded.

    Raises:
        InvalidOptionError: The defense declares no options, so that it is not known what decides
            its answers.
    """
    version = _unrounded(defense)
    return version if decimals is None else short_digest(f"{version} decimals {decimals}")


def refuse_other_version(expected: str, version: str) -> None:
    """Refuse a guard of another version than the expected one.

    Raises:
        InvalidOptionError: It is another.
    """
    if expected != version:
        raise InvalidOptionError(
            f"the guard must be of version {expected}, but is of version {version}: other files, "
            "options, key or decimals. Give it those that the version was read from, or require "
            "the new version everywhere."
        )


def _unrounded(defense: Defense) -> str:
    if isinstance(defense, CodebookRelease):
        return defense.state.version
    if isinstance(defense, KeyedRandomness):
        inner = f"{_unrounded(defense.defense)} {defense.bind} {defense.grid}"
        return short_digest(defense.key.digest(f"oneway guard version\0{inner}".encode()).hex())
    try:
        options = {name: getattr(defense, name) for name in options_of(type(defense))}
    except TypeError:
        raise InvalidOptionError(
            f"{type(defense).__name__} declares no options, so that its version is not known. "
            "Take a defense of oneway, or inherit oneway.defenses.ScoreDefense."
        ) from None
    given = ((each.name, getattr(defense, each.name)) for each in fields(defense))  # type: ignore[arg-type]
    parts = {
        name: digest_tensors(value.state_dict())
        if isinstance(value, nn.Module)
        else value.initial_seed()
        for name, value in given
        # A deterministic defense takes a key from its generator, if anything.
        if isinstance(value, nn.Module) or (isinstance(value, Generator) and defense.deterministic)
    }
    kind = type(defense)
    said = (oneway.__version__, kind.__module__, kind.__qualname__, options, parts)
    return short_digest(repr(said))
