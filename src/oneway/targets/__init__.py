"""Targets: models that answer queries, wherever they are."""

from oneway.targets.answers import class_names_of
from oneway.targets.augmentation import ask_variants, jitter
from oneway.targets.callables import CallableTarget, RecordedTarget, ScoredCallableTarget
from oneway.targets.defended import DefendedTarget, Trace
from oneway.targets.networks import (
    TARGET_PRESETS,
    TargetNetwork,
    TargetTrainingSettings,
    train_target,
)
from oneway.targets.objects import target_of
from oneway.targets.opening import open_target, target_kind
from oneway.targets.records import records_target
from oneway.targets.torch_module import TorchTarget

__all__ = [
    "TARGET_PRESETS",
    "CallableTarget",
    "DefendedTarget",
    "RecordedTarget",
    "ScoredCallableTarget",
    "TargetNetwork",
    "TargetTrainingSettings",
    "TorchTarget",
    "Trace",
    "ask_variants",
    "class_names_of",
    "jitter",
    "open_target",
    "records_target",
    "target_kind",
    "target_of",
    "train_target",
]
