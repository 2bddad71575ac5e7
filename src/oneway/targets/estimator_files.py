"""Open a file that holds a scikit-learn classifier."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch

from oneway.checks import check_switch
from oneway.contracts import Target
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.extras import load_extra
from oneway.releases import Outputs
from oneway.targets.answers import refuse_logits
from oneway.targets.estimator import estimator_target


def open_skops(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,  # noqa: ARG001  one signature for all kinds
    batch_size: int,
    trusted: Sequence[str] = (),
) -> Target:
    """Open a classifier saved with ``skops.io.dump``.

    Args:
        where: The file.
        outputs: None or ``"confidences"``.
        device: Not used: scikit-learn computes on the CPU.
        batch_size: Most queries that the classifier gets at once.
        trusted: Names of types that may be built, beyond those that skops trusts.

    Raises:
        MissingExtraError: skops is not installed.
        CorruptDataError: The file is no skops file.
        InvalidOptionError: The file holds types that are not trusted, or ``outputs`` are logits.
    """
    name = f"target {where!r}"
    refuse_logits(outputs, name, "it has predict_proba")
    if isinstance(trusted, str):
        raise InvalidOptionError(
            f"trusted must be a sequence of type names, but got the text {trusted!r}. "
            f"Pass ({trusted!r},)."
        )
    skops = load_extra("skops.io", extra="sklearn", purpose="opening a .skops file")
    path = Path(where)
    try:
        unknown = sorted(set(skops.get_untrusted_types(file=path)) - set(trusted))
        if unknown:
            raise InvalidOptionError(
                f"{where} holds types that skops does not know to be safe: {', '.join(unknown)}. "
                f"If you trust each of them, pass trusted={tuple(unknown)!r}."
            )
        estimator = skops.load(path, trusted=list(trusted))
    except InvalidOptionError:
        raise
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise CorruptDataError(
            f"{where} cannot be opened by skops ({type(error).__name__}: {error}). Save it with "
            "`skops.io.dump`, with the versions of skops and scikit-learn that are installed here."
        ) from error
    return estimator_target(estimator, batch_size=batch_size, name=name)


def open_pickle(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,  # noqa: ARG001  one signature for all kinds
    batch_size: int,
    trust_pickle: bool = False,
) -> Target:
    """Open a classifier saved with joblib or pickle; loading it runs code of the file.

    Args:
        where: The file.
        outputs: None or ``"confidences"``.
        device: Not used: scikit-learn computes on the CPU.
        batch_size: Most queries that the classifier gets at once.
        trust_pickle: Allow the file's author to run code here.

    Raises:
        InvalidOptionError: ``trust_pickle`` is not True, or ``outputs`` are logits.
        MissingExtraError: joblib is not installed.
        CorruptDataError: The file cannot be loaded.
    """
    name = f"target {where!r}"
    check_switch("trust_pickle", trust_pickle)
    if not trust_pickle:
        raise InvalidOptionError(
            f"{where} is a pickle, and loading it runs whatever code is in it. Save the model "
            "with `skops.io.dump` instead, or if you made the file pass --model-option "
            "trust_pickle=true (in Python, trust_pickle=True)."
        )
    refuse_logits(outputs, name, "it has predict_proba")
    joblib = load_extra("joblib", extra="sklearn", purpose="opening a .joblib or .pkl file")
    try:
        estimator = joblib.load(where)
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        raise CorruptDataError(
            f"{where} cannot be loaded ({type(error).__name__}: {error}). Load it where its "
            "packages are installed, in the versions that it was saved with."
        ) from error
    return estimator_target(estimator, batch_size=batch_size, name=name)
