"""Trained networks and records on disk. Nothing is trained twice, and no file is half written."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from oneway.benchmark.registry import DEFENSES, needs_network, trained_defense
from oneway.errors import CorruptDataError, MissingDataError
from oneway.extras import load_extra
from oneway.inversion import Inverter, RecordInverter
from oneway.targets import TargetNetwork

RECIPE = 1
"""Part of every key. Raise it when training code changes what a spec trains to."""

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


def spec_key(spec: Mapping[str, Any]) -> str:
    """Return the hash of a spec: of its canonical JSON and the recipe's number."""
    text = json.dumps({"recipe": RECIPE, **spec}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors' types, shapes and bytes, so that data is part of a key."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


class Store:
    """A folder of trained networks, each under the hash of the spec that made it."""

    def __init__(self, root: Path) -> None:
        """Use ``root``; it is made when first written to."""
        self.root = root

    def network(
        self,
        kind: str,
        spec: Mapping[str, Any],
        train: Callable[[], tuple[nn.Module, Mapping[str, Any]]],
    ) -> StoredNetwork:
        """Return the network of a spec, trained now only if it never was.

        Args:
            kind: A key of ``KINDS``.
            spec: JSON values that decide what is trained, the data's fingerprint among them.
            train: Trains it, and says what to record beside it.

        Returns:
            The network as read back from the disk, so that a rerun computes with the same.
        """
        path = self.root / "networks" / f"{kind}-{spec_key({'kind': kind, **spec})}.safetensors"
        if not path.is_file():
            begin = time.perf_counter()
            network, facts = train()
            seconds = time.perf_counter() - begin
            save_network(path, network, kind, {**facts, "seconds": seconds, "spec": spec})
        return load_network(path, kind)


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as JSON Lines, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read records that :func:`write_records` wrote; none if there is no such file.

    Raises:
        CorruptDataError: A line is not a JSON object.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorruptDataError(f"line {number} of {path} is not JSON. Delete it.") from error
        if not isinstance(record, dict):
            raise CorruptDataError(f"line {number} of {path} is not a JSON object. Delete it.")
        records.append(record)
    return records


def write_queries(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as a Parquet file, whole or not at all.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    needed = {"extra": "audit", "purpose": "keeping every query"}
    pyarrow = load_extra("pyarrow", **needed)
    parquet = load_extra("pyarrow.parquet", **needed)
    with atomic_file(path) as temporary:
        parquet.write_table(pyarrow.table(dict(columns)), temporary)
