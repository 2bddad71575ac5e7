"""A postprocessor of the Adversarial Robustness Toolbox (ART) that guards its classifiers."""

from typing import Any

import numpy as np

from oneway.adapters.guard import Array, Guard
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra
from oneway.releases import Outputs

_postprocessor: Any = load_extra(
    "art.defences.postprocessor.postprocessor",
    extra="art",
    purpose="guarding a classifier of ART",
    package="adversarial-robustness-toolbox",
)


class GuardPostprocessor(_postprocessor.Postprocessor):  # type: ignore[misc] # imported by name
    """Guards what a classifier of ART predicts, as its own ``postprocessing_defences`` do.

    ART leaves postprocessors out of gradients: attacks that use ``loss_gradient`` or
    ``class_gradient`` meet the undefended network, and attacks that use ``predict`` meet the guard.
    """

    def __init__(
        self,
        defense: Defense,
        *,
        outputs: Outputs,
        decimals: int | None = None,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        """Guard predictions by a defense that needs no query.

        Args:
            defense: Changes the scores. ART shows a postprocessor the predictions alone, so a
                defense that needs the query is refused.
            outputs: What the classifier predicts, ``"logits"`` or ``"confidences"``.
            decimals: Decimals of the released probabilities; None: all.
            apply_fit: Whether ART applies the guard while it trains.
            apply_predict: Whether ART applies the guard to ``predict``.

        Raises:
            InvalidOptionError: The defense needs the query; or see
                :class:`oneway.adapters.Guard`.
        """
        guard = Guard(defense, outputs, decimals=decimals)
        if guard.requires_input:
            raise InvalidOptionError(
                f"{type(defense).__name__} needs the queries as well as their scores, and ART "
                "shows a postprocessor the scores alone. Take a defense that does not need them, "
                "such as a codebook."
            )
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.guard = guard

    def __call__(self, preds: Array) -> Array:
        """Guard a batch of predictions.

        Args:
            preds: ``(N, K)`` floating scores, of the kind ``outputs``. Not modified.

        Returns:
            ``(N, K)`` probabilities of the type of ``preds``; the predicted class stays the unique
            maximum.

        Raises:
            InvalidTensorError: The predictions are not such an array.
            DefenseFailedError: The defense failed.
        """
        if not isinstance(preds, np.ndarray):
            raise InvalidTensorError(
                f"predictions must be a NumPy array of shape (N, K), but got "
                f"{type(preds).__name__}. Pass what `predict` of ART's classifier returns."
            )
        return self.guard(preds)
