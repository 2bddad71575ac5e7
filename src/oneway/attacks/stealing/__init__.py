"""Stealing attacks, one per file: copies of a model from its answers (model extraction)."""

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge
from oneway.attacks.stealing.registry import STEALING_ATTACKS

__all__ = ["STEALING_ATTACKS", "Copy", "StealingAttack", "ThiefKnowledge"]
