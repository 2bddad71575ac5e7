"""A PyTorch classifier as a target."""

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_images
from oneway.errors import InvalidOptionError, InvalidTensorError, OnewayError
from oneway.releases import Outputs, check_outputs, clean_logits_of, release
from oneway.targets.answers import AnswerRules
from oneway.targets.failure import failed


class TorchTarget:
    """Answers queries with a PyTorch module's scores.

    The module is put in eval mode, so that dropout is off and BatchNorm uses its running
    statistics: in training mode an answer would depend on the other queries of the batch. The
    module gets copies of the queries, so it may work in place.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        outputs: Outputs = "logits",
        batch_size: int = 512,
        name: str = "the module",
    ) -> None:
        """Wrap a module.

        Args:
            module: ``(N, C, H, W)`` images to ``(N, K)`` scores. Queries go to its device.
            outputs: What the scores are; never guessed from their values.
            batch_size: Most queries that the module gets at once.
            name: What messages call the target.

        Raises:
            InvalidOptionError: ``outputs`` is neither of the two, or ``batch_size`` below 1.
        """
        check_outputs(outputs)
        check_count("batch_size", batch_size)
        self.module = module.eval()
        self.outputs, self.batch_size = outputs, batch_size
        self._rules = AnswerRules(name, outputs)

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
            TargetFailedError: The module raised.
        """
        self._check_ready(images)
        return torch.cat([self._logits(part) for part in images.split(self.batch_size)])

    def differentiable_logits(self, images: Tensor) -> Tensor:
        """Return :meth:`logits` on the autograd graph of ``images``, for an owner of the model.

        All images are one batch; split what does not fit in memory.

        Raises:
            OnewayError: See :meth:`logits`.
        """
        self._check_ready(images)
        return self._logits(images)

    def _check_ready(self, images: Tensor) -> None:
        check_images(images)
        if self.module.training:
            raise InvalidOptionError(
                "the module is in training mode, so that its answers depend on the batch. "
                "Call `module.eval()`."
            )

    def _logits(self, images: Tensor) -> Tensor:
        try:
            # A copy: a module may write to its input.
            scores = self.module(images.to(self.device, copy=True))
        except OnewayError:
            raise
        except Exception as error:
            raise failed(self._rules.name, len(images), error) from error
        if not isinstance(scores, Tensor):
            raise InvalidTensorError(
                f"{self._rules.name} must answer with one tensor of scores, but gave "
                f"{type(scores).__name__}. Wrap the module in one that returns the scores alone."
            )
        self._rules.check(scores, len(images))
        # A copy again: a module may answer the next batch in the same memory.
        return clean_logits_of(scores.to(images.device, copy=True), self.outputs)

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: the answers of an undefended API."""
        return release(self.logits(images))
