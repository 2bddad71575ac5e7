"""The paper's noise without the query: its loss uses what the scores already reveal."""

from typing import Literal

import torch
from torch import Tensor

from oneway.defenses.adversarial_noise.iterative import NoiseDefense
from oneway.defenses.adversarial_noise.search import DRAWN, Search, SignSteps, noise_search
from oneway.errors import DefenseFailedError, InvalidOptionError
from oneway.options import option

SURE = 0.99
"""Probability of the label in the scores whose reconstruction stands for the label."""


class InputFreeNoise(NoiseDefense):
    """Noise that raises an inverter's error about what the scores reveal, and not about the query.

    The paper's noise is a function of the query itself, so that its signs may reveal what the
    clean scores did not. Here the query is not used: the inverter is driven away from its own
    reconstruction of the clean scores, or from what it reconstructs of the label alone. The
    release is then a function of the scores, and reveals no more than they do.

    It stays nearly one-to-one, so that a retrained attacker undoes much of it: a compromise for
    operators who cannot afford the distortion of a codebook. Measured in docs/results.md.
    """

    reference: Literal["reconstruction", "label"] = option(
        'What the inverter is driven away from. ``"reconstruction"``: its reconstruction of the '
        "clean scores, where the gradient is 0, so that the search needs a start. "
        '``"label"``: its reconstruction of scores that give the label 0.99 and the rest evenly.',
        default="reconstruction",
    )
    search: Search | None = option(
        'See ``adversarial-noise``. None: ``"keyed-start"`` for the first reference, ``"sign"`` '
        "for the second.",
        default=None,
    )

    def _chosen_search(self) -> SignSteps:
        chosen = self.search
        if chosen is None:
            chosen = "keyed-start" if self.reference == "reconstruction" else "sign"
        if self.reference == "reconstruction" and chosen not in DRAWN:
            raise InvalidOptionError(
                f"search={chosen!r} starts from the clean scores, where the distance from their "
                "own reconstruction has no gradient. Use search='keyed-start', or "
                "reference='label'."
            )
        return noise_search(
            chosen,
            step_size=self.step_size,
            start_radius=self.start_radius,
            generator=self.generator,
        )

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:  # noqa: ARG002
        """Drive the inverter away from what the scores reveal; see ``add_noise``.

        Raises:
            DefenseFailedError: The inverter's reconstructions are not finite.
        """
        return self.add_noise(logits, self._revealed(logits)) if len(logits) else logits

    def _revealed(self, logits: Tensor) -> Tensor:
        """Return ``(N, ...)`` what the inverter reconstructs of the scores, or of the label."""
        wide = logits.double()
        if self.reference == "reconstruction":
            confidences = wide.softmax(-1)
        else:
            rest = (1 - SURE) / (logits.shape[-1] - 1)
            confidences = torch.full_like(wide, rest)
            confidences.scatter_(-1, logits.argmax(-1, keepdim=True), SURE)
        parts = [self.inverter(part.to(self._dtype)) for part in confidences.split(512)]
        images = torch.cat(parts).clamp(0, 1)
        if not torch.isfinite(images).all():
            raise DefenseFailedError(
                "the surrogate's reconstructions are not finite, so there is nothing to drive it "
                "away from. Check that it was trained and takes these scores."
            )
        return images
