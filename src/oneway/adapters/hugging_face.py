"""A pipeline of transformers whose answers are guarded."""

import copy
from typing import Any

from oneway.adapters.torch_module import GuardedModule
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError

TASKS = ("audio-classification", "image-classification", "text-classification")


class _GuardedModel(GuardedModule):
    """A guarded module that tells a pipeline what it asks of a model."""

    def __getattr__(self, name: str) -> Any:
        # What a pipeline reads of its model; none of these answers a query.
        if name in ("base_model_prefix", "config", "device", "dtype", "name_or_path"):
            return getattr(self.model, name)
        return super().__getattr__(name)

    def can_generate(self) -> bool:
        """Say that no text is generated."""
        return False


class GuardedPipeline:
    """A pipeline that classifies images, texts or audio, with a guard behind its model.

    It is asked as the pipeline is, and answers in its form: labels with guarded scores. Pictures,
    tokenizer and feature extractor are the pipeline's own.
    """

    def __init__(self, pipeline: Any, defense: Defense, *, decimals: int | None = None) -> None:
        """Guard a pipeline; the one that is passed stays as it is.

        Args:
            pipeline: A ``transformers.pipeline`` for one of ``audio-classification``,
                ``image-classification`` and ``text-classification``, in PyTorch.
            defense: Changes the scores; one that needs the query is refused.
            decimals: Decimals of the released probabilities; None: all.

        Raises:
            InvalidOptionError: The pipeline is for another task, its model gives several labels,
                or the guard needs the query; or see :class:`oneway.adapters.Guard`.
        """
        task = getattr(pipeline, "task", None)
        if task not in TASKS:
            raise InvalidOptionError(
                f"a pipeline must be for one of {', '.join(TASKS)}, but is for {task!r}. Guard "
                "its model by oneway.adapters.GuardedModule."
            )
        model = _GuardedModel(pipeline.model, defense, outputs="logits", decimals=decimals)
        if model.guard.requires_input:
            raise InvalidOptionError(
                f"{type(defense).__name__} needs the queries as well as their scores, which "
                "a pipeline prepares in its own way. Take a defense that does not need them, such "
                "as a codebook."
            )
        self._pipeline = copy.copy(pipeline)
        self._pipeline.model = model

    def __call__(self, inputs: Any, *, top_k: int | None = None) -> Any:
        """Answer as the pipeline does.

        Args:
            inputs: One input or several, as the pipeline takes them.
            top_k: Number of labels of each answer, the likeliest first; None: all.

        Returns:
            A list of labels and scores for each input, as the pipeline gives them.
        """
        return self._pipeline(inputs, top_k=top_k, function_to_apply="softmax")
