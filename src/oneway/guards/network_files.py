"""Trained networks on disk, as safetensors. No file is ever half written."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from oneway.errors import CorruptDataError, MissingDataError
from oneway.guards.registry import DEFENSES, needs_network, trained_defense
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
    header = json.dumps({"kind": kind, "architecture": network.architecture, "facts": facts})
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={"oneway": header})


def load_network(path: Path, kind: str | None = None) -> StoredNetwork:
    """Read a network that :func:`save_network` wrote.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is something else, or a network of another kind.
    """
    if not path.is_file():
        raise MissingDataError(
            f"there is no network file {path}. Train one with `oneway train {kind or 'target'}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["oneway"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = KINDS[header["kind"]](**header["architecture"])
        network.load_state_dict(state)
        stored = StoredNetwork(network.eval(), header["kind"], header["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptDataError(
            f"{path} is not a network that oneway wrote ({type(error).__name__}). "
            "Delete it and train it again."
        ) from error
    if kind is not None and stored.kind != kind:
        raise CorruptDataError(f"{path} holds a network of kind {stored.kind!r}, not {kind!r}.")
    return stored


class atomic_file:  # noqa: N801  used like a function
    """Give a temporary path beside ``path``; on success it takes its place, else it is gone."""

    def __init__(self, path: Path) -> None:
        """Prepare to write ``path``; missing folders are made."""
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".partial-")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.temporary.chmod(0o644)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
