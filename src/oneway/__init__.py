"""Release-time defenses against model inversion, and an honest measure of what still leaks.

Names are imported when first used, so that ``import oneway`` does nothing else and is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneway.adapters import load_guard, protect
    from oneway.defenses.adversarial_noise import AdversarialNoise, noise_vector
    from oneway.defenses.codebook import CodebookRelease
    from oneway.defenses.label_modifier import keep_label
    from oneway.errors import OnewayError
    from oneway.interface import (
        AuditResult,
        Choice,
        MembershipSettings,
        StealingSettings,
        audit,
        certify,
        choose,
        fit_codebook,
    )
    from oneway.inversion import Inverter, TrainingSettings, train_inverter
    from oneway.metrics import closed_gap
    from oneway.releases import logits_from_confidences, release
    from oneway.targets import DefendedTarget, RecordedTarget, TorchTarget

__version__ = "0.1.0"

_HOMES = {
    "AdversarialNoise": "oneway.defenses.adversarial_noise",
    "AuditResult": "oneway.interface",
    "Choice": "oneway.interface",
    "CodebookRelease": "oneway.defenses.codebook",
    "DefendedTarget": "oneway.targets",
    "Inverter": "oneway.inversion",
    "MembershipSettings": "oneway.interface",
    "OnewayError": "oneway.errors",
    "RecordedTarget": "oneway.targets",
    "StealingSettings": "oneway.interface",
    "TorchTarget": "oneway.targets",
    "TrainingSettings": "oneway.inversion",
    "audit": "oneway.interface",
    "certify": "oneway.interface",
    "choose": "oneway.interface",
    "closed_gap": "oneway.metrics",
    "fit_codebook": "oneway.interface",
    "keep_label": "oneway.defenses.label_modifier",
    "load_guard": "oneway.adapters",
    "logits_from_confidences": "oneway.releases",
    "noise_vector": "oneway.defenses.adversarial_noise",
    "protect": "oneway.adapters",
    "release": "oneway.releases",
    "train_inverter": "oneway.inversion",
}

__all__ = [
    "AdversarialNoise",
    "AuditResult",
    "Choice",
    "CodebookRelease",
    "DefendedTarget",
    "Inverter",
    "MembershipSettings",
    "OnewayError",
    "RecordedTarget",
    "StealingSettings",
    "TorchTarget",
    "TrainingSettings",
    "audit",
    "certify",
    "choose",
    "closed_gap",
    "fit_codebook",
    "keep_label",
    "load_guard",
    "logits_from_confidences",
    "noise_vector",
    "protect",
    "release",
    "train_inverter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'oneway' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
