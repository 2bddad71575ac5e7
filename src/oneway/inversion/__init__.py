"""Inverter networks, their input transforms, their training and model selection."""

from oneway.inversion.autoencoder import Autoencoder, AutoencoderSettings, train_autoencoder
from oneway.inversion.input_transforms import INPUT_TRANSFORMS, LEADING
from oneway.inversion.inverter import (
    INVERTER_WIDTHS,
    Inverter,
    RecordInverter,
    build_inverter,
    default_depth,
    full_depth,
)
from oneway.inversion.model_selection import (
    DecoderSpec,
    MeanInput,
    Mixture,
    decoder_grid,
    mix_decoders,
    non_negative_weights,
    train_each,
)
from oneway.inversion.training import (
    HELD_OUT,
    YANG_SETTINGS,
    Perturb,
    TrainingSettings,
    held_out_rows,
    mean_error,
    shuffled_batches,
    train_inverter,
)

__all__ = [
    "HELD_OUT",
    "INPUT_TRANSFORMS",
    "INVERTER_WIDTHS",
    "LEADING",
    "YANG_SETTINGS",
    "Autoencoder",
    "AutoencoderSettings",
    "DecoderSpec",
    "Inverter",
    "MeanInput",
    "Mixture",
    "Perturb",
    "RecordInverter",
    "TrainingSettings",
    "build_inverter",
    "decoder_grid",
    "default_depth",
    "full_depth",
    "held_out_rows",
    "mean_error",
    "mix_decoders",
    "non_negative_weights",
    "shuffled_batches",
    "train_autoencoder",
    "train_each",
    "train_inverter",
]
