"""What is written down of one release: enough to print its row, and to run it again."""

import base64
import dataclasses
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import oneway
from oneway.evaluation.grading import AttackResult, Baselines
from oneway.evaluation.verdict import judge
from oneway.metrics import distortion
from oneway.targets import Trace


@dataclass(frozen=True)
class Outcome:
    """What attacks on one release gave.

    Attributes:
        record: JSON values.
        results: Each attacker's, by name.
        released: ``(N, K)`` what the test queries were answered.
    """

    record: dict[str, Any]
    results: Mapping[str, AttackResult]
    released: Tensor


def make_outcome(
    facts: Mapping[str, Any],
    results: Mapping[str, AttackResult],
    baselines: Baselines,
    clean: Tensor,
    released: Tensor,
) -> Outcome:
    """Judge the attacks on one release and write everything down.

    Args:
        facts: What is known of the release besides the attacks; ``label_changes`` among it.
        results: Each attacker's, by name.
        baselines: Of the same test queries.
        clean: ``(N, K)`` clean confidences of the test queries.
        released: ``(N, K)`` what they were answered.
    """
    verdict = judge(results, baselines, clean, label_changes=facts["label_changes"])
    record = {
        **facts,
        "errors": {name: result.error for name, result in results.items()},
        "reconstructors": {name: result.reconstructor for name, result in results.items()},
        "reconstructor_errors": {
            name: dict(result.reconstructor_errors) for name, result in results.items()
        },
        "baselines": {
            name: float(getattr(baselines, name).mean()) for name in ("clean", "label", "prior")
        },
        **dataclasses.asdict(verdict),
        "flags": [flag.detail for flag in verdict.flags],
        "environment": environment(released.device),
        "errors_per_query": {name: packed(result.errors) for name, result in results.items()},
    }
    return Outcome(record, results, released)


def distortion_of(trace: Trace, clean: Tensor) -> dict[str, float | None]:
    """Return how far a release is from the clean scores, for a record.

    A released zero is infinitely far from its clean logit: then there is no distortion of logits.

    Args:
        trace: From clean logits to what was released.
        clean: ``(N, K)`` confidences without a defense.
    """
    moved = distortion(trace.clean_logits, trace.defended_logits, clean, trace.released)
    return {
        "logit_distortion": None if (trace.released == 0).any() else moved.logits,
        "l1_mean": moved.l1_mean,
        "l1_p99": moved.l1_p99,
        "l1_max": moved.l1_max,
    }


def packed(errors: Tensor) -> str:
    """Return ``(N)`` numbers as text: base64 of little-endian float16, 2.7 characters each."""
    halves = errors.cpu().numpy().astype("<f2")
    return base64.b64encode(halves.tobytes()).decode("ascii")


def unpacked(text: str) -> NDArray[np.float16]:
    """Return the numbers that :func:`packed` wrote, each to 3 decimal places of its own size."""
    return np.frombuffer(base64.b64decode(text), "<f2")


def json_values(value: Any) -> Any:
    """Return options as JSON values: infinity, which JSON lacks and a norm may be, as text."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


SHOWN = 10
"""Most images of a row of a figure."""


def shown_rows(labels: Tensor) -> Tensor:
    """Return which images a figure shows: the first of each class, up to ``SHOWN``."""
    return torch.stack([(labels == k).nonzero()[0, 0] for k in labels.unique()[:SHOWN]])


def pixels(images: Tensor) -> Any:
    """Return ``(n, H, W)`` or ``(n, H, W, C)`` arrays to draw, of ``(n, C, H, W)`` images."""
    return (images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)).cpu().numpy()


def environment(device: torch.device) -> dict[str, Any]:
    """Say what a record was made with: versions, processor, threads."""
    return {
        "oneway": oneway.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """Return the processor's name, as far as the system tells."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
