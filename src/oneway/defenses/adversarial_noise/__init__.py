"""The paper's defense: adversarial noise on the scores."""

from oneway.defenses.adversarial_noise.input_free import InputFreeNoise
from oneway.defenses.adversarial_noise.iterative import AdversarialNoise
from oneway.defenses.adversarial_noise.noise_vector import noise_vector

__all__ = ["AdversarialNoise", "InputFreeNoise", "noise_vector"]
