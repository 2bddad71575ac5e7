"""Inverter networks, their input transforms, and how to train one."""

from oneway.inversion.contest import DecoderSpec, Entry, decoder_grid, hold_contest
from oneway.inversion.front_ends import FRONT_ENDS
from oneway.inversion.inverter import INVERTER_WIDTHS, Inverter, full_depth
from oneway.inversion.training import (
    YANG_SETTINGS,
    TrainingReport,
    TrainingSettings,
    mean_error,
    train_inverter,
)

__all__ = [
    "FRONT_ENDS",
    "INVERTER_WIDTHS",
    "YANG_SETTINGS",
    "DecoderSpec",
    "Entry",
    "Inverter",
    "TrainingReport",
    "TrainingSettings",
    "decoder_grid",
    "full_depth",
    "hold_contest",
    "mean_error",
    "train_inverter",
]
