"""Guarded models as servers ask them: queries or scores in, releases or a refusal out."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, product
from typing import ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import LooksLikeProbabilities, check_count, check_logits
from oneway.contracts import ScoredTarget, Target
from oneway.defenses import ServableDefense
from oneway.defenses.codebook import CodebookRelease
from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    TargetFailedError,
    where_raised,
)
from oneway.releases import (
    Outputs,
    check_outputs,
    check_release_options,
    clean_logits_of,
    guarded_release,
    logits_from_confidences,
    looked_up_release,
    release,
    release_checked,
)
from oneway.serving.http_errors import RefusedError, no_release, upstream_failed
from oneway.serving.tracing import span
from oneway.targets.answers import DECLARE_CONFIDENCES, RuledTarget
from oneway.targets.failure import failed

Released = NDArray[np.float32]
"""``(N, K)`` confidences, all that may leave."""

PROBES = LooksLikeProbabilities.LEAST_ROWS
"""Queries of the self test: enough to tell logits from probabilities."""

BATCH_TOLERANCE = 1e-3
"""Most that a clean score may differ, in nats, with the other queries of the batch."""

REPEAT_TOLERANCE = 1e-3
"""Most that a probability may differ when the same is asked again, as sums on a GPU do."""

MULTIPLES = (1, 2, 4, 8, 16)
"""Batches are filled up to a multiple of the first of these that keeps scores' bits: linear algebra
on a CPU gives the last rows of a batch other last bits."""

INLINE_SECONDS = 1e-3
"""Longest time that a guard may hold the event loop: reading a large request holds it longer."""

INLINE_ROWS = (64, 16, 4, 1)
"""Rows that are tried for that."""

LEAST_CHANGE = 1e-6
"""Least change of a probability that counts as a change: below, it is rounding in float32."""

log = logging.getLogger("oneway.serving")


def guard_parameters(guard: ServableDefense) -> dict[str, str]:
    """Return the name and version of a guard, for clients."""
    return {"guard": guard.name, "guard_version": guard.version}


Q = TypeVar("Q", bound=Sized)


class Guarded(ABC, Generic[Q]):
    """Answers batches of requests with releases. Where anything fails, nothing is released."""

    ways: ClassVar[Sequence[bool]] = (False,)
    """Whether the model may be asked one query at a time, and the guard many: tried in order."""

    def __init__(
        self, guard: ServableDefense, *, device: torch.device, decimals: int | None
    ) -> None:
        """Put a guard before clean scores. Run the subclass's ``check`` before it serves.

        Args:
            guard: The defense.
            device: Where the defense computes.
            decimals: Decimals of the release: see :func:`oneway.release`.

        Raises:
            InvalidOptionError: ``decimals`` is outside its range.
        """
        check_release_options(torch.float32, decimals)
        self.guard, self.device, self.decimals = guard.rounded(decimals), device, decimals
        self._table = guard.defense if isinstance(guard.defense, CodebookRelease) else None
        self.batch_multiple, self.batch_size = 1, 0
        self.one_by_one = False  # whether the model is asked one query at a time
        self.inline_rows = 0  # most rows that an event loop may answer itself
        self.classes: int | None = None  # K, which every release has, once it has been checked
        self.count: Callable[[Tensor], None] | None = None  # gets the clean scores of all answers

    @abstractmethod
    def _answer(self, requests: Sequence[Q]) -> list[Released]:
        """Return one release for each request, or raise anything."""

    def answer(self, requests: Sequence[Q]) -> list[Released]:
        """Answer several requests.

        Returns:
            One ``(n, K)`` array for each request, the label strictly on top.

        Raises:
            RefusedError: Model, scores or guard failed. The error does not say why. The log says
                what kind of error was raised where, and not its text, which may quote a query.
        """
        try:
            return self._answer(requests)
        except RefusedError:
            raise
        # Whatever model or guard raise, MemoryError, sys.exit and a panic of Rust among it: nothing
        # is released, and the thread that answers lives on. No signal is raised there.
        except BaseException as error:  # noqa: BLE001
            reason = "guard" if isinstance(error, DefenseFailedError) else "failure"
            raised = error.raised if isinstance(error, OnewayError) else None
            kind, place = raised or (type(error).__name__, where_raised(error))
        log.error("no_release", extra={"facts": {"error": kind, "raised": place}})
        raise no_release(reason)

    def _release(self, clean: Tensor, queries: Tensor | None) -> Released:
        """Return the release of ``(N, K)`` clean logits, which are checked."""
        with span("guard"):
            if self._table is not None:
                released = looked_up_release(self._table, clean, decimals=self.decimals)
            else:
                released = release_checked(
                    self.guard.defense,
                    clean,
                    queries,
                    decimals=self.decimals,
                    batch_size=self.batch_size or None,
                ).confidences
        return released.cpu().numpy()

    def _choose_multiple(self, multiples: Sequence[int], same_bits: Callable[[], bool]) -> bool:
        """Settle what batches are filled up to: the first multiple that keeps bits.

        Where none does, the model is asked one query at a time, and the guard in batches; where
        that does not keep bits, either, the guard gets each query by itself, too.

        Args:
            multiples: Those that may be chosen; a single one is taken in any case.
            same_bits: Says whether bits are the same in different batches, as they are filled now.

        Returns:
            Whether bits are the same in any batch.
        """
        ways = self.ways if len(multiples) > 1 else (False,)
        for one_by_one, multiple in product(ways, multiples):
            self.one_by_one, self.batch_multiple = one_by_one, multiple
            if same_bits():
                return True
        if len(multiples) > 1:
            self.batch_multiple = self.batch_size = 1
            return same_bits()
        return False

    def _check_guard(self, clean: Tensor, queries: Tensor | None) -> None:
        """Refuse a guard that changes nothing, of a model's own scores or of others of its size.

        Args:
            clean: ``(N, K)`` clean scores of the model.
            queries: ``(N, ...)`` the queries that gave them, if the guard needs them.

        Raises:
            DefenseFailedError: The guard fails, changes nothing, or is not the same twice. The
                guard ``"none"`` passes: its user has said that nothing is guarded.
        """
        name = self.guard.name
        if name == "none":
            return
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        changed = False
        for scale in (0.0, 1.0, 5.0, 20.0):
            logits = clean if scale == 0 else (scale * drawn).to(clean)
            first, second = (
                guarded_release(self.guard.defense, logits, queries).confidences for _ in range(2)
            )
            if not torch.equal(first, second):
                raise DefenseFailedError(
                    f"the guard {name} answers the same scores differently, though it says that it "
                    "is deterministic. It must not serve."
                )
            table = self._table
            if table is not None and not torch.equal(first, looked_up_release(table, logits)):
                raise DefenseFailedError(
                    f"the guard {name} looks up other answers than it computes. It must not serve."
                )
            changed = changed or bool(((first - release(logits)).abs() > LEAST_CHANGE).any())
        if not changed:
            raise DefenseFailedError(
                f"the guard {name} changes nothing, neither of the model's scores nor of others. "
                "Check its options."
            )


class GuardedHere(Guarded[Q]):
    """A model in this process behind a guard: batches, their filling, and the self test."""

    ways = (False, True)

    def __init__(
        self,
        guard: ServableDefense,
        *,
        device: torch.device,
        decimals: int | None,
        batch_multiple: int | None,
        batch_size: int,
    ) -> None:
        """Put a guard before a model. Call :meth:`check` before it serves.

        Args:
            guard: The defense.
            device: Device of the defense.
            decimals: Decimals of the release: see :func:`oneway.release`.
            batch_multiple: Batches are filled up to a multiple of this. None: :meth:`check`
                chooses the smallest that the guard needs.
            batch_size: Most queries that model and guard get at once; a multiple of that.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__(guard, device=device, decimals=decimals)
        check_count("batch_size", batch_size)
        if batch_multiple is not None:
            check_count("batch_multiple", batch_multiple)
            self._multiples: Sequence[int] = (batch_multiple,)
        elif guard.needs_same_bits:
            self._multiples = [each for each in MULTIPLES if batch_size % each == 0]
        else:
            self._multiples = (1,)
        self._watch = LooksLikeProbabilities("the logits of the model", DECLARE_CONFIDENCES)
        self._is_ruled = False  # whether the model copies what it gets, and checks what it gives
        self.batch_multiple, self.batch_size = self._multiples[0], batch_size

    @abstractmethod
    def _join(self, requests: Sequence[Q]) -> Q:
        """Return the queries of several requests, in order."""

    @abstractmethod
    def _take(self, queries: Q, places: Sequence[int]) -> Q:
        """Return copies of some queries, by their places."""

    @abstractmethod
    def _clean_logits(self, queries: Q) -> Tensor:
        """Return ``(N, K)`` clean logits. The queries may be written to."""

    @abstractmethod
    def _images(self, queries: Q) -> Tensor | None:
        """Return the queries as a guard takes them; None if it needs none."""

    @abstractmethod
    def _probes(self, count: int) -> Q:
        """Return queries for the self test."""

    def _answer(self, requests: Sequence[Q]) -> list[Released]:
        released, clean = self._answered(requests)
        # After the last release: where one fails, all requests are tried again.
        if self.count is not None:
            self.count(clean)
        return released

    def _answered(self, requests: Sequence[Q]) -> tuple[list[Released], Tensor]:
        """Return one release for each request, and the clean scores of all."""
        counts = [len(queries) for queries in requests]
        queries = self._join(requests)
        clean, images = self._asked(queries), self._images(queries)
        places = self._filled(len(clean))
        if len(places) == len(clean):
            released = self._release(clean, images)
        else:
            released = self._release(clean[places], None if images is None else images[places])
        if self.classes not in (None, released.shape[1]):
            raise DefenseFailedError(
                f"a release must have {self.classes} classes, as in the self test, but has "
                f"{released.shape[1]}; nothing is released."
            )
        return _parts(released, counts), clean

    def _filled(self, count: int) -> Sequence[int]:
        """Return the places of a batch filled up to a multiple by its last query."""
        lacking = -count % self.batch_multiple
        return [*range(count), *[count - 1] * lacking] if lacking else range(count)

    def _asked(self, queries: Q) -> Tensor:
        """Return the checked logits of all queries, asked in parts of ``batch_size``."""
        count = len(queries)
        size = 1 if self.one_by_one else self.batch_size
        places = range(count) if self.one_by_one else self._filled(count)
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        with span("model"):
            rows = [self._clean_logits(self._take(queries, part)) for part in parts]
        logits = rows[0] if len(rows) == 1 else torch.cat(rows)
        if not self._is_ruled:
            check_logits(logits, "the logits of the model")
            self._watch.check(logits)
        return logits if len(logits) == count else logits[:count]

    def check(self) -> bool:
        """Ask the model, guard its own output, and refuse to serve if anything is amiss.

        Returns:
            Whether queries had the same scores to the bit in different batches.

        Raises:
            OnewayError: The model cannot be asked, its scores depend on the other queries of a
                batch, or the guard fails or changes nothing.
        """
        try:
            return self._check()
        except OnewayError:
            raise
        except Exception as error:
            raise failed("the model, or its guard,", PROBES, error) from error

    def _check(self) -> bool:
        rows = self._probes(3 * PROBES)
        places, others = range(PROBES), range(PROBES, 3 * PROBES)
        self.classes = self._clean_of(rows, places[:1]).shape[-1]
        same_bits = self._choose_multiple(self._multiples, lambda: self._has_same_bits(rows))
        self._check_guard(self._clean_of(rows, places), self._images(self._take(rows, places)))
        for count in (1, PROBES, 2 * PROBES):
            self._answer([self._take(rows, others[:count])])
        return same_bits

    def _clean_of(self, rows: Q, chosen: Sequence[int]) -> Tensor:
        return self._asked(self._take(rows, chosen))

    def _has_same_bits(self, rows: Q) -> bool:
        """Say whether the first rows have the same bits alone, together, and among others.

        Raises:
            OnewayError: Their scores differ by more than bits.
        """
        places, others = range(PROBES), range(PROBES, 3 * PROBES)
        clean = self._clean_of(rows, places)
        alone = torch.cat([self._clean_of(rows, [place]) for place in places])
        among = self._clean_of(rows, [*others, *reversed(places)])[len(others) :].flip(0)
        again, *others_beside = (
            float((scores.double() - clean.double()).abs().amax())
            for scores in (self._clean_of(rows, places), alone, among)
        )
        if again > BATCH_TOLERANCE:
            raise InvalidOptionError(
                "the model answers the same queries differently when they are asked again, so that "
                "a client who repeats a query averages the guard away. Take the randomness out of "
                "it: `F.dropout(x)` draws in eval mode, too, unless it gets "
                "training=self.training."
            )
        if max(others_beside) > BATCH_TOLERANCE:
            raise InvalidOptionError(
                "the model answers a query differently with other queries beside it, so that "
                "a client who repeats a query averages the guard away. Put it in eval mode, or "
                "serve with max_batch_size=1 and batch_multiple=1."
            )
        if max(others_beside) > 0 or not self.guard.needs_same_bits:
            return max(others_beside) == 0
        singles = [self._answer([self._take(rows, [place])])[0] for place in places]
        (together,) = self._answer([self._take(rows, places)])
        (beside,) = self._answer([self._take(rows, [*others, *reversed(places)])])
        return all(
            np.array_equal(np.concatenate(singles), released)
            for released in (together, beside[len(others) :][::-1])
        )


class GuardedModel(GuardedHere[Tensor]):
    """A model behind a guard. A request is ``(n, *input_shape)`` float32 queries, finite."""

    def __init__(
        self,
        target: Target,
        guard: ServableDefense,
        *,
        input_shape: tuple[int, ...],
        device: torch.device,
        decimals: int | None = None,
        batch_multiple: int | None = None,
        batch_size: int = 512,
    ) -> None:
        """Put a guard before a model. Call :meth:`check` before it serves.

        Args:
            target: The undefended model.
            guard: The defense.
            input_shape: The shape of one query.
            device: Device of queries and defense.
            decimals: Decimals of the release: see :func:`oneway.release`.
            batch_multiple: Batches are filled up to a multiple of this. None: :meth:`check`
                chooses the smallest that the guard needs.
            batch_size: Most queries that model and guard get at once; a multiple of that.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__(
            guard,
            device=device,
            decimals=decimals,
            batch_multiple=batch_multiple,
            batch_size=batch_size,
        )
        self.target, self.input_shape = target, input_shape
        # Asked once: to look for a protocol's attributes takes as long as a small model.
        self._logits = target.logits if isinstance(target, ScoredTarget) else None
        self._is_ruled = isinstance(target, RuledTarget) and self._logits is not None

    def _join(self, requests: Sequence[Tensor]) -> Tensor:
        joined = requests[0] if len(requests) == 1 else torch.cat(list(requests))
        return joined.to(self.device)

    def _take(self, queries: Tensor, places: Sequence[int]) -> Tensor:
        if not isinstance(places, range):
            return queries[list(places)]
        is_all = len(places) == queries.shape[0]
        part = queries if is_all else queries[places.start : places.stop]
        return part if self._is_ruled else part.clone()  # a model may work in place

    def _clean_logits(self, queries: Tensor) -> Tensor:
        if self._logits is None:
            return logits_from_confidences(self.target(queries))
        return self._logits(queries)

    def _images(self, queries: Tensor) -> Tensor:
        return queries

    def _probes(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, *self.input_shape, generator=generator).to(self.device)


@dataclass(frozen=True)
class Scored:
    """A server's answer to one request.

    Attributes:
        scores: ``(N, K)`` clean scores, N from 1, K from 2.
        queries: ``(N, ...)`` float32 the queries that gave them; None if they are not at hand.
    """

    scores: NDArray[np.float64]
    queries: Tensor | None

    def __len__(self) -> int:
        return len(self.scores)


class GuardedScores(Guarded[Scored]):
    """Clean scores of another server behind a guard."""

    def __init__(
        self,
        guard: ServableDefense,
        outputs: Outputs,
        *,
        device: torch.device,
        decimals: int | None = None,
    ) -> None:
        """Prepare. Call :meth:`check` with real scores before it serves.

        Args:
            guard: The defense.
            outputs: What the scores are.
            device: Where the guard computes.
            decimals: Decimals of the release: see :func:`oneway.release`.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__(guard, device=device, decimals=decimals)
        check_outputs(outputs)
        self.outputs = outputs
        self._watch = LooksLikeProbabilities("the server's scores", DECLARE_CONFIDENCES)

    def _answer(self, requests: Sequence[Scored]) -> list[Released]:
        logits = [self._clean_logits(scored) for scored in requests]
        queries = [self._queries(scored) for scored in requests]
        released: list[Released | None] = [None] * len(requests)
        # Queries of one shape are guarded together.
        shapes = [None if rows is None else rows.shape[1:] for rows in queries]
        for shape in set(shapes):
            places = [place for place, other in enumerate(shapes) if other == shape]
            parts = self._guarded_together(
                [logits[place] for place in places], [queries[place] for place in places]
            )
            for place, part in zip(places, parts, strict=True):
                released[place] = part
        # After the last release: where one fails, all requests are tried again.
        if self.count is not None:
            self.count(torch.cat(logits))
        return cast("list[Released]", released)

    def _guarded_together(
        self, logits: Sequence[Tensor], queries: Sequence[Tensor | None]
    ) -> list[Released]:
        """Return releases of several requests whose queries have one shape, or are not at hand."""
        counts = [len(rows) for rows in logits]
        total = sum(counts)
        lacking = [total - 1] * (-total % self.batch_multiple)
        at_hand = [rows for rows in queries if rows is not None]
        clean, images = torch.cat(list(logits)), torch.cat(at_hand) if at_hand else None
        if lacking:
            filled = [*range(total), *lacking]
            clean, images = clean[filled], None if images is None else images[filled]
        return _parts(self._release(clean, images), counts)

    def check(self, probes: Sequence[Scored], again: NDArray[np.float64]) -> None:
        """Guard a model's own output, and refuse to serve if anything is amiss.

        Args:
            probes: The server's answers to different probes, at least one.
            again: ``(N, K)`` its scores for the first probe, asked a second time.

        Raises:
            OnewayError: The scores are not what they are said to be or differ the second time, or
                the guard fails or changes nothing.
        """
        probe = probes[0]
        self.classes = probe.scores.shape[1]
        try:
            clean, *_ = [self._checked_logits(each) for each in probes]
            other = self._logits_of(again)
        except InvalidTensorError as error:
            raise TargetFailedError(
                f"the server to guard does not answer a probe as it must: {error}"
            ) from None
        if self.guard.name != "none" and (
            other.shape != clean.shape
            or bool(((release(other) - release(clean)).abs() > REPEAT_TOLERANCE).any())
        ):
            raise TargetFailedError(
                "the server to guard answers the same queries differently the second time, so that "
                "a client who repeats a query averages the guard away. Take the randomness out of "
                "it."
            )
        queries = self._queries(probe)
        if self.guard.defense.requires_input and (queries is None or len(queries) != len(clean)):
            raise DefenseFailedError(
                f"the guard {self.guard.name} needs the queries as well as their scores, and they "
                "cannot be read from a request. Name the input, or use a guard that needs none."
            )
        self._answer([probe])
        self._check_guard(clean, queries)
        if self.guard.needs_same_bits:
            self._choose_multiple(MULTIPLES, lambda: self._has_same_bits(probes))
        if not self.guard.defense.requires_input:
            self.inline_rows = self._measure_inline_rows(clean[:1])

    def _measure_inline_rows(self, clean: Tensor) -> int:
        """Return the most rows that are guarded in ``INLINE_SECONDS``; no model is asked here."""
        for rows in INLINE_ROWS:
            many, seconds = clean.expand(rows, -1), list[float]()
            for _ in range(3):  # the first is slow, and others may compute meanwhile
                begin = time.perf_counter()
                self._release(many, None)
                seconds.append(time.perf_counter() - begin)
            if min(seconds) < INLINE_SECONDS:
                return rows
        return 0

    def _has_same_bits(self, probes: Sequence[Scored]) -> bool:
        """Say whether the guard's answers have the same bits alone and together."""
        alone = [
            self._answer([Scored(row[None], None if rows is None else rows[None])])[0]
            for probe in probes
            for row, rows in zip(
                probe.scores, _rows_of(probe.queries, len(probe.scores)), strict=True
            )
        ]
        return np.array_equal(np.concatenate(alone), np.concatenate(self._answer(probes)))

    def _clean_logits(self, scored: Scored) -> Tensor:
        try:
            return self._checked_logits(scored)
        except InvalidTensorError:
            raise upstream_failed("upstream_scores") from None

    def _checked_logits(self, scored: Scored) -> Tensor:
        """Return clean logits; an error of the scores says what they are, and quotes none."""
        if scored.scores.shape[1] != self.classes:
            raise upstream_failed("upstream_classes")
        logits = self._logits_of(scored.scores)
        if self.outputs == "logits":
            self._watch.check(logits)
        return logits

    def _logits_of(self, scores: NDArray[np.float64]) -> Tensor:
        logits = clean_logits_of(torch.from_numpy(scores), self.outputs, "the server's scores")
        return logits.to(self.device)

    def _queries(self, scored: Scored) -> Tensor | None:
        if scored.queries is None or not self.guard.defense.requires_input:
            return None
        return scored.queries.to(self.device)


def _parts(released: Released, counts: Sequence[int]) -> list[Released]:
    """Return the releases of several requests, without those that filled a batch up."""
    ends = accumulate(counts)
    return [released[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _rows_of(queries: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Return each query, or None as often as there are scores."""
    return [None] * count if queries is None else list(queries)
