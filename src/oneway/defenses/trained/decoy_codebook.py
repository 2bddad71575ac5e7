"""A codebook whose codewords are decoys, against surrogates that are trained for it."""

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from oneway.contracts import TrainingData
from oneway.defenses.codebook import Codebook, CodebookRelease, DecoyOptions, plant_decoys
from oneway.defenses.codebook.release import Move
from oneway.inversion import TrainingSettings, build_inverter, train_inverter

SURROGATE_TRANSFORMS = ("standardized", "within-label", "faithful")
"""Input transforms of the surrogates: an attacker's is not known."""


class DecoyCodebook(CodebookRelease):
    """A codebook whose codewords also mislead attackers who learned before it was there.

    See :func:`oneway.defenses.codebook.plant_decoys`. The surrogates are trained here, on clean
    scores of auxiliary images, as an attacker's would be.
    """

    training = DecoyOptions
    fitted_to = "auxiliary images and calibration queries"

    @classmethod
    def table_change(
        cls,
        training_data: TrainingData,
        settings: Any,
        generator: Generator,
        report: Callable[[float], None],
    ) -> Move:
        """Train surrogates, and return what plants decoys against them.

        Args:
            training_data: Auxiliary images and logits for the surrogates.
            settings: A :class:`DecoyOptions`.
            generator: On the CPU; gives the order of the surrogates' rows.
            report: Called with the share that is done.
        """
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        confidences = logits.softmax(-1)
        training = TrainingSettings(
            epochs=settings.surrogate_epochs, learning_rate=0.01, schedule="one-cycle"
        )
        surrogates = []
        for place, input_transform in enumerate(SURROGATE_TRANSFORMS):
            surrogate = build_inverter(
                logits.shape[-1],
                images.shape[1:],
                width=settings.surrogate_width,
                input_transform=input_transform,
            ).to(images.device)
            train_inverter(surrogate, confidences, images, settings=training, generator=generator)
            surrogates.append(surrogate.eval().requires_grad_(False))
            report((place + 1) / (len(SURROGATE_TRANSFORMS) + 1))

        def move(book: Codebook, scores: Tensor, queries: Tensor | None) -> Codebook:
            assert queries is not None  # noqa: S101  narrows the type; calibration has them
            budget, steps = settings.decoy_l1, settings.decoy_steps
            return plant_decoys(book, scores, queries, surrogates, l1_budget=budget, steps=steps)

        return move
