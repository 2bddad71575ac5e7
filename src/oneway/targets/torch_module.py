"""A PyTorch classifier as a target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_images
from oneway.errors import InvalidOptionError, OnewayError
from oneway.releases import Outputs, check_outputs, logits_of_checked, release
from oneway.targets.answers import AnswerRules, RuledTarget
from oneway.targets.failure import failed
from oneway.targets.modules import check_module, named_in_config, put_in_eval_mode, scores_in


class TorchTarget(RuledTarget):
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
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Wrap a module.

        Args:
            module: ``(N, C, H, W)`` images to ``(N, K)`` scores. Queries go to its device, in the
                type of its weights. It may also answer with an object or a dictionary that has
                ``logits``, or with several tensors of which one alone is ``(N, K)`` floating.
            outputs: What the scores are; never guessed from their values.
            batch_size: Most queries that the module gets at once.
            name: What messages call the target.
            class_names: Names of the K classes, in the order of the scores. None: those of the
                module's ``config.id2label``, if it has any.

        Raises:
            InvalidOptionError: ``module`` is no module, has lazy layers or no eval mode, or takes
                more than images; ``outputs`` is neither of the two; ``batch_size`` is below 1; or
                ``class_names`` are no names.
        """
        check_outputs(outputs)
        check_count("batch_size", batch_size)
        check_module(module, name)
        self.module = put_in_eval_mode(module, name)
        self.outputs, self.batch_size = outputs, batch_size
        self.rules = AnswerRules(name, outputs, class_names or named_in_config(module))

    @property
    def device(self) -> torch.device:
        """The device of the module's first parameter."""
        return self._place[0]

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the module's first floating parameter; None if it has none."""
        return self._place[1]

    @property
    def _place(self) -> tuple[torch.device, torch.dtype | None]:
        """Device and type of the weights, by one pass: it takes as long as a small layer."""
        device = None
        for parameter in self.module.parameters():
            device = device or parameter.device
            if parameter.is_floating_point():
                return device, parameter.dtype
        return device or torch.device("cpu"), None

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return clean logits: for the defender, never for a client.

        Args:
            images: ``(N, C, H, W)`` floating, in the scale that the module takes. Not modified.

        Returns:
            ``(N, K)`` float32 or float64 on the images' device, without gradient.

        Raises:
            InvalidTensorError: The images, or the module's scores, cannot be used.
            InvalidOptionError: The module was put back in training mode, or is on the device meta.
            TargetFailedError: The module raised.
        """
        self._check_ready(images)
        if images.shape[0] <= self.batch_size:
            return self._logits(images)
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
        device, dtype = self._place
        if device.type == "meta":
            raise InvalidOptionError(
                f"{self.rules.name} is on the device meta, so that its weights have no values. "
                "Load them, and choose the device cpu or cuda."
            )
        try:
            # A copy: a module may write to its input.
            answer = self.module(images.to(device, dtype, copy=True))
        except OnewayError:
            raise
        except Exception as error:
            raise failed(self.rules.name, len(images), error) from error
        scores = scores_in(answer, len(images), self.outputs, self.rules.name)
        self.rules.check(scores, len(images))
        # A copy again: a module may answer the next batch in the same memory.
        return logits_of_checked(scores.to(images.device, copy=True), self.outputs)

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: the answers of an undefended API."""
        return release(self.logits(images))
