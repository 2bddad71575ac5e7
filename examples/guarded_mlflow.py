"""Log a guarded digit classifier with MLflow, then serve it.

    python examples/guarded_mlflow.py work
    ONEWAY_KEY=$(openssl rand -hex 32) mlflow models serve -m work/guarded --env-manager local

Needs `pip install 'oneway[mlflow,sklearn]'`. The key decides the noise; it is read where the model
serves, and is in no file that was logged.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import skops.io
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Generator

from oneway.adapters import Guard, KeyedRandomness, SecretKey
from oneway.adapters.mlflow import GuardedPyfunc
from oneway.contracts import Defense
from oneway.defenses import build_defense


def load_model(artifacts: Mapping[str, str]) -> Callable[[Any], Any]:
    """Return what scores queries."""
    model: Any = skops.io.load(artifacts["digits"])
    return lambda queries: model.predict_proba(queries).astype(np.float32)


def load_guard(_: Mapping[str, str]) -> Guard:
    """Return the guard: Dirichlet noise that the key and the scores decide."""

    def build(generator: Generator) -> Defense:
        return build_defense("dirichlet-noise", {"keep_label": True}, None, generator=generator)

    defense = KeyedRandomness(build, SecretKey.from_environment("ONEWAY_KEY"))
    return Guard(defense, "confidences", decimals=3)


def main(folder: Path) -> None:
    """Fit a classifier, and save it with its guard."""
    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=200).fit(images[:1500] / 16, labels[:1500])
    folder.mkdir(parents=True, exist_ok=True)
    skops.io.dump(model, folder / "digits.skops")
    mlflow.pyfunc.save_model(
        folder / "guarded",
        python_model=GuardedPyfunc(load_model, load_guard),
        artifacts={"digits": str(folder / "digits.skops")},
        signature=ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 64))])),
        pip_requirements=["oneway[mlflow,sklearn]"],
    )
    print(f"saved {folder}/guarded")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "work"))
