"""Defenses that retrain or wrap the target: each trains a network before anything is released."""

from oneway.defenses.trained.decoy_codebook import DecoyCodebook
from oneway.defenses.trained.memguard import MemGuard
from oneway.defenses.trained.mutual_information import MutualInformation
from oneway.defenses.trained.poisoning import Poisoning
from oneway.defenses.trained.purification import Purification

__all__ = [
    "DecoyCodebook",
    "MemGuard",
    "MutualInformation",
    "Poisoning",
    "Purification",
]
