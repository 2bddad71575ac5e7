"""A PyTorch classifier as a target."""

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_images, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import Outputs, check_outputs, clean_logits_of, release


class TorchTarget:
    """Answers queries with a PyTorch module's scores.

    The module is put in eval mode, so that dropout is off and BatchNorm uses its running
    statistics: in training mode an answer would depend on the other queries of the batch. The
    module gets copies of the queries, so it may work in place.
    """

    def __init__(
        self, module: nn.Module, *, outputs: Outputs = "logits", batch_size: int = 512
    ) -> None:
        """Wrap a module.

        Args:
            module: ``(N, C, H, W)`` images to ``(N, K)`` scores. Queries go to its device.
            outputs: What the scores are; never guessed from their values.
            batch_size: Most queries that the module gets at once.

        Raises:
            InvalidOptionError: ``outputs`` is neither of the two, or ``batch_size`` below 1.
        """
        check_outputs(outputs)
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
            images: ``(N, C, H, W)`` floating, in the scale that the module takes. Not modified.

        Returns:
            ``(N, K)`` float32 or float64 on the images' device, without gradient.

        Raises:
            InvalidTensorError: The images, or the module's scores, cannot be used.
            InvalidOptionError: The module was put back in training mode.
        """
        self._check_ready(images)
        parts = [self._scores(part) for part in images.split(self.batch_size)]
        return self._checked(torch.cat(parts), images)

    def differentiable_logits(self, images: Tensor) -> Tensor:
        """Return :meth:`logits` on the autograd graph of ``images``, for an owner of the model.

        All images are one batch; split what does not fit in memory.

        Raises:
            InvalidTensorError: See :meth:`logits`.
            InvalidOptionError: See :meth:`logits`.
        """
        self._check_ready(images)
        return self._checked(self._scores(images), images)

    def _scores(self, images: Tensor) -> Tensor:
        # Copies: a module may write to its input, and answer each batch in the same memory.
        scores = self.module(images.to(self.device, copy=True))
        return one_tensor(scores, "the module").to(images.device, copy=True)

    def _check_ready(self, images: Tensor) -> None:
        check_images(images)
        if self.module.training:
            raise InvalidOptionError(
                "the module is in training mode, so that its answers depend on the batch. "
                "Call `module.eval()`."
            )

    def _checked(self, scores: Tensor, images: Tensor) -> Tensor:
        if scores.ndim != 2 or len(scores) != len(images):
            raise InvalidTensorError(
                f"the module must answer {len(images)} images with scores of shape "
                f"({len(images)}, K), but gave {tuple(scores.shape)}."
            )
        return clean_logits_of(
            scores, self.outputs, f"the module's logits ({name_of(scores.dtype)})"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: the answers of an undefended API."""
        return release(self.logits(images))


def one_tensor(scores: object, name: str) -> Tensor:
    """Return a module's scores if they are one tensor.

    Raises:
        InvalidTensorError: They are several tensors, or none. The message names the target.
    """
    if not isinstance(scores, Tensor):
        raise InvalidTensorError(
            f"{name} must answer with one tensor of scores, but gave {type(scores).__name__}. "
            "Wrap the module in one that returns the scores alone."
        )
    return scores
