"""Guard any function that scores: NumPy in and out, whatever server calls it.

ONEWAY_KEY=$(openssl rand -hex 32) python examples/guarded_callable.py
"""

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from oneway.adapters import Guard, KeyedRandomness, SecretKey
from oneway.contracts import Defense
from oneway.defenses import build_defense

WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)


def score(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stand for your model: ``(N, 64)`` images to ``(N, 10)`` logits."""
    return images @ WEIGHTS


def build(generator: Generator) -> Defense:
    """Build a random defense over the generator that the key drives."""
    options = {"concentration": 50.0, "keep_label": True}
    return build_defense("dirichlet-noise", options, None, generator=generator)


def main() -> None:
    """Guard a batch, and ask one of its queries again."""
    guard = Guard(KeyedRandomness(build, SecretKey.from_environment()), "logits", decimals=3)
    images = np.random.default_rng(1).random((5, 64)).astype(np.float32)
    clean = score(images)
    released = guard(clean)
    print("labels kept:", bool((released.argmax(1) == clean.argmax(1)).all()))
    print("same again, alone:", bool((guard(clean[2:3]) == released[2:3]).all()))


if __name__ == "__main__":
    main()
