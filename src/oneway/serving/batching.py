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


@dataclass(eq=False)
class _Waiting(Generic[Q, R]):
    query: Q
    answer: asyncio.Future[R]
    traced: Parents = field(default_factory=current_parents)


@dataclass
class _Job(Generic[Q, R]):
    queries: Sequence[Q]
    answers: asyncio.Future[Sequence[R | RefusedError]]
    traced: Parents


def _settle(future: asyncio.Future[R], result: R | None, error: Exception | None) -> None:
    if future.done():  # given up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(cast("R", result))


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
        self._batch: list[_Waiting[Q, R]] = []
        self._arrived = asyncio.Event()
        self._jobs: SimpleQueue[_Job[Q, R] | None] = SimpleQueue()
        self._began: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def alive(self) -> bool:
        """Whether queries are being answered, and not by a batch that does not end."""
        if self._task is None or self._task.done() or self._closing:
            return False
        return self._began is None or self._task.get_loop().time() < (
            self._began + self.longest_seconds
        )

    async def start(self) -> None:
        """Begin to answer."""
        # A daemon: a model that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="oneway-guard", daemon=True).start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Answer waiting requests, take no more, and end; what takes too long is given up."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.close_seconds)
            if not self._task.done():
                log.critical("stuck", extra={"facts": {"seconds": self.close_seconds}})
                self._task.cancel()
        self._jobs.put(None)

    async def ask(self, query: Q, timeout_seconds: float) -> R:
        """Return the answer to one request.

        Raises:
            RefusedError: There is none: too many wait, it took too long, or model or guard failed.
        """
        if not self.alive:
            raise closing() if self._closing else stuck()
        rows = len(query)
        if self.waiting_rows + rows > self.max_waiting_rows:
            raise RefusedError(
                429, "too many queries are waiting; ask again later", "busy", retry_after=1
            )
        waiting = _Waiting[Q, R](query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.waiting_rows += rows
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await waiting.answer
        except TimeoutError:
            raise RefusedError(504, "there was no answer in time", "timeout") from None
        finally:
            if waiting in self._waiting:  # given up, by the client or by the clock
                self._waiting.remove(waiting)
                self.waiting_rows -= rows

    async def _run(self) -> None:
        try:
            await self._answer_all()
        # A fault of oneway itself, since model and guard are dealt with: end, and refuse those who
        # wait. The server is then neither ready nor live.
        except Exception as error:  # noqa: BLE001
            facts = {"error": type(error).__name__, "raised": where_raised(error)}
            log.critical("answering_ended", extra={"facts": facts})
        finally:
            self._closing = True
            for waiting in (*self._batch, *self._waiting):
                if not waiting.answer.done():
                    waiting.answer.set_exception(closing())

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                if self.wait_seconds and not self._closing:
                    await asyncio.sleep(self.wait_seconds)
                continue
            batch = self._take()
            if not batch:
                continue
            self._batch, self._began = batch, loop.time()
            traced = tuple(parent for waiting in batch for parent in waiting.traced)
            job = _Job([waiting.query for waiting in batch], loop.create_future(), traced)
            if sum(map(len, job.queries)) <= self.inline_rows:
                with under(traced):
                    answers = self._answers(job.queries)
            else:
                self._jobs.put(job)
                answers = await job.answers
            self._began = None
            for waiting, answer in zip(batch, answers, strict=True):
                if isinstance(answer, RefusedError):
                    _settle(waiting.answer, None, answer)
                else:
                    _settle(waiting.answer, answer, None)

    def _take(self) -> list[_Waiting[Q, R]]:
        """Return the requests of the next batch, without those whose clients have gone."""
        batch: list[_Waiting[Q, R]] = []
        rows = 0
        while self._waiting and (
            not batch or rows + len(self._waiting[0].query) <= self.max_batch_size
        ):
            waiting = self._waiting.popleft()
            self.waiting_rows -= len(waiting.query)
            if not waiting.answer.done():
                batch.append(waiting)
                rows += len(waiting.query)
        return batch

    def _work(self) -> None:
        """Compute one batch after the other, on a thread of its own."""
        while (job := self._jobs.get()) is not None:
            loop = job.answers.get_loop()
            outcome: tuple[Sequence[R | RefusedError] | None, Exception | None]
            try:
                with under(job.traced):
                    outcome = self._answers(job.queries), None
            except Exception as error:  # noqa: BLE001  it is raised where it is awaited
                outcome = None, error
            if loop.is_closed():  # this batch was given up
                return
            loop.call_soon_threadsafe(_settle, job.answers, *outcome)

    def _answers(self, queries: Sequence[Q]) -> Sequence[R | RefusedError]:
        try:
            return self._answer(queries)
        except RefusedError as error:
            if len(queries) == 1:
                return [error]
        return [self._answers([query])[0] for query in queries]
