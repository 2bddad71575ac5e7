"""What is written down of one release: enough to print its row, and to run it again."""

import dataclasses
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import oneway
from oneway.audit import AttackResult, Floors, judge


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
    floors: Floors,
    clean: Tensor,
    released: Tensor,
) -> Outcome:
    """Judge the attacks on one release and write everything down.

    Args:
        facts: What is known of the release besides the attacks; ``flips`` among it.
        results: Each attacker's, by name.
        floors: Of the same test queries.
        clean: ``(N, K)`` clean confidences of the test queries.
        released: ``(N, K)`` what they were answered.
    """
    verdict = judge(results, floors, clean, flips=facts["flips"])
    record = {
        **facts,
        "errors": {name: result.error for name, result in results.items()},
        "candidates": {name: result.candidate for name, result in results.items()},
        "floors": {
            name: float(getattr(floors, name).mean()) for name in ("clean", "label", "prior")
        },
        **dataclasses.asdict(verdict),
        "environment": environment(released.device),
    }
    return Outcome(record, results, released)


def json_values(value: Any) -> Any:
    """Return options as JSON values: infinity, which JSON lacks and a norm may be, as text."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
