"""Guard somebody else's endpoint, which only gives probabilities, for your own clients.

    python examples/guarded_endpoint.py https://host/v2/models/NAME 1 28 28

The address is that of a model by the Open Inference Protocol, then the shape of one query. A bearer
token is taken from ONEWAY_TOKEN. Needs `pip install 'oneway[http]'`.
"""

import sys

import numpy as np

from oneway.adapters import GuardedEndpoint
from oneway.defenses import build_defense


def main(address: str, shape: tuple[int, ...]) -> None:
    """Ask about a few random queries."""
    defense = build_defense("rounding", {"decimals": 2}, None)
    guarded = GuardedEndpoint(
        address, defense, output_name="probabilities", decimals=2, timeout_seconds=10
    )
    queries = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    print("released:", guarded(queries).round(2).tolist())


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(int, sys.argv[2:])))
