"""Packages that take long to import: by the test that first uses them, not by the collection."""

import pkgutil
from typing import Any

import pytest


class Later:
    """A module, or a name in one, that is imported when it is first used."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _loaded(self) -> Any:
        module, _, _ = self._path.partition(":")
        pytest.importorskip(module, reason=f"needs the package {module.partition('.')[0]}")
        return pkgutil.resolve_name(self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # whoever collects tests asks every name of a module for marks
            raise AttributeError(name)
        return getattr(self._loaded(), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call what the path names."""
        return self._loaded()(*arguments, **options)


def later(path: str) -> Any:
    """Return a stand-in for ``module`` or ``module:name``; its first use imports, or skips."""
    return Later(path)
