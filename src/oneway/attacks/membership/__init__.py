"""Membership attacks, one per file: which candidates was a model trained on?"""

from oneway.attacks.membership.registry import MEMBERSHIP_ATTACKS

__all__ = ["MEMBERSHIP_ATTACKS"]
