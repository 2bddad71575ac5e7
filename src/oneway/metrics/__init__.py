"""Measures of reconstructions, and of the cost of a defense to its users."""

from oneway.metrics.calibration import (
    ReliabilityBin,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from oneway.metrics.columns import categorical_accuracy, numeric_error
from oneway.metrics.image_quality import peak_signal_to_noise_ratio, structural_similarity
from oneway.metrics.intervals import Interval, bootstrap_gap, bootstrap_mean
from oneway.metrics.ranking import (
    failure_auroc,
    rank_correlation,
    top_accuracy,
    top_agreement,
)
from oneway.metrics.reconstruction import (
    closed_gap,
    inversion_errors,
    lowest_rows,
    lowest_share,
)
from oneway.metrics.reidentification import (
    GALLERY,
    Embedder,
    FeatureRegression,
    PrincipalComponents,
    deal_galleries,
    expected_hits,
    rank_share,
    reidentification_ranks,
)
from oneway.metrics.utility import Distortion, distortion, label_changes

__all__ = [
    "GALLERY",
    "Distortion",
    "Embedder",
    "FeatureRegression",
    "Interval",
    "PrincipalComponents",
    "ReliabilityBin",
    "bootstrap_gap",
    "bootstrap_mean",
    "brier_score",
    "categorical_accuracy",
    "closed_gap",
    "deal_galleries",
    "distortion",
    "expected_calibration_error",
    "expected_hits",
    "failure_auroc",
    "inversion_errors",
    "label_changes",
    "lowest_rows",
    "lowest_share",
    "negative_log_likelihood",
    "numeric_error",
    "peak_signal_to_noise_ratio",
    "rank_correlation",
    "rank_share",
    "reidentification_ranks",
    "reliability_bins",
    "structural_similarity",
    "top_accuracy",
    "top_agreement",
]
