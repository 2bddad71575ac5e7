"""Files that are never half written: arrays as .npz, tensors and a header as safetensors."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from oneway.errors import CorruptDataError, MissingDataError, kind_of


class atomic_file:  # noqa: N801  used like a function
    """Write a file whole or not at all.

    The block gets a temporary path in the same folder. The temporary file replaces ``path`` at the
    end of the block, when its content is on the disk, and is removed if anything fails.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to write ``path``; missing folders are created."""
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".partial-")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.temporary.chmod(0o644)
                # A full disk may only be noticed here.
                with self.temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays to one compressed .npz file, whole or not at all.

    Args:
        path: The file; missing folders are created.
        arrays: Arrays of any type and shape, by name.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **dict[str, Any](arrays))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and JSON values to one safetensors file, whole or not at all.

    Args:
        path: The file; missing folders are created.
        tensors: Tensors of any type and shape, by name.
        header: JSON values, by name.

    Raises:
        OSError: The system wrote less than all of it.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(state, temporary, metadata={"oneway": json.dumps(header)})
        except SafetensorError as error:
            # It says so in its text alone.
            raise OSError(errno.EIO, "cannot write all of the file", os.fspath(path)) from error


def read_tensors(path: Path, what: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: The file.
        what: What the message calls the content: "network".
        remedy: What the message advises if the file is missing, or something else.

    Returns:
        The tensors, on the CPU, and the JSON values.

    Raises:
        MissingDataError: The file is missing.
        CorruptDataError: :func:`write_tensors` did not write the file.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no {what} file {path}. {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["oneway"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise corrupt(path, what, remedy, error) from error
    if not isinstance(header, dict):
        raise corrupt(path, what, remedy, TypeError())
    return tensors, header


def digest_tensors(tensors: Mapping[str, Tensor], start: str = "") -> str:
    """Return the SHA-256 of named tensors, in hexadecimal: of names, types, shapes and values.

    Args:
        tensors: Tensors on any device, by name.
        start: What is digested before them.
    """
    digest = hashlib.sha256(start.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def corrupt(path: Path, what: str, remedy: str, error: Exception) -> CorruptDataError:
    """Return the error for a file with wrong content; its text quotes none of the content.

    The file may be somebody's own: the message never advises to delete it.
    """
    return CorruptDataError(
        f"{path} is not a {what} that oneway wrote, or not all of it ({kind_of(error)}). {remedy}"
    )
