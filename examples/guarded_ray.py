"""Put a guard before a model of Ray Serve, and guard stored scores with Ray Data.

    export ONEWAY_KEY=$(openssl rand -hex 32)
    python examples/guarded_ray.py

Needs `pip install 'oneway[ray]'`. On a cluster of several machines, set the key on each; it is read
where the guard runs.
"""

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray import serve
from torch import Generator

from oneway.adapters import Guard, KeyedRandomness, SecretKey
from oneway.adapters.ray import guard_dataset, guard_deployment
from oneway.contracts import Defense
from oneway.defenses import build_defense


@serve.deployment
class Digits:
    """Stand for your model's deployment: ``(N, 64)`` queries to ``(N, 10)`` logits."""

    def __init__(self) -> None:
        """Load the model."""
        self.weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)

    async def __call__(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score queries."""
        return queries @ self.weights


def load_guard() -> Guard:
    """Build the guard in the process that uses it."""

    def build(generator: Generator) -> Defense:
        return build_defense("dirichlet-noise", {"keep_label": True}, None, generator=generator)

    key = SecretKey.from_environment("ONEWAY_KEY")
    return Guard(KeyedRandomness(build, key), "logits", decimals=3)


def main() -> None:
    """Serve one guarded model, and guard a table of stored scores."""
    if not ray.is_initialized():
        ray.init()
    guard = guard_deployment(
        load_guard, autoscaling_config={"min_replicas": 1, "max_replicas": 4}, max_batch_size=32
    )
    app = guard.bind(Digits.bind())  # type: ignore[attr-defined] # the decorator adds it
    handle = serve.run(app, name="digits", route_prefix="/digits")
    queries = np.random.default_rng(1).random((5, 64)).astype(np.float32)
    released = handle.answer.remote(queries).result()
    print("served:", released.shape, "rows sum to", released.sum(1).round(3).tolist())

    logits = np.random.default_rng(2).normal(size=(1000, 10)).astype(np.float32)
    stored = ray.data.from_items([{"id": n, "logits": row} for n, row in enumerate(logits)])
    guarded = guard_dataset(stored, load_guard, scores="logits", keep=["id"]).to_pandas()
    print("stored:", len(guarded), "rows with", list(guarded.columns))
    serve.delete("digits")


if __name__ == "__main__":
    main()
