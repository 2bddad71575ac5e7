"""Scores that somebody released for the queries of a published split, as a defense."""

from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_confidences
from oneway.data import read_npz
from oneway.defenses.base import BaseDefense
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError
from oneway.options import option
from oneway.releases import logits_from_confidences

KEY_BYTES = 16


def row_keys(rows: Tensor) -> NDArray[np.uint8]:
    """Return ``(N, 16)`` uint8 hashes of the content of ``(N, ...)`` inputs."""
    content = np.ascontiguousarray(rows.cpu().float().numpy())
    keys = [blake2b(row.tobytes(), digest_size=KEY_BYTES).digest() for row in content]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


class RecordedScores(BaseDefense):
    """Answer queries of a published split with the scores in a file.

    Nothing else is answered, so that attackers who ask queries of their own do not apply.
    """

    requires_input = True
    keeps_label = False  # what the file says is released; changed labels are counted

    file: str = option("An .npz file with `keys`, `confidences` and `target`.")
    sha256: str = option("The file's SHA-256, which a record then holds.")

    def __post_init__(self) -> None:
        """Read the file.

        Raises:
            MissingDataError: It is not there.
            CorruptDataError: It has another hash, it lacks an array, or an array has another shape
                or content.
        """
        super().__post_init__()
        path, arrays = Path(self.file), read_npz(Path(self.file))
        if sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise CorruptDataError(
                f"{path} must have the SHA-256 {self.sha256}, but has another: the file changed "
                "after it was entered. Run the command again."
            )
        for name in ("keys", "confidences", "target"):
            if name not in arrays:
                raise CorruptDataError(
                    f"{path} must hold `keys` and `target` of the published split, and "
                    f"`confidences`, but lacks {name!r}. Copy the first two from the split's file."
                )
        keys, confidences = arrays["keys"], arrays["confidences"]
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
            raise CorruptDataError(
                f"keys of {path} must be uint8 of shape (N, {KEY_BYTES}), but are {keys.dtype} of "
                f"shape {keys.shape}. Copy them from the split's file."
            )
        if confidences.dtype.kind != "f" or confidences.shape[:1] != keys.shape[:1]:
            raise CorruptDataError(
                f"confidences of {path} must be a row of floating probabilities for each of "
                f"{len(keys)} keys, but are {confidences.dtype} of shape {confidences.shape}."
            )
        released = torch.from_numpy(confidences)
        check_confidences(released, f"confidences of {path}")
        self.target = str(arrays["target"])
        self._logits = logits_from_confidences(released.double())
        self._places = {key.tobytes(): place for place, key in enumerate(keys)}

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Answer with the recorded scores of each query.

        Raises:
            InvalidTensorError: A query is not in the file, or the file is of other classes.
        """
        assert images is not None  # noqa: S101  requires_input
        places = [self._places.get(key.tobytes(), -1) for key in row_keys(images)]
        if -1 in places or self._logits.shape[-1] != logits.shape[-1]:
            raise InvalidTensorError(
                f"{self.file} must hold scores over {logits.shape[-1]} classes for every row of "
                f"the split, but holds {self._logits.shape[-1]} classes, and lacks "
                f"{places.count(-1)} of {len(places)} rows. Record all rows of `auxiliary` and "
                "`queries`."
            )
        return self._logits[torch.tensor(places)].to(logits)

    def check_target(self, target: str) -> None:
        """Refuse scores that were recorded from another classifier.

        Args:
            target: Hash of the weights of the classifier whose clean scores are the baseline.

        Raises:
            InvalidOptionError: The file names another one.
        """
        if target != self.target:
            raise InvalidOptionError(
                f"{self.file} holds scores of another classifier than the one of this split here, "
                "as another processor trains it. Pass the --cache that it was written with."
            )
