"""Adversaries, one per file, named by what they know."""

from oneway.attacks.label_only import label_only
from oneway.attacks.retrained import retrained
from oneway.attacks.static import static

__all__ = ["label_only", "retrained", "static"]
