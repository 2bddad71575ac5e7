"""Trained networks on disk, as safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from oneway.defenses.registry import DEFENSES, needs_network, trained_defense
from oneway.errors import CorruptDataError
from oneway.files import corrupt, read_tensors, write_tensors
from oneway.inversion import Inverter, RecordInverter
from oneway.targets import TargetNetwork

KINDS: dict[str, type[nn.Module]] = {
    "target": TargetNetwork,
    "inverter": Inverter,
    "record-inverter": RecordInverter,
    **{name: trained_defense(name).network_type for name in DEFENSES if needs_network(name)},
}
"""Classes of the networks that can be stored; a defense's own network goes by its name."""


@dataclass(frozen=True)
class StoredNetwork:
    """A network in eval mode, and what was written beside its weights.

    Attributes:
        network: On the CPU.
        kind: A key of ``KINDS``.
        facts: Whatever its trainer recorded, such as held-out errors.
    """

    network: nn.Module
    kind: str
    facts: Mapping[str, Any]


def save_network(path: Path, network: nn.Module, kind: str, facts: Mapping[str, Any]) -> None:
    """Write a network as safetensors, with its architecture and facts in the header.

    The file appears under its name only when it is whole.

    Args:
        path: Where to; missing folders are made.
        network: Of a class in ``KINDS``; it says its ``architecture``.
        kind: That class's key.
        facts: JSON values to keep beside the weights.
    """
    header = {"kind": kind, "architecture": network.architecture, "facts": facts}
    write_tensors(path, network.state_dict(), header)


def load_network(path: Path, kind: str | None = None) -> StoredNetwork:
    """Read a network that :func:`save_network` wrote.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is something else, or a network of another kind.
    """
    remedy = f"Train one with `oneway train {kind or 'target'}`."
    state, header = read_tensors(path, "network", remedy)
    try:
        network = KINDS[header["kind"]](**header["architecture"])
        network.load_state_dict(state)
        stored = StoredNetwork(network.eval(), header["kind"], header["facts"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise corrupt(path, "network", error) from error
    if kind is not None and stored.kind != kind:
        raise CorruptDataError(f"{path} holds a network of kind {stored.kind!r}, not {kind!r}.")
    return stored
