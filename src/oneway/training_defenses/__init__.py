"""Defenses that retrain or wrap the target: each trains a network before anything is released."""

from oneway.training_defenses.mutual_information import BottleneckNetwork, MutualInformation
from oneway.training_defenses.purification import Purification, Purifier

__all__ = ["BottleneckNetwork", "MutualInformation", "Purification", "Purifier"]
