"""A PyTorch classifier as a target."""

from typing import Literal

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_images, check_logits, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import logits_from_confidences, release


class TorchTarget:
    """Answers queries with a PyTorch module's scores. No gradient leaves it.

    The module is put in eval mode, so that dropout is off and BatchNorm uses its running
    statistics: in training mode an answer would depend on who else is in the batch.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        outputs: Literal["logits", "confidences"] = "logits",
        batch_size: int = 512,
    ) -> None:
        """Wrap a module.

        Args:
            module: ``(N, C, H, W)`` images to ``(N, K)`` scores. Queries go to its device.
            outputs: What the scores are; never guessed from their values.
            batch_size: Most queries that the module sees at once.

        Raises:
            InvalidOptionError: ``outputs`` is neither of the two, or ``batch_size`` below 1.
        """
        if outputs not in ("logits", "confidences"):
            raise InvalidOptionError(
                f"outputs must be 'logits' or 'confidences', but got {outputs!r}."
            )
        check_count("batch_size", batch_size)
        self.module = module.eval()
        self.outputs = outputs
        self.batch_size = batch_size

    @property
    def device(self) -> torch.device:
        """The device of the module's first parameter."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return clean logits: for the defender, never for a client.

        Args:
            images: ``(N, C, H, W)`` floating, in the scale that the module takes.

        Returns:
            ``(N, K)`` float32 or float64 on the images' device.

        Raises:
            InvalidTensorError: The images, or the scores that came of them, cannot be used.
            InvalidOptionError: The module was put back in training mode.
        """
        self._check_ready(images)
        parts = [self.module(part.to(self.device)) for part in images.split(self.batch_size)]
        return self._checked(torch.cat(parts).to(images.device), images)

    def differentiable_logits(self, images: Tensor) -> Tensor:
        """Return the same with their gradient in ``images``: for whoever has the model itself.

        All at once; split what does not fit in memory.

        Raises:
            InvalidTensorError: See :meth:`logits`.
            InvalidOptionError: See :meth:`logits`.
        """
        self._check_ready(images)
        return self._checked(self.module(images.to(self.device)).to(images.device), images)

    def _check_ready(self, images: Tensor) -> None:
        check_images(images)
        if self.module.training:
            raise InvalidOptionError(
                "the module is in training mode, so that its answers depend on the batch. "
                "Call `module.eval()`."
            )

    def _checked(self, scores: Tensor, images: Tensor) -> Tensor:
        """Return the module's answers as logits."""
        if scores.ndim != 2 or len(scores) != len(images):
            raise InvalidTensorError(
                f"the module must answer {len(images)} images with scores of shape "
                f"({len(images)}, K), but gave {tuple(scores.shape)}."
            )
        if self.outputs == "confidences":
            return logits_from_confidences(scores)
        check_logits(scores, f"the module's logits ({name_of(scores.dtype)})")
        return scores if scores.dtype == torch.float64 else scores.float()

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: what an undefended API would release."""
        return release(self.logits(images))
