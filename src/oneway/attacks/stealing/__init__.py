"""Attacks that copy a model from its answers: model stealing, or extraction."""

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge
from oneway.attacks.stealing.boundary import Boundary
from oneway.attacks.stealing.cell_boundary import CellBoundary
from oneway.attacks.stealing.equation_solving import EquationSolving
from oneway.attacks.stealing.hard_labels import HardLabels
from oneway.attacks.stealing.jacobian import Jacobian
from oneway.attacks.stealing.knockoff import Knockoff
from oneway.attacks.stealing.soft_labels import SoftLabels

__all__ = [
    "Boundary",
    "CellBoundary",
    "Copy",
    "EquationSolving",
    "HardLabels",
    "Jacobian",
    "Knockoff",
    "SoftLabels",
    "StealingAttack",
    "ThiefKnowledge",
]
