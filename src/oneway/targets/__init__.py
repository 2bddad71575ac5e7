"""What answers queries."""

from oneway.targets.defended import DefendedTarget, Trace
from oneway.targets.networks import TARGET_PRESETS, TargetNetwork, TargetPreset
from oneway.targets.recorded import RecordedTarget
from oneway.targets.torch_module import TorchTarget
from oneway.targets.training import TargetTrainingSettings, train_target

__all__ = [
    "TARGET_PRESETS",
    "DefendedTarget",
    "RecordedTarget",
    "TargetNetwork",
    "TargetPreset",
    "TargetTrainingSettings",
    "TorchTarget",
    "Trace",
    "train_target",
]
