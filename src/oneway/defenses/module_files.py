"""Trained networks and fitted states on disk, as safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from oneway.defenses.registry import DEFENSES, needs_state, trained_defense
from oneway.errors import CorruptDataError
from oneway.files import corrupt, read_tensors, write_tensors
from oneway.inversion import Inverter, RecordInverter
from oneway.targets import TargetNetwork

NETWORKS: dict[str, type[nn.Module]] = {
    "target": TargetNetwork,
    "inverter": Inverter,
    "record-inverter": RecordInverter,
}

KINDS: dict[str, type[nn.Module]] = {
    **NETWORKS,
    **{name: trained_defense(name).state_type for name in DEFENSES if needs_state(name)},
}
"""Classes of the modules that can be stored; the state of a defense goes by the defense's name."""


@dataclass(frozen=True)
class StoredModule:
    """A network or fitted state in eval mode, and what was written beside its tensors.

    Attributes:
        module: On the CPU.
        kind: A key of ``KINDS``.
        facts: Whatever its trainer recorded, such as held-out errors.
    """

    module: nn.Module
    kind: str
    facts: Mapping[str, Any]


def save_module(path: Path, module: nn.Module, kind: str, facts: Mapping[str, Any]) -> None:
    """Write a network or fitted state as safetensors, architecture and facts in the header.

    The file appears under its name only when it is whole.

    Args:
        path: Where to; missing folders are made.
        module: Of a class in ``KINDS``; its ``architecture`` are keyword arguments of the class.
        kind: That class's key.
        facts: JSON values to keep beside the tensors.
    """
    header = {"kind": kind, "architecture": module.architecture, "facts": facts}
    write_tensors(path, module.state_dict(), header)


def load_module(path: Path, kind: str | None = None, *, remedy: str | None = None) -> StoredModule:
    """Read a network or fitted state that :func:`save_module` wrote.

    Args:
        path: The file.
        kind: The key of ``KINDS`` that it must have. None: any.
        remedy: What the message advises if the file is missing, or something else. None: how to
            get such a file.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is something else, or of another kind.
    """
    what, source = "network", f"Pass a file from `oneway train {kind or 'target'}`."
    if kind is not None and kind not in NETWORKS:
        what = "fitted state"
        source = (
            f"An experiment with the defense {kind!r} fits one and keeps it in its store; in "
            "Python, oneway.defenses.save_module writes one."
        )
    remedy = remedy or source
    state, header = read_tensors(path, what, remedy)
    try:
        # The caller names the class of somebody's own state: what a file names is never imported.
        own = kind is not None and ":" in kind and header["kind"] == kind
        found = trained_defense(kind).state_type if own and kind else KINDS[header["kind"]]
        module = found(**header["architecture"])
        module.load_state_dict(state)
        stored = StoredModule(module.eval(), header["kind"], header["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise corrupt(path, what, remedy, error) from error
    if kind is not None and stored.kind != kind:
        raise CorruptDataError(f"{path} holds a {what} of kind {stored.kind!r}, not {kind!r}.")
    return stored
