"""How well inputs are reconstructed, and what a defense costs its users."""

from oneway.metrics.reconstruction import closed_gap, inversion_errors
from oneway.metrics.utility import Distortion, distortion, flips

__all__ = ["Distortion", "closed_gap", "distortion", "flips", "inversion_errors"]
