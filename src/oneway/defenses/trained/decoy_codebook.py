"""A codebook whose codewords are decoys, against an ensemble of surrogates of its own."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Generator, Tensor, nn

from oneway.checks import check_above, check_count
from oneway.contracts import TrainingData
from oneway.defenses.codebook import Codebook, CodebookRelease, plant_decoys
from oneway.defenses.codebook.fit import LISTED
from oneway.defenses.codebook.release import HELD_OUT, fit_options
from oneway.inversion import TrainingSettings, build_inverter, train_inverter

INPUT_TRANSFORMS = ("standardized", "within-label", "faithful")
"""Input transforms of the surrogates: an attacker's is not known."""


class DecoyCodebook(CodebookRelease):
    """A codebook whose codewords also mislead attackers who learned before it was there.

    See :func:`oneway.defenses.codebook.plant_decoys`. The surrogates are trained here, on clean
    scores of auxiliary images, as an attacker's would be.
    """

    @classmethod
    def check_training(
        cls,
        *,
        decoy_l1: float = 0.02,
        decoy_steps: int = 100,
        surrogate_width: int = 16,
        surrogate_epochs: int = 8,
        **options: Any,
    ) -> None:
        """Refuse options of :meth:`train` that are outside their range.

        Raises:
            InvalidOptionError: One is.
        """
        check_above("decoy_l1", decoy_l1, 0)
        check_count("decoy_steps", decoy_steps)
        check_count("surrogate_width", surrogate_width)
        check_count("surrogate_epochs", surrogate_epochs)
        super().check_training(**options)

    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        on_epoch: Callable[[float], None] | None = None,
        min_members: int = 20,
        rate_weight: float = 0.01,
        image_weight: float = 0.0,
        listed: int = LISTED,
        center: Literal["mean", "median"] = "mean",
        l1_budget: float | None = None,
        held_out: float = HELD_OUT,
        decoy_l1: float = 0.02,
        decoy_steps: int = 100,
        surrogate_width: int = 16,
        surrogate_epochs: int = 8,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit a table, train surrogates, and move the codewords.

        Args:
            training_data: As for :meth:`CodebookRelease.train`, and its auxiliary images and
                logits.
            generator: On the CPU; as there, and gives the order of the surrogates' rows.
            on_epoch: Called with the share that is done.
            min_members: As there.
            rate_weight: As there.
            image_weight: As there.
            listed: As there.
            center: As there.
            l1_budget: As there; decoys move codewords beyond it by ``decoy_l1`` at most.
            held_out: As there.
            decoy_l1: Most that a codeword may move, in L1 distance of probabilities.
            decoy_steps: Steps of the search for decoys.
            surrogate_width: Channels of a surrogate's last hidden layer.
            surrogate_epochs: How long each is trained.

        Returns:
            The table, and the figures of its certificate.

        Raises:
            InvalidTensorError: There are too few calibration queries.
            InvalidOptionError: No table keeps within the budget, or an option is outside its
                range.
        """
        asked = fit_options(
            min_members=min_members,
            rate_weight=rate_weight,
            image_weight=image_weight,
            listed=listed,
            center=center,
            l1_budget=l1_budget,
            held_out=held_out,
        )
        images, logits = training_data.auxiliary_images, training_data.auxiliary_logits
        confidences = logits.softmax(-1)
        settings = TrainingSettings(
            epochs=surrogate_epochs, learning_rate=0.01, schedule="one-cycle"
        )
        surrogates = []
        for place, input_transform in enumerate(INPUT_TRANSFORMS):
            surrogate = build_inverter(
                logits.shape[-1],
                images.shape[1:],
                width=surrogate_width,
                input_transform=input_transform,
            ).to(images.device)
            train_inverter(surrogate, confidences, images, settings=settings, generator=generator)
            surrogates.append(surrogate.eval().requires_grad_(False))
            if on_epoch is not None:
                on_epoch((place + 1) / (len(INPUT_TRANSFORMS) + 1))

        def move(book: Codebook, scores: Tensor, queries: Tensor | None) -> Codebook:
            assert queries is not None  # noqa: S101  narrows the type; they are passed below
            return plant_decoys(
                book, scores, queries, surrogates, l1_budget=decoy_l1, steps=decoy_steps
            )

        own_images, own_logits = training_data.calibration
        release = cls.fit(own_logits, own_images, generator=generator, move=move, **asked)
        if on_epoch is not None:
            on_epoch(1.0)
        return release.network, release.figures
