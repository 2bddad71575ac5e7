"""Defenses that retrain or wrap the target: each trains a network before anything is released."""

from oneway.defenses.trained.decoy_codebook import DecoyCodebook
from oneway.defenses.trained.memguard import MembershipClassifier, MemGuard
from oneway.defenses.trained.mutual_information import BottleneckNetwork, MutualInformation
from oneway.defenses.trained.poisoning import PoisonGenerator, Poisoning
from oneway.defenses.trained.purification import Purification, Purifier

__all__ = [
    "BottleneckNetwork",
    "DecoyCodebook",
    "MemGuard",
    "MembershipClassifier",
    "MutualInformation",
    "PoisonGenerator",
    "Poisoning",
    "Purification",
    "Purifier",
]
