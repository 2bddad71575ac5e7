"""Import packages in a process of their own, since a broken one may take its interpreter along."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST = 120.0
"""Seconds after which an import counts as hanging."""

MOST_TEXT = 200
"""Characters of an error that are kept: it may hold whatever a package says."""


@dataclass(frozen=True)
class Import:
    """What came of importing one module.

    Attributes:
        module: Its name.
        error: Why it failed, in a line; None: it did not.
        facts: What it says of itself: of torch, versions and devices.
    """

    module: str
    error: str | None
    facts: dict[str, Any] = field(default_factory=dict)


def try_imports(modules: Sequence[str], timeout_seconds: float = LONGEST) -> list[Import]:
    """Import modules one after the other, in another process; go on after one that kills it.

    Args:
        modules: In order; an earlier one may be what a later one must load beside.
        timeout_seconds: For all of them.

    Returns:
        What came of each, in order.
    """
    done: list[Import] = []
    while len(done) < len(modules):
        # -P: a file of the working folder must not stand for a package.
        command = [sys.executable, "-P", "-m", "oneway.installation.probe"]
        skipped = [one.module for one in done if one.error is None]
        rest = modules[len(done) :]
        try:
            ended = subprocess.run(  # noqa: S603  our own interpreter and module
                [*command, json.dumps(skipped), *rest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=timeout_seconds,
                check=False,
            )
            output, how = ended.stdout, _death(ended.returncode)
        except subprocess.TimeoutExpired as error:
            output, how = error.stdout or b"", f"did not finish in {timeout_seconds:g} seconds"
        told = [Import(**json.loads(line)) for line in output.splitlines()]
        done += told
        if len(told) < len(rest):
            done.append(Import(rest[len(told)], how))
    return done


def _death(code: int) -> str:
    ending = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"the interpreter ended {ending} while importing it"


def main(before: Sequence[str], modules: Sequence[str]) -> None:
    """Import modules, and write one line of JSON for each, as soon as it is there.

    Args:
        before: Modules to import first, of which nothing is said.
        modules: Those of which something is.
    """
    # What packages print goes elsewhere.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for module in before:
        importlib.import_module(module)
    for module in modules:
        error, facts = None, {}
        try:
            imported = importlib.import_module(module)
            if module in FACTS:
                facts = FACTS[module](imported)
        except Exception as failure:  # noqa: BLE001  a package may raise anything; all is told
            first = (str(failure).splitlines() or [""])[0][:MOST_TEXT]
            error = f"{type(failure).__name__}: {first}"
        print(json.dumps({"module": module, "error": error, "facts": facts}), file=answers)
        answers.flush()


def _torch_facts(torch: Any) -> dict[str, Any]:
    """Say where torch computes, having tried; raise if it cannot."""
    torch.zeros(1).numpy()  # fails where it was built for another NumPy
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(gpus):
        torch.ones(2, device=f"cuda:{number}").sum().item()
    return {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda or torch.version.hip,
        "gpus": [torch.cuda.get_device_name(number) for number in range(gpus)],
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
    }


def _oneway_facts(oneway: Any) -> dict[str, Any]:
    """Release one row of scores; raise if that is not what it should be."""
    torch = importlib.import_module("torch")
    released = oneway.release(torch.tensor([[0.0, 1.0, 3.0]]), decimals=2)
    if released.argmax().item() != 2 or not abs(released.sum().item() - 1) < 1e-6:
        raise RuntimeError("rounded scores are no probabilities with the label on top")
    return {"version": oneway.__version__}


FACTS = {"torch": _torch_facts, "oneway": _oneway_facts}
"""What is tried besides importing."""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
