"""The paper's noise without the query: its loss uses what the scores already reveal."""

from typing import Literal

import torch
from torch import Tensor, nn

from oneway.checks import check_logits
from oneway.defenses.adversarial_noise.iterative import AdversarialNoise
from oneway.defenses.adversarial_noise.search import SEARCHES
from oneway.errors import DefenseFailedError, InvalidOptionError, UnknownNameError

REFERENCES = ("reconstruction", "label")

SURE = 0.99
"""What the label has in the scores whose reconstruction stands for the label."""


class InputFreeNoise:
    """Noise that raises an inverter's error about what the scores reveal, and not about the query.

    The paper's noise is a function of the query itself, so that its signs may tell what the
    clean scores did not. Here the query is nowhere: the inverter is driven away from its own
    reconstruction of the clean scores, or from what it reconstructs of the label alone. The
    release is then a function of the scores, and tells no more than they do.

    It stays nearly one-to-one, so that whoever retrains undoes much of it: a middle way for who
    cannot afford the distortion of a codebook. Measured in docs/results.md.
    """

    requires_input = False
    keeps_label = True
    deterministic: bool

    def __init__(
        self,
        inverter: nn.Module,
        *,
        step_size: float,
        steps: int = 10,
        budget: float | None = None,
        norm: float = 1,
        margin: float = 1e-3,
        reference: Literal["reconstruction", "label"] = "reconstruction",
        search: Literal["sign", "random-start", "keyed-start", "momentum"] | None = None,
        start_radius: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Prepare the defense.

        Args:
            inverter: The defender's surrogate; see :class:`AdversarialNoise`, for all options
                that are not told here.
            step_size: Nats per step, above 0.
            steps: How many, at least 1.
            budget: Most that a row's noise may measure, in nats. None: unbounded.
            norm: Of the budget.
            margin: Least lead of the label, in nats.
            reference: What the inverter is driven away from. ``"reconstruction"``: what it makes
                of the clean scores, where the gradient is 0, so that the search needs a start.
                ``"label"``: what it makes of scores that give the label 0.99 and the rest evenly.
            search: None: ``"keyed-start"`` for the first reference, ``"sign"`` for the second.
            start_radius: Of a drawn start.
            generator: On the CPU; for a drawn start.

        Raises:
            InvalidOptionError: An option is outside its range, or a reconstruction of the clean
                scores is to be left without a start.
            UnknownNameError: There is no such ``reference`` or ``search``.
        """
        if reference not in REFERENCES:
            raise UnknownNameError("reference", str(reference), REFERENCES)
        if search is None:
            search = "keyed-start" if reference == "reconstruction" else "sign"
        if search not in SEARCHES:
            raise UnknownNameError("search", str(search), SEARCHES)
        if reference == "reconstruction" and not search.endswith("-start"):
            raise InvalidOptionError(
                f"search={search!r} starts from the clean scores, where the distance from their "
                "own reconstruction has no gradient. Use search='keyed-start', or "
                "reference='label'."
            )
        self.reference = reference
        self._noise = AdversarialNoise(
            inverter,
            step_size=step_size,
            steps=steps,
            budget=budget,
            norm=norm,
            margin=margin,
            search=search,
            start_radius=start_radius,
            generator=generator,
        )
        self.deterministic = self._noise.deterministic

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(N, K)`` noisy logits; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores of shape ``(N, K)``.
            DefenseFailedError: The inverter's reconstructions are not finite; and see
                :class:`AdversarialNoise`.
        """
        check_logits(logits)
        if not len(logits):
            return logits.detach().clone()
        return self._noise(logits, self._reference(logits.detach()))

    @torch.no_grad()
    def _reference(self, logits: Tensor) -> Tensor:
        inverter = self._noise.inverter
        parameter = next(inverter.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        wide = logits.double()
        if self.reference == "reconstruction":
            confidences = wide.softmax(-1)
        else:
            rest = (1 - SURE) / (logits.shape[-1] - 1)
            confidences = torch.full_like(wide, rest)
            confidences.scatter_(-1, logits.argmax(-1, keepdim=True), SURE)
        parts = [inverter(some.to(dtype)) for some in confidences.split(512)]
        images = torch.cat(parts).clamp(0, 1)
        if not torch.isfinite(images).all():
            raise DefenseFailedError(
                "the surrogate's reconstructions are not finite, so there is nothing to drive it "
                "away from. Check that it was trained and takes these scores."
            )
        return images
