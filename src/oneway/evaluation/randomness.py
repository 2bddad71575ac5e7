"""Random streams that depend on a seed and a purpose, and on nothing else."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """A random stream of its own for each purpose, so that adding one moves no other."""

    root: int
    purpose: str

    @property
    def seed(self) -> int:
        """The stream's seed, in ``[0, 2**48)``."""
        digest = hashlib.sha256(f"{self.root}/{self.purpose}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def generator(self) -> torch.Generator:
        """Return a fresh generator on the CPU."""
        return torch.Generator().manual_seed(self.seed)

    def call(self, function: Callable[[], T], device: torch.device) -> T:
        """Call ``function`` with PyTorch's global stream seeded, and restore it after.

        Initial weights and dropout take their numbers from there.
        """
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            return function()
