"""Named tensors and a header on disk, as safetensors. No file is ever half written."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from oneway.errors import CorruptDataError, MissingDataError


class atomic_file:  # noqa: N801  used like a function
    """Write a file whole or not at all.

    The block gets a temporary path in the same folder. The temporary file replaces ``path`` at the
    end of the block, and is removed if the block raises.
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
        if kind is None:
            self.temporary.chmod(0o644)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and JSON values to one safetensors file, whole or not at all.

    Args:
        path: The file; missing folders are created.
        tensors: Tensors of any type and shape, by name.
        header: JSON values, by name.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={"oneway": json.dumps(header)})


def read_tensors(path: Path, what: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: The file.
        what: What the message calls the content: "network".
        remedy: What the message advises if the file is missing.

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
    except (SafetensorError, KeyError, ValueError) as error:
        raise corrupt(path, what, error) from error
    if not isinstance(header, dict):
        raise corrupt(path, what, TypeError())
    return tensors, header


def corrupt(path: Path, what: str, error: Exception) -> CorruptDataError:
    """Return the error for a file with wrong content; its text quotes none of the content."""
    return CorruptDataError(
        f"{path} is not a {what} that oneway wrote ({type(error).__name__}). "
        "Delete it and make it again."
    )
