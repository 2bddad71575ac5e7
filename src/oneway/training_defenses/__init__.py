"""Defenses that retrain or wrap the target: each trains a network before anything is released."""

from oneway.training_defenses.decoy_codebook import DecoyCodebook
from oneway.training_defenses.memguard import MembershipClassifier, MemGuard
from oneway.training_defenses.mutual_information import BottleneckNetwork, MutualInformation
from oneway.training_defenses.poisoning import PoisonGenerator, Poisoning
from oneway.training_defenses.purification import Purification, Purifier

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
