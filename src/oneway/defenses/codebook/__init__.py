"""k-anonymous scores: a release of few vectors, with a certificate of what it lets out at most."""

from oneway.defenses.codebook.certificate import (
    ASSUMPTIONS,
    Certificate,
    certify,
)
from oneway.defenses.codebook.composition import Composition
from oneway.defenses.codebook.decoys import plant_decoys
from oneway.defenses.codebook.drift import Drift, DriftTest, fault_of_reference
from oneway.defenses.codebook.fit import (
    choose_codebook,
    cut_calibration,
    fit_codebook,
    merge_calibration,
)
from oneway.defenses.codebook.fitted import NOT_CHECKED, FittedQueries, HeldOut
from oneway.defenses.codebook.identification import (
    Identification,
    NamedShare,
    SensitiveAccuracy,
    chance_named,
    mean_chance_named,
)
from oneway.defenses.codebook.joint import JointCodebook, certify_together
from oneway.defenses.codebook.measures import CertifiedError, certified_error, measure_codebook
from oneway.defenses.codebook.options import Budget, CodebookOptions, DecoyOptions, FitSettings
from oneway.defenses.codebook.release import CodebookRelease
from oneway.defenses.codebook.table import Codebook
from oneway.defenses.codebook.together import Together
from oneway.defenses.codebook.traffic import Traffic
from oneway.defenses.codebook.worst_case import WorstCase
from oneway.defenses.codebook.yardsticks import Yardstick, Yardsticks

__all__ = [
    "ASSUMPTIONS",
    "NOT_CHECKED",
    "Budget",
    "Certificate",
    "CertifiedError",
    "Codebook",
    "CodebookOptions",
    "CodebookRelease",
    "Composition",
    "DecoyOptions",
    "Drift",
    "DriftTest",
    "FitSettings",
    "FittedQueries",
    "HeldOut",
    "Identification",
    "JointCodebook",
    "NamedShare",
    "SensitiveAccuracy",
    "Together",
    "Traffic",
    "WorstCase",
    "Yardstick",
    "Yardsticks",
    "certified_error",
    "certify",
    "certify_together",
    "chance_named",
    "choose_codebook",
    "cut_calibration",
    "fault_of_reference",
    "fit_codebook",
    "mean_chance_named",
    "measure_codebook",
    "merge_calibration",
    "plant_decoys",
]
