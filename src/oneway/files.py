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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors, and JSON values beside them; the file appears only when it is whole.

    Args:
        path: Where to; missing folders are made.
        tensors: By name.
        header: JSON values.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={"oneway": json.dumps(header)})


def read_tensors(path: Path, what: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: The file.
        what: What it should be, in the message: "network".
        remedy: What to do if it is not there.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is something else.
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
    """Return the error that says a file is not what it should be, and not what it holds."""
    return CorruptDataError(
        f"{path} is not a {what} that oneway wrote ({type(error).__name__}). "
        "Delete it and make it again."
    )
