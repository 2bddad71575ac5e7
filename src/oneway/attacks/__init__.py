"""Attacks, one per file, each with declarations of its knowledge, needs and costs."""

from oneway.attacks.adversarial_training import AdversarialTraining
from oneway.attacks.averaging import Averaging
from oneway.attacks.bagged_perceptrons import BaggedPerceptrons
from oneway.attacks.base import Attack, IdentificationAttack, InversionAttack, Workload
from oneway.attacks.cell_means import CellMeans
from oneway.attacks.class_representative import (
    ClassRepresentative,
    WhiteBoxClassRepresentative,
)
from oneway.attacks.generative import Generative
from oneway.attacks.gmi import GMI
from oneway.attacks.kernel_ridge import KernelRidge
from oneway.attacks.label_only import LabelOnly
from oneway.attacks.latent_search import LatentSearch
from oneway.attacks.matching import Matching
from oneway.attacks.optimising import Optimising
from oneway.attacks.registry import ATTACKS, identification_attacks, inversion_attacks
from oneway.attacks.retrained import Retrained
from oneway.attacks.smooth_kernel_ridge import SmoothKernelRidge
from oneway.attacks.stack import Stack
from oneway.attacks.static import Static

__all__ = [
    "ATTACKS",
    "GMI",
    "AdversarialTraining",
    "Attack",
    "Averaging",
    "BaggedPerceptrons",
    "CellMeans",
    "ClassRepresentative",
    "Generative",
    "IdentificationAttack",
    "InversionAttack",
    "KernelRidge",
    "LabelOnly",
    "LatentSearch",
    "Matching",
    "Optimising",
    "Retrained",
    "SmoothKernelRidge",
    "Stack",
    "Static",
    "WhiteBoxClassRepresentative",
    "Workload",
    "identification_attacks",
    "inversion_attacks",
]
