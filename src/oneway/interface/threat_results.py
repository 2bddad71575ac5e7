"""What results of audits of other threats than inversion have in common."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from oneway.files import atomic_file


class ThreatResult(ABC):
    """The result of an audit: a record with a verdict.

    Attributes:
        record: All results.
        file_name: Name of the record's file.
    """

    record: Any
    file_name: ClassVar[str]

    @property
    @abstractmethod
    def verdict(self) -> str:
        """The verdict in sentences, with its numbers."""

    def write(self, folder: Path) -> Path:
        """Write the record as JSON under ``file_name`` into a folder; return its path."""
        path = folder / self.file_name
        text = json.dumps(self.record.to_json(), indent=2, allow_nan=False) + "\n"
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    def __str__(self) -> str:
        return self.verdict
