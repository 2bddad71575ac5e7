"""`python -m oneway.cli.probe MODULE`: import a module, and print its error and facts as JSON.

It imports no other package, since `oneway doctor` runs it for each module.
"""

import importlib
import json
import os
import sys
from typing import Any


def main(module: str) -> None:
    """Import a module, and print its error and facts as JSON."""
    # Output of packages goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    error, facts = None, {}
    try:
        facts = FACTS.get(module, lambda _: {})(importlib.import_module(module))
    except Exception as failure:  # noqa: BLE001  a package may raise anything
        first = (str(failure).splitlines() or [""])[0][:200]
        error = f"{type(failure).__name__}: {first}"
    json.dump([error, facts], answers)
    answers.close()


def _torch_facts(torch: Any) -> dict[str, Any]:
    """Return torch's version and devices, after a computation on each."""
    torch.zeros(1).numpy()  # fails where it was built for another NumPy
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for number in gpus:
        torch.ones(2, device=f"cuda:{number}").sum().item()
    return {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda or torch.version.hip,
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
    }


def _release_a_row(oneway: Any) -> dict[str, Any]:
    """Release one row of scores, and return torch's facts; raise if it breaks its promise."""
    torch = importlib.import_module("torch")
    released = oneway.release(torch.tensor([[0.0, 1.0, 3.0]]), decimals=2)
    if released.argmax().item() != 2 or not abs(released.sum().item() - 1) < 1e-6:
        raise RuntimeError("rounded scores are no probabilities with the label on top")
    return _torch_facts(torch)


FACTS = {"torch": _torch_facts, "oneway": _release_a_row}
"""Checks after an import, by module."""


if __name__ == "__main__":
    main(sys.argv[1])
