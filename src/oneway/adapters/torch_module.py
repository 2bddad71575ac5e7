"""A PyTorch classifier whose forward pass gives guarded probabilities."""

from typing import Self

from torch import Tensor, nn

from oneway.adapters.guard import Guard, check_rows
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError
from oneway.releases import Outputs


class GuardedModule(nn.Module):
    """A module with a guard behind it, for a server that calls modules.

    It answers in eval mode only: in training mode an answer would depend on the other queries of
    the batch. It is a door, not a safe: whoever holds this object holds ``model``, too.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: Defense,
        *,
        outputs: Outputs,
        decimals: int | None = None,
    ) -> None:
        """Guard a module, and put it in eval mode.

        Args:
            model: ``(N, ...)`` queries to ``(N, K)`` scores, as one tensor. Gets a copy of the
                queries.
            defense: Changes the scores. Its networks stay where they are: put them on the model's
                device first.
            outputs: What the scores are; never guessed.
            decimals: Decimals of the released probabilities; None: all.

        Raises:
            InvalidOptionError: An option is outside its range: see :class:`oneway.adapters.Guard`.
        """
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InvalidOptionError(
                f"model must be a torch.nn.Module, but got {type(model).__name__}. Guard any "
                "other callable by oneway.adapters.Guard."
            )
        self.model = model
        self.guard = Guard(defense, outputs, decimals=decimals)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode.

        Raises:
            InvalidOptionError: ``mode`` is True.
        """
        if mode:
            raise InvalidOptionError(
                "a guarded module answers, and is not trained: its answers would depend on the "
                "batch. Train the model itself, then guard it."
            )
        return super().train(False)

    def forward(self, queries: Tensor) -> Tensor:
        """Answer with guarded probabilities.

        Args:
            queries: ``(N, ...)`` as the model takes them; for a defense that needs queries, also
                in the scale that the defense was made for. Not modified.

        Returns:
            ``(N, K)`` probabilities, of the type and on the device of the model's scores, without
            gradient.

        Raises:
            InvalidOptionError: A part of the model was put back in training mode.
            InvalidTensorError: The model gives anything but one tensor of scores.
            DefenseFailedError: The defense failed.
        """
        if any(module.training for module in self.model.modules()):
            raise InvalidOptionError(
                "a part of the model is in training mode, so that its answers depend on the "
                "batch. Call `eval()`."
            )
        scores: Tensor = self.model(queries.clone())
        check_rows(scores, len(queries), "the model", Tensor)
        return self.guard(scores, queries)
