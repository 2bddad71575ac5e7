"""Adversaries, one per file, named by what they know."""

from oneway.attacks.adversarial_training import adversarial_training
from oneway.attacks.averaging import averaging
from oneway.attacks.class_representative import class_representative
from oneway.attacks.label_only import label_only
from oneway.attacks.optimising import optimising
from oneway.attacks.registry import ATTACKS
from oneway.attacks.retrained import retrained
from oneway.attacks.static import static

__all__ = [
    "ATTACKS",
    "adversarial_training",
    "averaging",
    "class_representative",
    "label_only",
    "optimising",
    "retrained",
    "static",
]
