"""The base of all defenses: check, copy, answer, lift the label, narrow the type.

A defense inherits :class:`ScoreDefense`, declares its options as fields, and writes one method.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform, final

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_generator, check_images, check_logits, check_logits_to_fit
from oneway.contracts import TrainingData
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import narrowed
from oneway.errors import InvalidTensorError
from oneway.options import Options, injected, option, refuse_undeclared_values


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(option, injected))
class BaseDefense(ABC):
    """A defense whose fields are its options, and what the caller injects.

    A subclass is a dataclass by itself. It writes :meth:`respond`, or inherits
    :class:`ScoreDefense` or :class:`RandomDefense`, which ask for less.

    Attributes:
        requires_input: Whether the defense needs the queries, not their logits alone.
        keeps_label: It promises that the arg max stays, strictly; a caller checks.
        deterministic: The same query always has the same answer.
        remembers: Answers depend on earlier queries, and may hold their clean scores: for
            measuring, and never for clients.
        needs_same_bits: Scores that differ in their last bits may have answers that differ by far
            more than that, and not at edges alone: a server then keeps a query's bits the same,
            whatever other queries are in its batch.
        is_finished: Answers of :meth:`respond` have the type of the logits, and the label on top
            where that is promised: nothing more is done to them.
    """

    requires_input = False
    keeps_label = True
    deterministic = True
    remembers = False
    needs_same_bits: ClassVar[bool] = True
    is_finished: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass a dataclass with keyword arguments."""
        super().__init_subclass__(**kwargs)
        dataclass(kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        """Refuse options outside their declared range.

        Raises:
            InvalidOptionError: One is.
            UnknownNameError: A name is none of those to choose from.
        """
        refuse_undeclared_values(self)

    @property
    def label_lead(self) -> float:
        """Least lead of a lifted label over the runner-up, in nats; 0: the least step."""
        return 0.0

    @final
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Change logits before release.

        Args:
            logits: ``(..., K)`` clean scores of any floating type, in nats, finite. Not modified.
            images: ``(N, ...)`` the queries; ignored unless ``requires_input``.

        Returns:
            ``(..., K)`` logits of the same type and device, without gradient. If the defense keeps
            labels, the arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are not finite floating scores, or over other classes
                than the defense was fitted to; or images are needed, and are missing, not finite
                or not one per row; or the defense's own answer has another shape.
        """
        # A caller may be in inference mode, whose tensors take no part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            clean, queries = self._checked(logits, images)
            return self._finished(self.respond(clean, queries), logits)

    @abstractmethod
    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Answer checked queries.

        Args:
            logits: ``(..., K)`` a copy of the clean scores.
            images: ``(N, ...)`` a copy of the queries; None unless ``requires_input``.

        Returns:
            ``(..., K)`` logits of any floating type. No row depends on any other row.
        """

    @final
    def check_scores(self, logits: Tensor) -> None:
        """Refuse logits that this defense cannot answer.

        Raises:
            InvalidTensorError: They are not finite floating scores, or of another shape.
        """
        check_logits(logits)
        self.check_shape(logits)

    def check_shape(self, logits: Tensor) -> None:  # noqa: B027  most defenses take any shape
        """Refuse finite floating scores of a shape that this defense cannot answer.

        Raises:
            InvalidTensorError: They have such a shape.
        """

    def _checked(self, logits: Tensor, images: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.check_scores(logits)
        clean = logits.detach().clone()
        if not self.requires_input:
            return clean, None
        if images is None:
            raise InvalidTensorError(
                "images must be given: this defense needs the queries as well as their scores. "
                "Use a defense whose `requires_input` is False if they are not at hand."
            )
        check_images(images, rows=len(logits))
        return clean, images.detach().clone()

    def _finished(self, answers: Tensor, logits: Tensor) -> Tensor:
        """Return ``(..., N, K)`` answers in the type of ``logits``, labels lifted if promised."""
        if self.is_finished:
            return answers
        if not isinstance(answers, Tensor) or answers.shape[-logits.ndim :] != logits.shape:
            got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise InvalidTensorError(
                f"{type(self).__name__} must answer with logits of shape {tuple(logits.shape)}, "
                f"but gave {got}. Return a tensor of a score for each class of each row."
            )
        answers = narrowed(answers, logits.dtype)
        if not self.keeps_label:
            return answers
        return lift_label(answers, logits.argmax(-1).expand(answers.shape[:-1]), self.label_lead)


class ScoreDefense(BaseDefense):
    """A deterministic defense whose answer follows from the scores alone."""

    needs_same_bits = False

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:  # noqa: ARG002
        """Answer with :meth:`transform`."""
        return self.transform(logits)

    @abstractmethod
    def transform(self, logits: Tensor) -> Tensor:
        """Return the ``(..., K)`` logits to release, in any floating type.

        Args:
            logits: ``(..., K)`` a copy of the clean scores, in nats, finite.
        """


class RandomDefense(BaseDefense):
    """A defense that draws its answers, each time anew."""

    deterministic = False

    generator: Generator = injected(
        "On the CPU; gives the draws. Anyone who knows its seed removes the noise."
    )

    def __post_init__(self) -> None:
        """Refuse options outside their range, and anything but a generator on the CPU.

        Raises:
            InvalidOptionError: An option or the generator is refused.
        """
        super().__post_init__()
        if not self.deterministic:
            check_generator(self.generator)

    @final
    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Answer with one sample."""
        return self.sample(logits, images, 1)[0]

    @final
    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:
        """Return ``(count, ..., K)`` answers to the same queries, as from ``__call__``.

        Independent, unless the defense is deterministic.

        Raises:
            InvalidTensorError: See :meth:`__call__`.
        """
        with torch.inference_mode(False), torch.no_grad():
            clean, queries = self._checked(logits, images)
            return self._finished(self.sample(clean, queries, count), logits)

    @abstractmethod
    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:
        """Return ``(count, ..., K)`` independent logits in any floating type.

        Args:
            logits: ``(..., K)`` a copy of the clean scores, in nats, finite.
            images: ``(N, ...)`` a copy of the queries; None unless ``requires_input``.
            count: Number of answers to each query.
        """


class LabelOnRequest(BaseDefense):
    """A defense that may change labels, unless its option ``keep_label`` is set."""

    keep_label: bool = option("Lift the clean label over all others.", default=False)
    margin: float = option("Least lead of a lifted label, in nats.", default=1e-3, above=0)

    def __post_init__(self) -> None:
        """Refuse options outside their range, and take ``keep_label`` as the promise.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__post_init__()
        self.keeps_label = self.keep_label

    @property
    def label_lead(self) -> float:
        """Least lead of a lifted label over the runner-up, in nats."""
        return self.margin


class DefenseWithState(BaseDefense):
    """A defense with a state that is fitted once before release: a network, a table, means.

    Attributes:
        state_type: Class of the state.
        training: Class of the options of its training; no name is also an option of the defense.
        fitted_to: The data that the state is fitted to, in words, for pages.
    """

    state_type: ClassVar[type[nn.Module]]
    training: ClassVar[type[Options]] = Options
    fitted_to: ClassVar[str]

    state: nn.Module = injected("The fitted state, from `train`.", kw_only=False)

    def __post_init__(self) -> None:
        """Refuse options outside their range, and put the state into eval mode.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__post_init__()
        self.state.eval()

    def check_shape(self, logits: Tensor) -> None:
        """Refuse logits over other classes than the state was fitted to.

        Raises:
            InvalidTensorError: They are.
        """
        super().check_shape(logits)
        fitted = getattr(self.state, "architecture", {}).get("num_classes")
        if fitted != logits.shape[-1]:
            raise InvalidTensorError(
                f"logits must be over the {fitted} classes that the defense was fitted to, but "
                f"got {tuple(logits.shape)}. Fit it to scores of this target."
            )

    @final
    @classmethod
    def train(
        cls,
        training_data: TrainingData,
        *,
        generator: Generator,
        on_epoch: Callable[[float], None] | None = None,
        **options: Any,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit the state.

        Args:
            training_data: Data that the defender has.
            generator: On the CPU; gives the order of rows and all other draws. Initial weights
                come from PyTorch's global stream.
            on_epoch: Called with the share of the work that is done, from 0 to 1.
            **options: Those that ``training`` declares.

        Returns:
            The state in eval mode, and JSON values to keep beside it.

        Raises:
            InvalidOptionError: An option is outside its range, or data is missing.
            InvalidTensorError: The data has the wrong type, shape or content, or its logits are
                probabilities.
        """
        report = on_epoch if on_epoch is not None else _ignore_progress
        settings = cls.training(**options)
        for name in ("auxiliary_logits", "calibration_logits"):
            logits = getattr(training_data, name)
            if logits is not None:
                check_logits_to_fit(logits, name)
        state, facts = cls.fit_state(training_data, settings, generator=generator, report=report)
        return state.eval(), facts

    @classmethod
    @abstractmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: Any,
        *,
        generator: Generator,
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit the state with checked settings, an instance of ``training``; see :meth:`train`."""


def _ignore_progress(share: float) -> None:
    """Do nothing with the share of the work that is done."""
