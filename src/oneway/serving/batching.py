"""Queries that arrive together are answered together, on one thread beside the event loop.

While a batch is computed the next one gathers, so that load makes batches larger and an idle
server answers at once.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

from oneway.errors import where_raised
from oneway.serving.http_errors import RefusedError
from oneway.serving.tracing import Parents, current_parents, under

Q = TypeVar("Q", bound=Sized)
R = TypeVar("R")

log = logging.getLogger("oneway.serving")


def closing() -> RefusedError:
    """Refuse because the server ends."""
    return RefusedError(503, "the server is shutting down", "closing", retry_after=1)


def stuck() -> RefusedError:
    """Refuse because a batch does not end: the server must be started anew."""
    return RefusedError(503, "the model does not answer", "stuck", retry_after=1)


def _expire(answer: asyncio.Future[R]) -> None:
    if not answer.done():
        answer.set_exception(RefusedError(504, "there was no answer in time", "timeout"))


@dataclass(eq=False)
class _Waiting(Generic[Q, R]):
    query: Q
    rows: int
    answer: asyncio.Future[R]
    traced: Parents = field(default_factory=current_parents)


_Answers = Sequence[R | RefusedError]


class Batcher(Generic[Q, R]):
    """Gathers queries of many requests into batches, and hands each request its answer.

    A batch that fails is tried again request by request, so that no client's query takes down
    another client's.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[R]],
        *,
        max_batch_size: int,
        max_waiting_rows: int,
        wait_seconds: float = 0.0,
        longest_seconds: float = 60.0,
        close_seconds: float = 10.0,
        inline_rows: int = 0,
    ) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            answer: Answers several requests at once, in order; their lengths are their rows. It
                raises :class:`RefusedError` and nothing else.
            max_batch_size: Most rows of a batch, unless one request alone has more.
            max_waiting_rows: Most rows that may wait. Beyond, requests are turned away.
            wait_seconds: How long a batch waits for more requests.
            longest_seconds: A batch that takes longer is stuck: see :attr:`alive`.
            close_seconds: How long :meth:`close` waits for requests under way.
            inline_rows: Most rows of a batch that is answered on the event loop, since that takes
                less than to hand it to a thread; 0: none. ``answer`` must then be known to end.
        """
        self._answer = answer
        self.max_batch_size, self.max_waiting_rows = max_batch_size, max_waiting_rows
        self.wait_seconds = wait_seconds
        self.longest_seconds, self.close_seconds = longest_seconds, close_seconds
        self.inline_rows = inline_rows
        self.waiting_rows = 0
        self._waiting: deque[_Waiting[Q, R]] = deque()
        self._batch: Sequence[_Waiting[Q, R]] = ()
        self._jobs: SimpleQueue[Sequence[_Waiting[Q, R]] | None] = SimpleQueue()
        self._began: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Handle | None = None
        self._ended = asyncio.Event()
        self._closing = False

    @property
    def alive(self) -> bool:
        """Whether queries are being answered, and not by a batch that does not end."""
        if self._loop is None or self._closing:
            return False
        return self._began is None or self._loop.time() < self._began + self.longest_seconds

    async def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a model that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="oneway-guard", daemon=True).start()

    async def close(self) -> None:
        """Answer waiting requests, take no more, and end; what takes too long is given up."""
        self._closing = True
        if self._batch or self._waiting:
            try:
                async with asyncio.timeout(self.close_seconds):
                    await self._ended.wait()
            except TimeoutError:
                log.critical("stuck", extra={"facts": {"seconds": self.close_seconds}})
                self._give_up(self._batch)
        self._jobs.put(None)

    async def ask(self, query: Q, timeout_seconds: float) -> R:
        """Return the answer to one request.

        Raises:
            RefusedError: There is none: too many wait, it took too long, or model or guard failed.
        """
        loop = self._loop
        if loop is None or not self.alive:
            raise closing() if self._closing else stuck()
        rows = len(query)
        if self.waiting_rows + rows > self.max_waiting_rows:
            raise RefusedError(
                429, "too many queries are waiting; ask again later", "busy", retry_after=1
            )
        waiting = _Waiting[Q, R](query, rows, loop.create_future())
        self._waiting.append(waiting)
        self.waiting_rows += rows
        if not self._batch and self._next is None:
            # Not at once: what arrived together is asked together.
            self._next = loop.call_later(self.wait_seconds, self._begin)
        clock = loop.call_later(timeout_seconds, _expire, waiting.answer)
        try:
            return await waiting.answer
        finally:
            clock.cancel()
            if waiting in self._waiting:  # given up, by the client or by the clock
                self._waiting.remove(waiting)
                self.waiting_rows -= rows

    def _begin(self) -> None:
        """Have the next batch answered, if requests wait."""
        self._next = None
        loop, batch = cast("asyncio.AbstractEventLoop", self._loop), self._take()
        if not batch:
            if self._closing:
                self._ended.set()
            return
        self._batch, self._began = batch, loop.time()
        if sum(waiting.rows for waiting in batch) <= self.inline_rows:
            loop.call_soon(self._end, *self._outcome(batch))
        else:
            self._jobs.put(batch)

    def _end(self, answers: _Answers[R], error: Exception | None) -> None:
        """Hand out the answers to the batch, and go on."""
        batch, self._batch, self._began = self._batch, (), None
        if error is not None:
            # A fault of oneway itself, since model and guard are dealt with: end, and refuse those
            # who wait. The server is then neither ready nor live.
            facts = {"error": type(error).__name__, "raised": where_raised(error)}
            log.critical("answering_ended", extra={"facts": facts})
            self._give_up(batch)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():  # given up
                continue
            if isinstance(answer, RefusedError):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        self._begin()

    def _give_up(self, batch: Sequence[_Waiting[Q, R]]) -> None:
        """Refuse the requests of a batch, all who wait, and all who come."""
        self._closing = True
        self._ended.set()
        for waiting in (*batch, *self._waiting):
            if not waiting.answer.done():
                waiting.answer.set_exception(closing())

    def _take(self) -> list[_Waiting[Q, R]]:
        """Return the requests of the next batch, without those whose clients have gone."""
        batch: list[_Waiting[Q, R]] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self.max_batch_size):
            waiting = self._waiting.popleft()
            self.waiting_rows -= waiting.rows
            if not waiting.answer.done():
                batch.append(waiting)
                rows += waiting.rows
        return batch

    def _work(self) -> None:
        """Compute one batch after the other, on a thread of its own."""
        while (batch := self._jobs.get()) is not None:
            loop, outcome = batch[0].answer.get_loop(), self._outcome(batch)
            if loop.is_closed():  # this batch was given up
                return
            loop.call_soon_threadsafe(self._end, *outcome)

    def _outcome(
        self, batch: Sequence[_Waiting[Q, R]]
    ) -> tuple[_Answers[R], None] | tuple[tuple[()], Exception]:
        """Return an answer for each request of a batch; or what ends the answering."""
        queries = [waiting.query for waiting in batch]
        try:
            with under(tuple(parent for waiting in batch for parent in waiting.traced)):
                answers = self._answers(queries)
            if len(answers) != len(queries):
                raise RuntimeError("there must be one answer for each request")
        except Exception as error:  # noqa: BLE001  it ends the answering
            return (), error
        return answers, None

    def _answers(self, queries: Sequence[Q]) -> _Answers[R]:
        try:
            return self._answer(queries)
        except RefusedError as error:
            if len(queries) == 1:
                return [error]
        return [self._answers([query])[0] for query in queries]
