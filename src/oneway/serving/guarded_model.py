"""A model behind its guard, as a server asks it: queries in, releases or a refusal out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_count
from oneway.contracts import Target
from oneway.defenses import ServableDefense
from oneway.errors import DefenseFailedError, InvalidOptionError, OnewayError, where_raised
from oneway.releases import guarded_release, release
from oneway.serving.refusals import RefusedError, no_release
from oneway.targets import DefendedTarget
from oneway.targets.failure import failed

Released = NDArray[np.float32]
"""``(N, K)`` confidences, all that may leave."""

PROBES = 5
"""Queries of the self test."""

BATCH_TOLERANCE = 1e-3
"""Most that a clean score may differ, in nats, with who else is in the batch."""

LEAST_CHANGE = 1e-6
"""Least change of a probability that counts as one: below, it is rounding in float32."""

log = logging.getLogger("oneway.serving")


@dataclass(frozen=True)
class Probed:
    """What the self test found.

    Attributes:
        classes: K.
        same_bits: Whether queries had the same scores to the bit in batches of other make-up.
    """

    classes: int
    same_bits: bool


class GuardedModel:
    """Answers batches of queries with releases. Whatever goes wrong, it gives none."""

    def __init__(
        self,
        target: Target,
        guard: ServableDefense,
        *,
        input_shape: tuple[int, ...],
        device: torch.device,
        decimals: int | None = None,
        batch_multiple: int = 1,
        batch_size: int = 512,
    ) -> None:
        """Put a guard before a model. Call :meth:`check` before it serves.

        Args:
            target: The undefended model.
            guard: What stands before it.
            input_shape: Of one query.
            device: Where queries go.
            decimals: See :func:`oneway.release`.
            batch_multiple: Batches are filled up to a multiple of this.
            batch_size: Most queries that the model sees at once; a multiple of that.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_count("batch_multiple", batch_multiple)
        self.guard, self.input_shape, self.device = guard, input_shape, device
        self.batch_multiple = batch_multiple
        self._guarded = DefendedTarget(
            target, guard.defense, decimals=decimals, batch_size=batch_size
        )
        self.classes: int | None = None

    def answer(self, queries: Sequence[Tensor]) -> list[Released]:
        """Answer the queries of several requests.

        Args:
            queries: Each ``(n, *input_shape)`` float32, finite.

        Returns:
            One ``(n, K)`` array for each, label strictly on top.

        Raises:
            RefusedError: Model or guard failed. It says nothing of why; the log says where.
        """
        return released_or_refused(lambda: self._answer(queries))

    def _answer(self, queries: Sequence[Tensor]) -> list[Released]:
        released = self._guarded(self._filled(torch.cat(list(queries)))).cpu()
        rows = sum(map(len, queries))
        released = released[:rows]
        check_released(released, rows, self.classes)
        return [part.numpy() for part in released.split([len(some) for some in queries])]

    def _filled(self, images: Tensor) -> Tensor:
        surplus = -len(images) % self.batch_multiple
        if surplus:
            images = torch.cat([images, images[-1:].expand(surplus, *images.shape[1:])])
        return images.to(self.device)

    def check(self) -> Probed:
        """Ask the model, guard its own output, and refuse to serve if anything is amiss.

        Raises:
            OnewayError: The model cannot be asked, its scores depend on who else is in the batch,
                or the guard fails or changes nothing.
        """
        try:
            return self._check()
        except OnewayError:
            raise
        except Exception as error:
            raise failed("the model, or its guard,", PROBES, error) from error

    def _check(self) -> Probed:
        generator = torch.Generator().manual_seed(0)
        probes = torch.rand(PROBES, *self.input_shape, generator=generator)
        trace = self._guarded.trace(self._filled(probes))
        clean = trace.clean_logits[:PROBES]
        self.classes = clean.shape[-1]
        check_released(trace.released[:PROBES].cpu(), PROBES, self.classes)
        others = torch.rand(2 * PROBES, *self.input_shape, generator=generator)
        alone = [self._clean(probe[None])[0] for probe in probes]
        among = self._clean(torch.cat([others, probes.flip(0)]))[len(others) :].flip(0)
        moved = max(
            float((one.double() - other.double()).abs().amax())
            for one, other in ((torch.stack(alone), clean), (among, clean))
        )
        if moved > BATCH_TOLERANCE:
            raise InvalidOptionError(
                "the model answers a query differently with other queries beside it, so that "
                "whoever repeats a query averages the guard away. Put it in eval mode, or serve "
                "with max_batch_size=1 and batch_multiple=1."
            )
        check_guard(self.guard, clean, self._filled(probes)[:PROBES])
        for rows in (1, PROBES, 2 * PROBES):
            self._answer([others[:rows]])
        return Probed(self.classes, moved == 0)

    def _clean(self, images: Tensor) -> Tensor:
        return self._guarded.trace(self._filled(images)).clean_logits[: len(images)]


def check_guard(guard: ServableDefense, clean: Tensor, images: Tensor | None) -> None:
    """Refuse a guard that changes nothing, on a model's own scores or on others of its size.

    Args:
        guard: What is checked; ``"none"`` passes, since its user has said that it guards nothing.
        clean: ``(N, K)`` clean scores of the model.
        images: ``(N, ...)`` the queries that gave them, if the guard needs them.

    Raises:
        DefenseFailedError: It changes nothing, or is not the same twice.
        OnewayError: It fails.
    """
    if guard.name == "none":
        return
    defense = guard.defense
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    changed = False
    for scale in (0.0, 1.0, 5.0, 20.0):
        logits = clean if scale == 0 else (scale * drawn).to(clean)
        once, again = (guarded_release(defense, logits, images).confidences for _ in range(2))
        check_released(once.cpu(), *logits.shape)
        if not torch.equal(once, again):
            raise DefenseFailedError(
                f"the guard {guard.name} answers the same scores differently, though it says that "
                "it is deterministic. It must not serve."
            )
        changed = changed or bool(((once - release(logits)).abs() > LEAST_CHANGE).any())
    if not changed:
        raise DefenseFailedError(
            f"the guard {guard.name} changes nothing, neither of the model's scores nor of others. "
            "Check its options."
        )


def check_released(released: Tensor, rows: int, classes: int | None) -> None:
    """Look at what is about to leave: the last thing that is done to it.

    Raises:
        DefenseFailedError: It is not ``(rows, K)`` float32 probabilities with one maximum a row.
    """
    right = (
        released.dtype == torch.float32
        and released.ndim == 2
        and len(released) == rows
        and classes in (None, released.shape[1])
    )
    if not right or not bool(((released >= 0) & (released <= 1)).all()):  # NaN is refused, too
        raise DefenseFailedError("what the guard gave are no probabilities; nothing is released.")
    top = released.topk(2, dim=1).values
    if not bool((top[:, 0] > top[:, 1]).all()):
        raise DefenseFailedError("what the guard gave has ties at the top; nothing is released.")


def released_or_refused(compute: Callable[[], list[Released]]) -> list[Released]:
    """Compute a release; turn whatever goes wrong into a refusal that tells nothing.

    Raises:
        RefusedError: It went wrong. The log says what kind of error was raised where, and not
            what it said: that may quote a query or a score.
    """
    try:
        return compute()
    except RefusedError:
        raise
    # Whatever model or guard raise, MemoryError, sys.exit and a panic of Rust among it: nothing is
    # released, and the thread that answers lives on. No signal is raised there.
    except BaseException as error:  # noqa: BLE001
        by_guard = isinstance(error, DefenseFailedError)
        raised = error.raised if isinstance(error, DefenseFailedError) else None
        kind, place = raised or (type(error).__name__, where_raised(error))
    reason = "guard" if by_guard else "failure"
    log.error("no_release", extra={"facts": {"error": kind, "raised": place}})
    raise no_release(reason)
