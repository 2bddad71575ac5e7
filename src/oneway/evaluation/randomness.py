"""Random streams that depend on a seed and a purpose, and on nothing else."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """The random stream of a purpose; a new purpose changes no other stream.

    Attributes:
        root: Seed of the experiment.
        purpose: Name of the purpose.
    """

    root: int
    purpose: str

    @property
    def seed(self) -> int:
        """The stream's seed, in ``[0, 2**48)``."""
        digest = hashlib.sha256(f"{self.root}/{self.purpose}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def generator(self) -> torch.Generator:
        """Return a new generator on the CPU."""
        return torch.Generator().manual_seed(self.seed)

    def call(self, function: Callable[[], T], device: torch.device) -> T:
        """Call a function with PyTorch's global stream seeded, and restore that stream.

        Initial weights and dropout take their numbers from the global stream.
        """
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            return function()
