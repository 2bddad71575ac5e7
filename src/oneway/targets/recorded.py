"""A target that answers from recorded confidences: for tests and for recorded traffic."""

import torch
from torch import Tensor

from oneway.checks import check_confidences, check_images
from oneway.errors import InvalidTensorError


class RecordedTarget:
    """Answers recorded images with the confidences recorded for each."""

    def __init__(self, images: Tensor, confidences: Tensor) -> None:
        """Record answers.

        Args:
            images: ``(N, ...)`` queries, floating, finite. Not modified.
            confidences: ``(N, K)`` probabilities, one row per image. Copied.

        Raises:
            InvalidTensorError: The tensors are not as above, or one image has two answers.
        """
        check_confidences(confidences)
        check_images(images, rows=len(confidences))
        self._answers: dict[Key, Tensor] = {}
        self._classes = confidences.shape[-1]
        for image, answer in zip(images, confidences.detach().clone(), strict=True):
            known = self._answers.setdefault(_key(image), answer)
            if not torch.equal(known, answer):
                raise InvalidTensorError(
                    "one image is recorded with two answers. Record each image once, or average "
                    "the answers of a random target first."
                )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the recorded ``(N, K)`` confidences of ``(N, ...)`` images, as a copy.

        Raises:
            InvalidTensorError: An image has no recorded answer.
        """
        check_images(images)
        answers = [self._answers.get(_key(image)) for image in images]
        known = [answer for answer in answers if answer is not None]
        if len(known) < len(answers):
            raise InvalidTensorError(
                f"{len(answers) - len(known)} of {len(answers)} images have no recorded answer. "
                "Query with the very images that were recorded."
            )
        return torch.stack(known) if known else torch.empty(0, self._classes)


Key = tuple[torch.dtype, torch.Size, bytes]


def _key(image: Tensor) -> Key:
    plain = image.detach().cpu().contiguous()
    return plain.dtype, plain.shape, plain.flatten().view(torch.uint8).numpy().tobytes()
