"""Open the guard of a server: from name, options and files to a defense."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from oneway.contracts import Defense
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.guard_versions import guard_version
from oneway.defenses.keyed import KeyedRandomness, SecretKey
from oneway.defenses.module_files import load_module
from oneway.defenses.registry import (
    DEFENSES,
    TEST_SIGNALS,
    build_defense,
    needs_state,
    needs_surrogate,
)
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
    UnknownNameError,
)


@dataclass(frozen=True)
class ServableDefense:
    """A defense that may serve clients: it keeps labels and is deterministic.

    Attributes:
        name: The defense's registered name, or the kind of its file.
        version: Digest of what decides the releases, from :func:`guard_version`.
        defense: The defense.
    """

    name: str
    version: str
    defense: Defense

    @property
    def needs_same_bits(self) -> bool:
        """Whether a query must have the same bits in any batch; a foreign defense must."""
        return getattr(self.defense, "needs_same_bits", True)

    def rounded(self, decimals: int | None) -> "ServableDefense":
        """Return the guard whose answers are rounded; it has another version."""
        if decimals is None:
            return self
        return replace(self, version=guard_version(self.defense, decimals=decimals))


def open_guard(
    name: str,
    options: Mapping[str, Any],
    *,
    inverter: Path | None = None,
    state: Path | None = None,
    key: bytes | None = None,
    device: torch.device,
    allow_clean_scores: bool = False,
) -> ServableDefense:
    """Build a guard from a defense's name, options and files.

    Args:
        name: A registered defense.
        options: Options of the defense.
        inverter: File of the defender's surrogate, if the defense takes one.
        state: File of the defense's fitted state, if it takes one.
        key: Secret that fixes the draws of a random defense.
        device: Where networks and fitted states go.
        allow_clean_scores: Let ``"none"`` pass, which guards nothing.

    Raises:
        UnknownNameError: There is no such defense or option.
        InvalidOptionError: The defense must not serve, an option is outside its range, or a file
            or the key is missing or not needed.
        MissingDataError: A file is not there.
        CorruptDataError: A file is something else.
    """
    if name in TEST_SIGNALS:
        raise InvalidOptionError(
            f"{name} is a control: it leaks on purpose, so that audits can be tested, and must "
            "not stand before clients. Choose a defense."
        )
    UnknownNameError.check("defense", name, DEFENSES)
    if name == "none" and not allow_clean_scores:
        raise InvalidOptionError("the defense 'none' guards nothing. Choose another.")
    if name == "codebook":
        raise InvalidOptionError("a codebook is opened from its own file. Give --guard FILE.")
    needed = {"inverter": needs_surrogate(name), "state": needs_state(name)}
    for what, path in (("inverter", inverter), ("state", state)):
        if needed[what] is not (path is not None):
            said = f"needs --{what} FILE" if needed[what] else f"takes no --{what}"
            raise InvalidOptionError(f"the defense {name!r} {said}.")
    surrogate = None if inverter is None else _surrogate(inverter, device)
    fitted = None if state is None else load_module(state, name).module.to(device)

    def build(generator: Generator) -> Defense:
        return build_defense(name, options, surrogate, state=fitted, generator=generator)

    defense = build(Generator())
    if getattr(defense, "remembers", False):
        raise InvalidOptionError(
            f"the defense {name!r} releases clean scores of some queries, and answers depend on "
            "which were asked before. Fit it beforehand (grows=false), or choose another."
        )
    if not defense.keeps_label:
        raise InvalidOptionError(
            f"the defense {name!r} may change labels, and clients would act on wrong ones. Give "
            "it the option keep_label=true if it has one, or choose another."
        )
    if not defense.deterministic:
        if key is None:
            raise InvalidOptionError(
                f"the defense {name!r} is random: without a secret key, a client who "
                "asks again averages its noise away. Give a key, by the setting key_file."
            )
        defense = KeyedRandomness(build, SecretKey(key))
    return ServableDefense(name, guard_version(defense), defense)


def open_guard_file(path: Path, *, device: torch.device) -> ServableDefense:
    """Open a guard that was fitted: a codebook, from `oneway codebook`.

    Args:
        path: File of the codebook.
        device: Where its table goes.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: The file is no codebook, its table breaks its own rules, or its
            certificate is about another table.
    """
    name = str(path)
    if name in DEFENSES and not path.exists():
        raise MissingDataError(
            f"there is no file {name}. Pass the defense of that name by --defense {name} "
            f"(guard=oneway.defenses.build_defense({name!r}, {{}}, None))."
        )
    release = CodebookRelease.load(path)
    release.state.to(device)
    return ServableDefense("codebook", guard_version(release), release)


def _surrogate(path: Path, device: torch.device) -> nn.Module:
    stored = load_module(path)
    if stored.kind not in ("inverter", "record-inverter"):
        raise CorruptDataError(f"{path} holds a {stored.kind!r}, not an inverter.")
    return stored.module.to(device)
