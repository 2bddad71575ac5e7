"""Inverter networks, their input transforms, and how to train one."""

from oneway.inversion.contest import DecoderSpec, Entry, decoder_grid, hold_contest
from oneway.inversion.front_ends import FRONT_ENDS, LEADING
from oneway.inversion.inverter import INVERTER_WIDTHS, Inverter, full_depth
from oneway.inversion.record_inverter import RecordInverter, build_inverter, default_depth
from oneway.inversion.training import (
    DEFAULT_SETTINGS,
    HELD_OUT,
    YANG_SETTINGS,
    Perturb,
    TrainingReport,
    TrainingSettings,
    held_out_rows,
    mean_error,
    shuffled_batches,
    train_inverter,
)

__all__ = [
    "DEFAULT_SETTINGS",
    "FRONT_ENDS",
    "HELD_OUT",
    "INVERTER_WIDTHS",
    "LEADING",
    "YANG_SETTINGS",
    "DecoderSpec",
    "Entry",
    "Inverter",
    "Perturb",
    "RecordInverter",
    "TrainingReport",
    "TrainingSettings",
    "build_inverter",
    "decoder_grid",
    "default_depth",
    "full_depth",
    "held_out_rows",
    "hold_contest",
    "mean_error",
    "shuffled_batches",
    "train_inverter",
]
