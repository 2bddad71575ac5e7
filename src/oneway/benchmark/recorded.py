"""Attack scores that were recorded, whatever model and defense they came from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oneway.audit import Floors
from oneway.benchmark.attackers import Attackers, InverterTrainer, Report, silent
from oneway.benchmark.records import Outcome, make_outcome
from oneway.benchmark.spec import AttackerSpec
from oneway.benchmark.store import Store
from oneway.contracts import Observations
from oneway.data import check_disjoint
from oneway.inversion import TrainingSettings, held_out_rows
from oneway.metrics import flips, inversion_errors

SHOWN = 10


@dataclass(frozen=True)
class Recording:
    """Images, and what was answered about them, one to one.

    Attributes:
        images: ``(N, C, H, W)`` in ``[0, 1]``.
        logits: ``(N, K)`` clean scores.
        clean: ``(N, K)`` clean confidences.
        released: ``(N, K)`` confidences that were released.
    """

    images: Tensor
    logits: Tensor
    clean: Tensor
    released: Tensor


def attack_recorded(
    auxiliary: Recording,
    test: Recording,
    *,
    store: Store,
    settings: TrainingSettings,
    seed: int,
    report: Report = silent,
) -> tuple[Outcome, dict[str, Any]]:
    """Train the standard attackers on one recording and grade them on the other.

    Args:
        auxiliary: The attacker's.
        test: The queries to reconstruct.
        store: Where trained networks are kept.
        settings: How decoders are trained.
        seed: Of every random stream.
        report: Told of progress.

    Returns:
        The outcome, and rows of images for a figure.

    Raises:
        OverlappingSplitsError: The two recordings share images.
    """
    check_disjoint({"auxiliary": auxiliary.images, "test": test.images})
    spec = AttackerSpec(training=settings)
    choice = torch.Generator().manual_seed(seed)
    held_out = held_out_rows(len(auxiliary.images), spec.held_out, choice)
    held_out = held_out.to(auxiliary.images.device)
    trainer = InverterTrainer(auxiliary.images, held_out, store, seed, report)
    attackers = Attackers(spec, trainer)
    clean_results = attackers.run(
        "clean scores",
        Observations(auxiliary.images, auxiliary.clean, auxiliary.clean, held_out),
        test.clean,
        test.images,
    )
    results = attackers.run(
        "released scores",
        Observations(auxiliary.images, auxiliary.clean, auxiliary.released, held_out),
        test.released,
        test.images,
    )
    best = min(clean_results.values(), key=lambda result: result.error)
    mean = auxiliary.images.mean(0, keepdim=True).expand_as(test.images)
    floors = Floors(
        best.errors, clean_results["label-only"].errors, inversion_errors(test.images, mean)
    )
    facts = {
        "experiment": "attack",
        "seed": seed,
        "seeds": 1,
        "auxiliary": len(auxiliary.images),
        "queries": len(test.images),
        "flips": flips(test.logits, test.released),
    }
    outcome = make_outcome(facts, results, floors, test.clean, test.released)
    shown = slice(0, SHOWN)
    with torch.no_grad():
        rows = {
            "original": test.images[shown],
            "clean scores": best.reconstruct(test.clean[shown]),
            **{
                f"released\n{name}": result.reconstruct(test.released[shown])
                for name, result in results.items()
            },
        }
    return outcome, {label: _pixels(images) for label, images in rows.items()}


def _pixels(images: Tensor) -> Any:
    """Return ``(n, H, W)`` or ``(n, H, W, C)`` arrays to draw."""
    return (images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)).cpu().numpy()
