"""Attack recorded scores, of any model and defense."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback, check_disjoint, no_progress
from oneway.evaluation.attackers import CleanErrors, prepare_attackers
from oneway.evaluation.detection import detection_limit
from oneway.evaluation.grading import take_baselines
from oneway.evaluation.pictures import SHOWN, pixels
from oneway.evaluation.records import AttackRecord, Outcome, Provenance, judged
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import TrainingSettings
from oneway.metrics import label_changes


@dataclass(frozen=True)
class Recording:
    """Images with their clean and released scores, row by row.

    Attributes:
        images: ``(N, C, H, W)`` in ``[0, 1]``.
        logits: ``(N, K)`` clean logits, in nats.
        clean: ``(N, K)`` clean confidences.
        released: ``(N, K)`` released confidences.
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
    most_epochs: int | None = None,
    seed: int,
    report: ProgressCallback = no_progress,
) -> tuple[Outcome[AttackRecord], dict[str, Any]]:
    """Train the standard attackers on a recording, and grade them on another recording.

    Args:
        auxiliary: Recording of the attacker's images.
        test: Recording of the queries to reconstruct.
        store: Store of trained networks.
        settings: Training settings of the decoders, with the epochs at which the search for
            convergence begins.
        most_epochs: Epochs at which that search ends; None: 8 times the first epochs.
        seed: Seed of every random stream.
        report: Progress callback.

    Returns:
        The outcome, and rows of images for a figure.

    Raises:
        OverlappingSplitsError: The two recordings share images.
    """
    check_disjoint({"auxiliary": auxiliary.images, "test": test.images})
    spec = AttackerSpec(training=settings, most_epochs=most_epochs)
    attackers = prepare_attackers(spec, auxiliary.images, store, seed, report)
    held_out = attackers.held_out
    clean_results = attackers.run(
        "clean scores",
        AttackerKnowledge(auxiliary.images, auxiliary.clean, auxiliary.clean, held_out),
        test.clean,
        test.images,
    )
    results = attackers.run(
        "released scores",
        AttackerKnowledge(auxiliary.images, auxiliary.clean, auxiliary.released, held_out),
        test.released,
        test.images,
        clean_errors=CleanErrors.of(clean_results.values(), auxiliary.images[held_out]),
    )
    best = min(clean_results.values(), key=lambda result: result.error)
    baselines = take_baselines(clean_results, auxiliary.images, test.images)
    gap = float((baselines.label - baselines.clean).mean())
    data = fingerprint(auxiliary.images, auxiliary.clean, test.images, test.clean)
    record = AttackRecord(
        experiment="attack",
        seed=seed,
        auxiliary=len(auxiliary.images),
        queries=len(test.images),
        provenance=Provenance.now(data, None),
        **judged(
            results,
            baselines,
            test.clean,
            label_changes(test.logits, test.released),
            lambda: detection_limit(
                attackers, auxiliary.clean, test.images, test.clean, gap, spec.names
            ),
        ),
    )
    shown = slice(0, SHOWN)
    rows = {
        "original": test.images[shown],
        "clean scores": best.reconstructions[shown],
        **{f"released\n{name}": result.reconstructions[shown] for name, result in results.items()},
    }
    outcome = Outcome(record, results, test.released)
    return outcome, {label: pixels(images) for label, images in rows.items()}
