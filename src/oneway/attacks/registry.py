"""The registry of attacks: the only table from names to attacks."""

from oneway.attacks.adversarial_training import AdversarialTraining
from oneway.attacks.averaging import Averaging
from oneway.attacks.bagged_perceptrons import BaggedPerceptrons
from oneway.attacks.base import Attack, IdentificationAttack, InversionAttack
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
from oneway.attacks.retrained import Retrained
from oneway.attacks.smooth_kernel_ridge import SmoothKernelRidge
from oneway.attacks.stack import Stack
from oneway.attacks.static import Static

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        LabelOnly(),
        CellMeans(),
        KernelRidge(),
        SmoothKernelRidge(),
        BaggedPerceptrons(),
        Static(),
        Retrained(),
        AdversarialTraining(),
        Averaging(),
        Optimising(),
        LatentSearch(),
        Generative(),
        ClassRepresentative(),
        WhiteBoxClassRepresentative(),
        GMI(),
        Stack(),
        Matching(),
    )
}
"""All attacks, by the name that commands, experiments and records use.

They run in this order: cheap attacks first, and an attack that mixes others after them.
"""


def inversion_attacks() -> dict[str, InversionAttack]:
    """Return the attacks that reconstruct queries, by name, in the order of the registry."""
    return {name: attack for name, attack in ATTACKS.items() if isinstance(attack, InversionAttack)}


def identification_attacks() -> dict[str, IdentificationAttack]:
    """Return the attacks that find a query in a gallery, by name, in the order of the registry."""
    return {
        name: attack for name, attack in ATTACKS.items() if isinstance(attack, IdentificationAttack)
    }
