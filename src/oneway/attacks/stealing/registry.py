"""The registry of stealing attacks: the only table from their names to them."""

from oneway.attacks.stealing.base import StealingAttack
from oneway.attacks.stealing.boundary import Boundary
from oneway.attacks.stealing.cell_boundary import CellBoundary
from oneway.attacks.stealing.equation_solving import EquationSolving
from oneway.attacks.stealing.hard_labels import HardLabels
from oneway.attacks.stealing.jacobian import Jacobian
from oneway.attacks.stealing.knockoff import Knockoff
from oneway.attacks.stealing.soft_labels import SoftLabels

STEALING_ATTACKS: dict[str, StealingAttack] = {
    attack.name: attack
    for attack in (
        HardLabels(),
        SoftLabels(),
        Knockoff(),
        Jacobian(),
        EquationSolving(),
        Boundary(),
        CellBoundary(),
    )
}
"""All stealing attacks by name, in the order they run."""
