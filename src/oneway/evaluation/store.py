"""Trained networks and records on disk: nothing is trained twice, and each file is whole."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from oneway.defenses import StoredModule, load_module, save_module
from oneway.errors import CorruptDataError
from oneway.extras import load_extra
from oneway.files import atomic_file, read_tensors, write_tensors

REMEDY = "The file is of the cache: take it away, and the same command makes it again."

TAKE_OUT = "Take it out, and the same command makes its record again."

RECIPE = 1
"""Part of every key. Raise it when a change of training code changes the trained network."""


RECIPES = {"codebook": 3, "decoy-codebook": 3}
"""Recipes of kinds whose training code, or whose tensors, changed by themselves."""


def spec_key(spec: Mapping[str, Any]) -> str:
    """Return the hash of a spec's canonical JSON and of the recipe's number, 20 hex digits."""
    text = json.dumps({"recipe": RECIPE, **spec}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of the types, shapes and bytes of tensors, such as data in a key."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Store:
    """A folder of trained networks, each under the hash of the spec that made it."""

    def __init__(self, root: Path) -> None:
        """Use a folder.

        Args:
            root: The folder, which the first file makes if it is missing.
        """
        self.root = root

    def network(
        self,
        kind: str,
        spec: Mapping[str, Any],
        train: Callable[[], tuple[nn.Module, Mapping[str, Any]]],
    ) -> StoredModule:
        """Return the network of a spec; train it if the store lacks it.

        Args:
            kind: Key of ``oneway.defenses.module_files.KINDS``.
            spec: JSON values that decide what is trained, the data's fingerprint among them.
            train: Trains the network; returns it with facts to record.

        Returns:
            The network as read back from the disk, so that a rerun computes with the same.
        """
        recipe = {"recipe": RECIPES[kind]} if kind in RECIPES else {}
        key = spec_key({"kind": kind, **spec, **recipe})
        path = self.root / "networks" / f"{kind}-{key}.safetensors"
        if not path.is_file():
            begin = time.perf_counter()
            network, facts = train()
            seconds = time.perf_counter() - begin
            save_module(path, network, kind, {**facts, "seconds": seconds, "spec": spec})
        stored = load_module(path, kind, remedy=REMEDY)
        # Up to twice as fast on a CPU, where max pooling of one channel after the other is slow.
        convert_conv2d_weight_memory_format(stored.module, torch.channels_last)
        return stored

    def tensors(
        self, kind: str, spec: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors of a spec; compute them if the store lacks them.

        Args:
            kind: First part of the file's name.
            spec: JSON values that decide the tensors, fingerprints of their sources among them.
            compute: Computes the tensors, by name.

        Returns:
            The tensors as read back from the disk, on the CPU.
        """
        path = self.root / "tensors" / f"{kind}-{spec_key({'kind': kind, **spec})}.safetensors"
        if not path.is_file():
            write_tensors(path, compute(), {"kind": kind, "spec": spec})
        return read_tensors(path, kind, REMEDY)[0]


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON objects as JSON Lines, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects that :func:`write_json_lines` wrote.

    Args:
        path: The file. If it does not exist, there are no objects.

    Raises:
        CorruptDataError: A line is not a JSON object.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"line {number} of {path} is not JSON. {TAKE_OUT}") from error
        if not isinstance(record, dict):
            raise CorruptDataError(f"line {number} of {path} is not a JSON object. {TAKE_OUT}")
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
